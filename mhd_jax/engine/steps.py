"""The compiled pieces of a run: many training steps in one dispatch, and the evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.sharding import Sharding

from mhd_jax.clients import Clients
from mhd_jax.core.client_axis import AT_ONCE, Execution, everywhere, under
from mhd_jax.core.types import Batch, LocalSteps, Metrics, PyTree, State, Terms
from mhd_jax.data.batching import BatchSpec, Data, DeviceData, draw_batch
from mhd_jax.data.preprocessing import Preparation
from mhd_jax.engine import faults
from mhd_jax.engine.evaluation import EvaluationSet
from mhd_jax.engine.faults import FaultPlan, Tally
from mhd_jax.engine.local_steps import take_local_steps
from mhd_jax.engine.placing import held, place, rows_of
from mhd_jax.topology.schedules import Schedule
from mhd_jax.training.metrics import correct_by_class


@struct.dataclass
class Carry:
    """Everything that evolves in a run: passed from dispatch to dispatch, saved in checkpoints.

    Attributes:
      state: the state of the clients.
      sums: the metrics, summed over the steps since the last evaluation.
      count: the number of these steps, int32 [].
      messages: counts of messages since the start, by kind: those that client i received from j,
        int32 [K, K], or those between client i and a server, int32 [K].
      diagnostics: sums since the start, arrays [K, ...], see `mhd_jax.exchange.diagnostics`; None
        if the algorithm has none.
      tally: counts of the faults that happened; None in a run without faults.
    """

    state: State
    sums: Terms
    count: Array
    messages: dict[str, Array]
    tally: Tally | None = None
    diagnostics: dict[str, Array] | None = None

    def reset(self) -> Carry:
        """Returns the carry with sums, `count` and `tally.trained` set to zero."""

        def zeros(a: Array) -> Array:  # with the array's sharding, so that nothing recompiles
            nothing = np.zeros(a.shape, a.dtype)
            return jax.make_array_from_callback(a.shape, a.sharding, lambda part: nothing[part])

        sums, count = jax.tree.map(zeros, (self.sums, self.count))
        tally = self.tally
        if tally is not None:
            tally = dataclasses.replace(tally, trained=zeros(tally.trained))
        return dataclasses.replace(self, sums=sums, count=count, tally=tally)


def device_data(clients: Clients, execution: Execution = AT_ONCE) -> DeviceData:
    """Places the training data on the devices: each device holds only its own clients' data."""
    return place(unplaced_data(clients, execution.num_shards), execution)


def unplaced_data(clients: Clients, num_shards: int) -> DeviceData:
    """Returns the training data, yet to be placed, in `num_shards` parts of as many clients."""
    by_client = np.argsort(clients.owner, kind="stable")
    by_client = by_client[np.count_nonzero(clients.owner < 0) :]
    sizes = clients.label_counts().sum(axis=1)
    on_device = sizes.reshape(num_shards, -1)
    most = max(int(on_device.sum(axis=1).max()), 1)
    rows = np.stack(  # padded with repeated samples of the device, which no client reads
        [
            np.resize(part if part.size else 0, most)
            for part in np.split(by_client, np.cumsum(on_device.sum(axis=1))[:-1])
        ]
    )
    starts = np.cumsum(on_device, axis=1) - on_device
    found: Any = {  # not arrays yet
        "inputs": rows_of(clients.data.inputs, rows, 0),
        "labels": rows_of(clients.data.targets, rows, 0),
        "starts": held(starts.reshape(-1).astype(np.int32), 0),
        "sizes": held(sizes.astype(np.int32), 0),
        "has_labels": held(clients.learns_labels & (sizes > 0), 0),
        "public_inputs": rows_of(clients.public_inputs, np.arange(clients.num_public), None),
    }
    return DeviceData(**found)


def carry_shardings(carry: Carry, execution: Execution) -> Carry:
    """Returns the sharding of each array of a carry: clients' own arrays are split by client."""
    whole, split = (execution.sharding(by_client=by) for by in (False, True))
    num_clients = carry.state.num_clients

    def by_client(a: Array) -> Sharding:
        return split if a.ndim and a.shape[0] == num_clients else whole

    state = dataclasses.replace(
        jax.tree.map(lambda _: whole, carry.state),
        groups=jax.tree.map(lambda _: split, carry.state.groups),
        extra=jax.tree.map(by_client, carry.state.extra),
    )
    sums = jax.tree.map(lambda total: split if total.ndim else whole, carry.sums)
    messages = jax.tree.map(lambda _: split, carry.messages)
    tally = jax.tree.map(lambda _: whole, carry.tally)
    diagnostics = jax.tree.map(lambda _: split, carry.diagnostics)
    # Shardings, in the structure of a carry.
    return Carry(state, sums, whole, messages, tally, diagnostics)  # type: ignore[arg-type]


def take_steps(
    carry: Carry,
    data: Data,
    adjacency: PyTree,
    num_steps: Array,
    plan: FaultPlan | None = None,
    *,
    train_step: Callable[[State, Batch, Array], tuple[State, Metrics]],
    schedule: Schedule,
    spec: BatchSpec,
    execution: Execution = AT_ONCE,
    local: LocalSteps | None = None,
) -> Carry:
    """Takes `num_steps` training steps.

    The number of steps, the graph and the faults are traced: a change of these compiles nothing.
    With `local`, each client takes its steps until an exchange before the next client does; this
    needs `DeviceData`, and that nothing fails.
    """

    num_clients = carry.state.num_clients
    places = carry_shardings(carry, execution)

    def one_step(_: Array, carry: Carry) -> Carry:
        before, tally = carry.state, carry.tally
        batch = draw_batch(data, before.key, before.client_ids, before.step, spec)
        graph = everywhere(schedule(adjacency, before.step))
        if tally is not None:
            there, graph, tally = faults.before_step(plan, tally, before, graph)
            batch = dataclasses.replace(batch, presence=there)
        inactive = num_clients - graph.shape[0]
        state, found = train_step(before, batch, jnp.pad(graph, (0, inactive)))
        metrics = Metrics.of(found)
        if tally is not None:
            state, metrics, tally = faults.after_step(tally, there, before, state, metrics)
        messages, diagnostics, sums = jax.tree.map(
            jnp.add,
            (carry.messages, carry.diagnostics, carry.sums),
            (metrics.messages, metrics.diagnostics, metrics.numbers()),
        )
        after = Carry(state, sums, carry.count + 1, messages, tally, diagnostics)
        return placed(after)

    def placed(carry: Carry) -> Carry:
        return carry if execution.mesh is None else jax.lax.with_sharding_constraint(carry, places)

    def until_exchange(carry: Carry, local: LocalSteps) -> Carry:
        ahead, left = local.until_exchange(carry.state), end - carry.state.step
        count = jnp.minimum(ahead, left)
        state, sums = take_local_steps(
            carry.state,
            carry.sums,
            data,  # type: ignore[arg-type]  # `DeviceData`
            count,
            local.step,
            spec,
            execution,
        )
        carry = dataclasses.replace(carry, state=state, sums=sums, count=carry.count + count)

        def exchange(_: Array, carry: Carry) -> Carry:
            state, found = local.exchange(carry.state)
            messages = jax.tree.map(jnp.add, carry.messages, found)
            return placed(dataclasses.replace(carry, state=state, messages=messages))

        # A loop of one turn or none: unlike a branch, it copies nothing.
        return jax.lax.fori_loop(0, (ahead <= left).astype(jnp.int32), exchange, placed(carry))

    end = carry.state.step + num_steps
    with under(execution):
        if local is None:
            return jax.lax.fori_loop(0, num_steps, one_step, carry)
        return jax.lax.while_loop(
            lambda carry: carry.state.step < end,
            functools.partial(until_exchange, local=local),
            carry,
        )


dispatch = jax.jit(
    take_steps,
    static_argnames=("train_step", "schedule", "spec", "execution", "local"),
    donate_argnames=("carry",),
)


@functools.partial(jax.jit, static_argnames=("predict", "preparation", "num_classes", "execution"))
def count_correct(
    state: State,
    samples: EvaluationSet,
    *,
    predict: Callable[[State, PyTree], Array],
    preparation: Preparation,
    num_classes: int,
    execution: Execution = AT_ONCE,
) -> tuple[Array, Array]:
    """Counts correct predictions, int32 [K, H, C], and samples, int32 [C], by class.

    Of a regression, scores are summed, float32 [K, H, C].
    """

    def of_chunk(chunk: EvaluationSet) -> Array:
        logits = predict(state, preparation(chunk.inputs))
        labelled = chunk.labels, chunk.mask, num_classes, state.task, chunk.targets
        return correct_by_class(logits, *labelled)

    def one_chunk(total: Array, chunk: EvaluationSet) -> tuple[Array, None]:
        return total + of_chunk(chunk), None

    with under(execution):
        found = jax.eval_shape(of_chunk, jax.tree.map(lambda a: a[0], samples))
        correct, _ = jax.lax.scan(one_chunk, jnp.zeros(found.shape, found.dtype), samples)
    labels = jnp.where(samples.mask, samples.labels, num_classes).reshape(-1)
    return correct, jnp.bincount(labels, length=num_classes + 1)[:num_classes]


@functools.partial(jax.jit, static_argnames=("predict", "preparation", "execution"))
def answers(
    state: State,
    inputs: PyTree,
    *,
    predict: Callable[[State, PyTree], Array],
    preparation: Preparation,
    execution: Execution = AT_ONCE,
) -> Array:
    """Returns all clients' logits [K, N, H, C] on samples as the data set stores them."""
    with under(execution):
        return predict(state, preparation(inputs))
