"""Counts of the messages of a whole run, known before it trains."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from mhd_jax.core.pruning import pruned
from mhd_jax.core.trees import taken_for_finite
from mhd_jax.core.types import PyTree
from mhd_jax.data.batching import DeviceData
from mhd_jax.engine.run import Run
from mhd_jax.engine.start import traced_start
from mhd_jax.engine.steps import Carry, take_steps, unplaced_data

_TRAINED = (".groups", ".inputs", ".public_inputs")  # parameters, and what they are trained on


def counts(run: Run) -> dict[str, np.ndarray] | None:
    """Returns the counts of messages after all steps, by kind, as long as all numbers are finite.

    Of the program of all steps only what counts messages is left, and computed: graphs, faults,
    draws of teachers and of samples. None if it needs parameters or samples, since clients then
    decide what to send by what they have learned.

    Args:
      run: on one device, without chunks, and with its data on the device.
    """

    def counted(carry: Carry, data: DeviceData, adjacency: PyTree, plan: Any) -> PyTree:
        return take_steps(carry, data, adjacency, run.steps, plan, **run.static()).messages  # type: ignore[arg-type]

    given = (run.carry, run.samples.data_shapes, run.topology.adjacency, run.plan)
    with taken_for_finite():
        traced, shapes = jax.make_jaxpr(counted, return_shape=True)(*given)
    leaves, structure = jax.tree.flatten(shapes)
    program, needed = pruned(traced, [True] * len(leaves))
    if _takes_trained(given, needed):
        return None
    num_carried = len(jax.tree.leaves(run.carry))
    started = _started(run, needed[:num_carried])
    if started is None:
        return None
    stored = [leaf.on for leaf in jax.tree.leaves(unplaced_data(run.clients, 1))]
    given_whole = [lambda _, leaf=leaf: leaf for leaf in jax.tree.leaves(given[2:])]
    rest = zip([*stored, *given_whole], needed[num_carried:], strict=True)
    placed = [place(run.execution) for place, is_needed in rest if is_needed]
    found = jax.jit(jaxpr_as_fun(program))(*started, *placed)
    return jax.tree.map(np.asarray, jax.tree.unflatten(structure, found))


def _started(run: Run, wanted: list[bool]) -> list[Any] | None:
    """Returns the wanted arrays of the carry at the start; None if they depend on given arrays."""
    key, starts = jax.random.key(run.seed), [group.start for group in run.clients.groups]
    how = (run.algorithm, run.spec, run.execution, run.plan is not None, run.quarantine)
    traced, _ = traced_start(run.clients, how, (key, run.samples.data_shapes, starts))
    program, needed = pruned(traced, wanted)
    return None if any(needed[1:]) else jax.jit(jaxpr_as_fun(program))(*[key] * needed[0])


def _takes_trained(given: PyTree, needed: list[bool]) -> bool:
    """Returns whether a program takes arrays that training changes, or samples."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(given)]
    names = [jax.tree_util.keystr(path) for path in paths]
    return any(
        is_needed and any(part in name for part in _TRAINED)
        for name, is_needed in zip(names, needed, strict=True)
    )
