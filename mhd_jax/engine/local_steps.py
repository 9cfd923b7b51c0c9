"""Local steps: steps in which clients exchange nothing, taken by one client after the other.

A client that takes its steps in a row stays in the processor's cache; if all clients take each step
together, their parameters are read from memory, and written there, at every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.client_axis import (
    BATCH_AXIS,
    BY_DEVICE,
    Execution,
    one_after_the_other,
    under,
)
from mhd_jax.core.trees import num_bytes
from mhd_jax.core.types import Batch, GroupState, Metrics, PyTree, State, Terms
from mhd_jax.data.batching import BatchSpec, DeviceData, draw_batch
from mhd_jax.training.groups import in_client_order, take_members

_LARGE = 2**19  # bytes of a client's parameters and optimizer state


def pay_off(execution: Execution, state: State) -> bool:
    """Returns whether clients should take local steps one after the other.

    On CPUs clients that are large enough should. Where clients are small, the many short operations
    of each cost more than reading its parameters; clients with convolutions, of which a device
    computes one after the other at every step, gain nothing.
    """
    if execution.platform != "cpu" or execution.chunk is not None:
        return False
    if execution.mesh is not None:
        shares_clients = execution.mesh.shape[BATCH_AXIS] > 1
        # Samples are where a client is by its number, which in one of several groups is elsewhere.
        if shares_clients or len(state.groups) > 1:
            return False
    num_clients, size = state.num_clients, num_bytes([_models(group) for group in state.groups])
    return num_clients > execution.num_shards and size >= _LARGE * num_clients


def take_local_steps(
    state: State,
    sums: Terms,
    data: DeviceData,
    num_steps: Array,
    step: Callable[[State, Batch], tuple[State, Metrics]],
    spec: BatchSpec,
    execution: Execution,
) -> tuple[State, Terms]:
    """Takes `num_steps` local steps of every client.

    Args:
      state: the state before them.
      sums: metrics of each client so far, [K], by name.
      data, spec, execution: as for `mhd_jax.engine.steps.take_steps`.
      num_steps: int32 []; traced.
      step: the algorithm's `LocalSteps.step`.

    Returns:
      The state after them, and `sums` with their metrics.
    """
    spec = dataclasses.replace(spec, public=0)
    alone = dataclasses.replace(execution, mesh=None)
    groups, new_sums = [], []
    for group in state.groups:

        def one_client(
            changing: PyTree,
            own: PyTree,
            inputs: PyTree,
            labels: Array,
            common: PyTree,
            group: GroupState = group,
        ) -> PyTree:
            models, sums = jax.tree.map(lambda a: a[None], changing)
            client_id, label_set, rows = jax.tree.map(lambda a: a[None], own)
            inputs, labels = jax.tree.map(lambda a: a[None], (inputs, labels))
            key, first, num_steps, public_inputs = common
            mine = dataclasses.replace(group, **models, members=(0,))
            before = State(first, key, client_id, (mine,), label_set, task=state.task)
            data = DeviceData(inputs=inputs, labels=labels, public_inputs=public_inputs, **rows)

            def one_step(_: Array, taken: tuple[State, Terms]) -> tuple[State, Terms]:
                state, sums = taken
                batch = draw_batch(data, state.key, state.client_ids, state.step, spec)
                state, metrics = step(state, batch)
                return state, jax.tree.map(jnp.add, sums, metrics.numbers())

            with under(alone):
                after, sums = jax.lax.fori_loop(0, num_steps, one_step, (before, sums))
            return jax.tree.map(lambda a: a[0], (_models(after.groups[0]), sums))

        rows = {"starts": data.starts, "sizes": data.sizes, "has_labels": data.has_labels}
        own: Any = (state.client_ids, state.label_sets, rows, sums)
        *own, own_sums = take_members(own, group.members, state.num_clients)
        common = (state.key, state.step, num_steps, data.public_inputs)
        models, found = one_after_the_other(one_client, (0, 0, BY_DEVICE, BY_DEVICE, None))(
            (_models(group), own_sums), own, data.inputs, data.labels, common
        )
        groups.append(dataclasses.replace(group, **models))
        new_sums.append(found)
    after = dataclasses.replace(state, step=state.step + num_steps, groups=tuple(groups))
    return after, in_client_order(new_sums, state.groups)


def _models(group: GroupState) -> dict[str, PyTree]:
    """Returns what local steps change."""
    return {"params": group.params, "stats": group.stats, "opt_state": group.opt_state}
