"""Which graph a step has: pure functions of a schedule's arrays and of the step.

All that a schedule chooses from is traced, intervals and seeds too: another graph of the same
shape is the same program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core import random
from mhd_jax.core.types import PyTree

# (arrays, step int32 []) -> weights [K, K]; hashable, since programs are compiled for it.
Schedule = Callable[[PyTree, Array], Array]


def cycle(adjacency: Array, step: Array) -> Array:
    """Matrices [T, K, K] that repeat every T steps."""
    return adjacency[step % adjacency.shape[0]]


def redrawn(arrays: tuple[Array, Array, Array], step: Array) -> Array:
    """Matrices [T, K, K] in turn, each for `every` steps, with the clients shuffled anew each time.

    Args:
      arrays: the matrices, `every` (int32 []) and a seed (uint32 []).
      step: of the run.
    """
    matrices, every, seed = arrays
    draw = step // every
    key = random.purpose_key(jax.random.key(seed), random.Purpose.TOPOLOGY, draw)
    order = jax.random.permutation(key, matrices.shape[-1])
    return cycle(matrices, draw)[order[:, None], order[None, :]]


def meeting(arrays: tuple[Array, Array, Array], step: Array) -> Array:
    """One matrix [K, K] at the steps that are multiples of `every`, another at all others.

    Args:
      arrays: the two matrices, and `every` (int32 []).
      step: of the run.
    """
    together, apart, every = arrays
    return jnp.where(step % every == 0, together, apart)


@dataclasses.dataclass(frozen=True)
class Switch:
    """From each of N steps on, another schedule; all go by the steps of the run."""

    schedules: tuple[Schedule, ...]

    def __call__(self, arrays: tuple[Array, tuple[PyTree, ...]], step: Array) -> Array:
        """The step's graph [K, K]; `arrays` are the first steps, int32 [N], and each part's own."""
        starts, parts = arrays
        graphs = [
            functools.partial(schedule, part)
            for schedule, part in zip(self.schedules, parts, strict=True)
        ]
        return jax.lax.switch((starts <= step).sum() - 1, graphs, step)


_OF_MATRICES: tuple[Schedule, ...] = (cycle, redrawn, meeting)


def is_known(schedule: Schedule) -> bool:
    """Whether a schedule's graphs are its own matrices, with clients in some order, and no others."""
    if isinstance(schedule, Switch):
        return all(map(is_known, schedule.schedules))
    return schedule in _OF_MATRICES


def largest(bounds: Sequence[int | None]) -> int | None:
    """The bound that serves all; None where one of them is not known."""
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def most_neighbours(schedule: Schedule, arrays: PyTree) -> int | None:
    """The largest neighbourhood in any graph of a schedule; None where its arrays do not tell."""
    if isinstance(schedule, Switch):
        parts = zip(schedule.schedules, arrays[1], strict=True)
        return largest([most_neighbours(*part) for part in parts])
    if schedule not in _OF_MATRICES:
        return None
    # These take one of their matrices, with the clients in some order.
    matrices = [a for a in jax.tree.leaves(arrays) if a.ndim >= 2]
    return max(int((matrix > 0).sum(axis=-1).max()) for matrix in matrices)
