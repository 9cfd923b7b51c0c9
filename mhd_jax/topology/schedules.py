"""Schedules: pure functions of arrays and of the step that return the graph of the step.

All arrays of a schedule are traced, including intervals and seeds, so that another graph of the
same shape uses the same program.
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
    """Returns the graph of the step from matrices [T, K, K], which repeat every T steps."""
    return adjacency[step % adjacency.shape[0]]


def redrawn(arrays: tuple[Array, Array, Array], step: Array) -> Array:
    """Returns matrices in turn, each for `every` steps, with the clients permuted anew each time.

    Args:
      arrays: the matrices [T, K, K], `every` (int32 []) and a seed (uint32 []).
      step: the step of the run.
    """
    matrices, every, seed = arrays
    draw = step // every
    key = random.purpose_key(jax.random.key(seed), random.Purpose.TOPOLOGY, draw)
    order = jax.random.permutation(key, matrices.shape[-1])
    return cycle(matrices, draw)[order[:, None], order[None, :]]


def meeting(arrays: tuple[Array, Array, Array], step: Array) -> Array:
    """Returns one matrix at the steps that are multiples of `every`, and another at all others.

    Args:
      arrays: the two matrices, [K, K], and `every` (int32 []).
      step: the step of the run.
    """
    together, apart, every = arrays
    return jnp.where(step % every == 0, together, apart)


@dataclasses.dataclass(frozen=True)
class Switch:
    """A schedule that uses another schedule from each of N steps on; all use the run's step."""

    schedules: tuple[Schedule, ...]

    def __call__(self, arrays: tuple[Array, tuple[PyTree, ...]], step: Array) -> Array:
        """Returns the graph [K, K] of the step.

        Args:
          arrays: the first steps of the schedules, int32 [N], and the arrays of each schedule.
          step: the step of the run.
        """
        starts, parts = arrays
        graphs = [
            functools.partial(schedule, part)
            for schedule, part in zip(self.schedules, parts, strict=True)
        ]
        return jax.lax.switch((starts <= step).sum() - 1, graphs, step)


_OF_MATRICES: tuple[Schedule, ...] = (cycle, redrawn, meeting)


def is_known(schedule: Schedule) -> bool:
    """Returns whether all graphs of a schedule are permutations of matrices among its arrays."""
    if isinstance(schedule, Switch):
        return all(map(is_known, schedule.schedules))
    return schedule in _OF_MATRICES


def largest(bounds: Sequence[int | None]) -> int | None:
    """Returns the largest of several bounds; None if one of them is None (unknown)."""
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def most_neighbours(schedule: Schedule, arrays: PyTree) -> int | None:
    """Returns the largest neighbourhood in any graph of a schedule; None for a user's function."""
    if isinstance(schedule, Switch):
        parts = zip(schedule.schedules, arrays[1], strict=True)
        return largest([most_neighbours(*part) for part in parts])
    if schedule not in _OF_MATRICES:
        return None
    # Each graph is one of the matrices with the clients permuted.
    matrices = [a for a in jax.tree.leaves(arrays) if a.ndim >= 2]
    return max(int((matrix > 0).sum(axis=-1).max()) for matrix in matrices)
