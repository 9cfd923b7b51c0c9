"""Runs that differ in their seed alone, as one more vmapped axis S in front of the clients'.

They take their steps in one program: one compilation, and one dispatch's overhead, for all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from mhd_jax import memory
from mhd_jax.data.batching import DeviceData
from mhd_jax.engine import Carry, carry_shardings, take_steps
from mhd_jax.execution import Execution
from mhd_jax.run import Run
from mhd_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """Runs of one shape, and what their program takes: arrays with an axis of runs in front.

    A joined carry has one step count for all, so that a step's branches (`jax.lax.cond`)
    stay branches.
    """

    runs: tuple[Run, ...]
    data: DeviceData
    adjacency: PyTree
    plan: PyTree

    def join(self, carries: Sequence[Carry]) -> Carry:
        """One carry of all runs' own, which must have come to one step."""
        return _join(tuple(carries), execution=self.runs[0].execution)

    def advance(self, carry: Carry, num_steps: int) -> Carry:
        """Takes steps of all runs; `carry` is used up."""
        return _dispatch(
            carry,
            self.data,
            self.adjacency,
            jnp.int32(num_steps),
            self.plan,
            **self.runs[0].static(),
        )

    def split(self, tree: PyTree) -> list[PyTree]:
        """A joined carry, or a tree of its arrays, run by run."""
        execution = self.runs[0].execution
        return [_take(tree, i, execution=execution) for i in range(len(self.runs))]


def together(runs: Sequence[Run]) -> Together | None:
    """The runs as one; None where they cannot be, or where it would not serve.

    They must have one shape, and fit in memory with their data. Clients that are computed in chunks, for the
    cache or the memory, would gain nothing.
    """
    first = runs[0]
    held = [run.data for run in runs if isinstance(run.data, DeviceData)]  # not streamed
    if len(runs) == 1 or len(held) < len(runs):
        return None
    if any(not _alike(first, held[0], run, data) for run, data in zip(runs, held, strict=True)):
        return None
    execution = first.execution
    if execution.chunk is not None or execution.recompute:
        return None
    on_device = -(-first.clients.num_clients // execution.num_shards)
    needs = memory.estimate(first.clients, first.algorithm, first.spec)
    copies = 2 * memory.num_bytes(first.data) // execution.num_shards  # each run keeps its own
    bytes_each = needs.step(on_device, on_device, recompute=False) + copies
    if len(runs) * bytes_each > memory.capacity_bytes():
        return None
    most = max(data.labels.shape[1] for data in held)
    data = _stack([_padded(each, most) for each in held])
    adjacency = _stack([run.topology.adjacency for run in runs])
    return Together(tuple(runs), data, adjacency, _stack([run.plan for run in runs]))


def _alike(one: Run, ones: DeviceData, other: Run, others: DeviceData) -> bool:
    """Whether two runs are the same program, but for the length of the rows of private data."""

    def shapes(run: Run, data: DeviceData) -> Any:
        rest = (
            data.starts,
            data.sizes,
            data.has_labels,
            data.public_inputs,
            run.topology.adjacency,
            run.plan,
            run.carry,
        )
        return jax.tree.map(lambda a: (a.shape, a.dtype), rest)

    return one.static() == other.static() and shapes(one, ones) == shapes(other, others)


def _padded(data: DeviceData, most: int) -> DeviceData:
    """Private rows [devices, N, ...] with N = `most`; no client's rows reach what is added."""

    def pad(a: Array) -> Array:
        return jnp.pad(a, [(0, 0), (0, most - a.shape[1])] + [(0, 0)] * (a.ndim - 2))

    return dataclasses.replace(data, inputs=jax.tree.map(pad, data.inputs), labels=pad(data.labels))


@jax.jit
def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def _axes(carry: Carry) -> Carry:
    """Where a joined carry has its axis of runs: in front, but for the counts of steps."""
    axes = jax.tree.map(lambda _: 0, carry)
    state = dataclasses.replace(axes.state, step=None)
    return dataclasses.replace(axes, state=state, count=None)


@functools.partial(jax.jit, static_argnames="execution")
def _join(carries: tuple[Carry, ...], *, execution: Execution) -> Carry:
    first = carries[0]
    joined = jax.tree.map(lambda *arrays: jnp.stack(arrays), *carries)
    state = dataclasses.replace(joined.state, step=first.state.step)
    return _placed(dataclasses.replace(joined, state=state, count=first.count), execution)


@functools.partial(jax.jit, static_argnames="execution")
def _take(tree: PyTree, i: Array, *, execution: Execution) -> PyTree:
    if not isinstance(tree, Carry):
        return jax.tree.map(lambda a: a[i], tree)
    part = _part(tree, i)
    if execution.mesh is None:
        return part
    return jax.lax.with_sharding_constraint(part, carry_shardings(part, execution))


def _part(carry: Carry, i: Array | int) -> Carry:
    return jax.tree.map(
        lambda axis, a: a if axis is None else jax.tree.map(lambda leaf: leaf[i], a),
        _axes(carry),
        carry,
        is_leaf=lambda axis: axis is None,
    )


def _placed(carry: Carry, execution: Execution) -> Carry:
    """Constrains a joined carry to where its runs' own arrays live."""
    if execution.mesh is None:
        return carry

    def behind(axis: int | None, place: Any) -> Any:
        return (
            place if axis is None else NamedSharding(place.mesh, PartitionSpec(None, *place.spec))
        )

    places = carry_shardings(jax.eval_shape(lambda c: _part(c, 0), carry), execution)
    return jax.lax.with_sharding_constraint(
        carry, jax.tree.map(behind, _axes(carry), places, is_leaf=lambda axis: axis is None)
    )


@functools.partial(
    jax.jit,
    static_argnames=("train_step", "schedule", "spec", "execution"),
    donate_argnames=("carry",),
)
def _dispatch(
    carry: Carry,
    data: DeviceData,
    adjacency: PyTree,
    num_steps: Array,
    plan: PyTree = None,
    *,
    execution: Execution,
    **static: Any,
) -> Carry:
    axes = _axes(carry)
    steps: Any = functools.partial(take_steps, execution=execution, **static)
    after = jax.vmap(steps, in_axes=(axes, 0, 0, None, 0), out_axes=axes)(
        carry, data, adjacency, num_steps, plan
    )
    return _placed(after, execution)
