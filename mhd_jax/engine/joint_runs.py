"""Several runs in one compiled program: a vmapped axis S of runs in front of the client axis.

Such runs take their steps together, with one compilation and one dispatch's overhead for all. They
may differ in their seed, their clients' data, their graph, and in numeric hyperparameters of the
algorithm and of the optimizer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from mhd_jax.core.client_axis import Execution
from mhd_jax.core.types import Algorithm, PyTree
from mhd_jax.data.batching import DeviceData
from mhd_jax.engine import memory
from mhd_jax.engine.run import Run
from mhd_jax.engine.steps import Carry, carry_shardings, take_steps
from mhd_jax.topology import schedules
from mhd_jax.training import optim

_NUMBER = (float, float | None, "float", "float | None")  # annotations


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """Runs of one shape, with their program's inputs stacked along a leading axis of runs.

    A joined carry has one step count for all runs, so that a step's branches (`jax.lax.cond`) stay
    branches under `jax.vmap`.
    """

    runs: tuple[Run, ...]
    adjacency: PyTree
    plan: PyTree
    numbers: PyTree  # {"algorithm": {name: [S]}, "optimizers": ({name: [S]}, ...)}, if they differ

    @functools.cached_property
    def data(self) -> DeviceData:
        """The runs' training data, which is placed when first used."""
        held = [run.data for run in self.runs if isinstance(run.data, DeviceData)]
        most = max(data.labels.shape[1] for data in held)
        return _stack([_padded(data, most) for data in held])

    def join(self, carries: Sequence[Carry]) -> Carry:
        """Stacks the runs' carries, which must be at the same step, into one carry."""
        alike = tuple(_with_optimizers_of(self.runs[0], carry) for carry in carries)
        return _join(alike, execution=self.runs[0].execution)

    def fitted(self, carry: Carry) -> Together:
        """Returns the runs after checking that their joint step fits in memory."""
        memory.require_step_fits(self.lower(carry), self.runs[0])
        return self

    def advance(self, carry: Carry, num_steps: int) -> Carry:
        """Takes `num_steps` steps of all runs and returns the new carry; `carry` is donated."""
        return _dispatch(*self._arguments(carry, num_steps), **self.static())

    def lower(self, carry: Carry) -> jax.stages.Lowered:
        """Returns the lowered program of `advance`, not compiled; `carry` may be shapes only."""
        return _dispatch.lower(*self._arguments(carry, 1), **self.static())

    def _arguments(self, carry: Carry, num_steps: int) -> tuple[Any, ...]:
        count = jnp.int32(num_steps)
        return carry, self.data, self.adjacency, count, self.plan, self.numbers

    def static(self) -> dict[str, Any]:
        """Returns the static arguments of the program of `advance`."""
        first = self.runs[0]
        return {
            **first.static(),
            "parts": _parts(first.algorithm),
            "optimizers": first.optimizers,
            "frozen": _frozen(first),
            "steps": first.steps,
        }

    def split(self, tree: PyTree) -> list[PyTree]:
        """Splits a joined carry, or a tree of its arrays, into one for each run."""
        execution = self.runs[0].execution
        parts = [_take(tree, i, execution=execution) for i in range(len(self.runs))]
        if not isinstance(tree, Carry):
            return parts
        return [_with_optimizers_of(run, part) for run, part in zip(self.runs, parts, strict=True)]


def of_one_shape(runs: Sequence[Run]) -> list[list[int]]:
    """Groups runs, by index, that may share a program.

    Runs whose data stream from the host, or whose clients are computed in chunks (for the cache or
    the memory), are not joined, as this would not be faster.
    """
    alike: list[list[int]] = []
    for i, run in enumerate(runs):
        mates = next((found for found in alike if _alike(runs[found[0]], run)), None)
        if mates is None:
            alike.append([i])
        else:
            mates.append(i)
    return alike


def partition(runs: Sequence[Run]) -> Iterator[tuple[list[int], Together | None]]:
    """Divides runs, by index, into parts that share one program; None marks a run on its own.

    Each run is in exactly one part, which fits in memory. Parts are made one after another, so that
    the data of one is gone before those of the next are placed.
    """
    for found in of_one_shape(runs):
        most = _most_at_once(runs[found[0]])
        for start in range(0, len(found), most):
            indices = found[start : start + most]
            yield indices, _joined([runs[i] for i in indices]) if len(indices) > 1 else None


def _most_at_once(run: Run) -> int:
    """Returns how many runs like this one, with their data, fit in half of the memory."""
    execution = run.execution
    on_device = -(-run.clients.num_clients // execution.num_shards)
    needs = memory.estimate(run.clients, run.algorithm, run.spec)
    copies = (
        2 * memory.num_bytes(run.samples.data_shapes) // execution.num_shards
    )  # each run's own, and stacked
    bytes_each = needs.step(on_device, on_device, recompute=False) + copies
    return max(1, memory.capacity_bytes() // (2 * bytes_each))


def _joined(runs: Sequence[Run]) -> Together:
    """Joins runs which `_alike` finds alike."""
    places = schedules.largest([run.execution.most_neighbours for run in runs])
    near = _near([run.execution.near for run in runs])
    runs = [_with_neighbours(run, places, near) for run in runs]
    return Together(
        tuple(runs),
        _stack([run.topology.adjacency for run in runs]),
        _stack([run.plan for run in runs]),
        {
            "algorithm": _differing([_parts(run.algorithm) for run in runs]),
            "optimizers": tuple(
                _differing(several)
                for several in zip(*(run.optimizers for run in runs), strict=True)
            ),
        },
    )


def _near(found: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Returns distances of neighbours' devices (`Execution.near`) that hold for several graphs."""
    several = [near for near in found if near is not None]
    return tuple(sorted(set().union(*several))) if len(several) == len(found) else None


def _with_neighbours(run: Run, most: int | None, near: tuple[int, ...] | None) -> Run:
    """Returns the run with bounds on how many neighbours clients have, and on which devices."""
    execution = dataclasses.replace(run.execution, most_neighbours=most, near=near)
    return dataclasses.replace(run, execution=execution)


def _parts(algorithm: Algorithm) -> Any:
    """Returns the algorithm's `parts`; None if it has none, or a train step that is not theirs."""
    parts = algorithm.parts
    return parts if parts is None or parts.train_step == algorithm.train_step else None


def _frozen(run: Run) -> tuple[tuple[str, ...], ...]:
    """Returns the patterns of each group's frozen parameters."""
    return tuple(group.frozen for group in run.clients.groups)


def _numbers(record: Any) -> dict[str, float]:
    """Returns the numbers of `Algorithm.parts` or of an optimizer's record, by name; all else has none."""
    fields = dataclasses.fields(record) if dataclasses.is_dataclass(record) else ()
    found = {field.name: getattr(record, field.name) for field in fields if field.type in _NUMBER}
    return {name: value for name, value in found.items() if value is not None}


def _shape(record: Any) -> Any:
    """Returns what must be equal for records to share a program: of a number, whether it is 0."""
    if not dataclasses.is_dataclass(record):
        return record
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return type(record), fields | {name: value == 0 for name, value in _numbers(record).items()}


def _differing(records: Sequence[Any]) -> dict[str, Array]:
    """Returns the numbers in which records of one shape differ, by name, arrays [S]."""
    each = [_numbers(record) for record in records]
    values = {name: [float(own[name]) for own in each] for name in each[0]}
    return {  # stacks of weak types, which like Python's numbers change no array's type
        name: jnp.stack(list(map(jnp.asarray, several)))
        for name, several in values.items()
        if len(set(several)) > 1
    }


def _alike(one: Run, other: Run) -> bool:
    """Returns whether two runs may share a program, up to the length of their private data."""
    execution = one.execution
    if one.samples.on_host or other.samples.on_host:
        return False
    if execution.chunk is not None or execution.recompute:
        return False

    def settled(run: Run) -> dict[str, Any]:
        own, parts = _with_neighbours(run, None, None).static(), _parts(run.algorithm)
        if parts is not None:
            own["train_step"] = _shape(parts)
        optimizers = [_shape(optimizer) for optimizer in run.optimizers]
        return {**own, "steps": run.steps, "optimizers": optimizers, "frozen": _frozen(run)}

    def shapes(run: Run) -> Any:
        data: Any = run.samples.data_shapes
        rest = (
            data.starts,
            data.sizes,
            data.has_labels,
            data.public_inputs,
            run.topology.adjacency,
            run.plan,
            _with_optimizers_of(one, run.carry),
        )
        return jax.tree.map(lambda a: (a.shape, a.dtype), rest)

    return settled(one) == settled(other) and shapes(one) == shapes(other)


def _with_optimizers_of(run: Run, carry: Carry) -> Carry:
    return _with_optimizers([group.optimizer for group in run.carry.state.groups], carry)


def _with_optimizers(optimizers: Sequence[Any], carry: Carry) -> Carry:
    """Returns the carry with these optimizers, whose states have the same structure."""
    groups = tuple(
        dataclasses.replace(group, optimizer=optimizer)
        for group, optimizer in zip(carry.state.groups, optimizers, strict=True)
    )
    return dataclasses.replace(carry, state=dataclasses.replace(carry.state, groups=groups))


def _padded(data: DeviceData, most: int) -> DeviceData:
    """Pads private samples [devices, N, ...] to N = `most`; no client reads the padding."""

    def pad(a: Array) -> Array:
        return jnp.pad(a, [(0, 0), (0, most - a.shape[1])] + [(0, 0)] * (a.ndim - 2))

    return dataclasses.replace(data, inputs=jax.tree.map(pad, data.inputs), labels=pad(data.labels))


@jax.jit
def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def _axes(carry: Carry) -> Carry:
    """Returns the axis of runs for each array of a joined carry: 0, but None for step counts."""
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
    """Constrains a joined carry to the shardings of its runs' carries."""
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


def _take_steps_of_one(
    carry: Carry,
    data: DeviceData,
    adjacency: PyTree,
    num_steps: Array,
    plan: PyTree,
    numbers: PyTree,
    *,
    train_step: Callable[..., Any],
    parts: Any,
    optimizers: tuple[optim.Optimizer, ...],
    frozen: tuple[tuple[str, ...], ...],
    steps: int,
    **static: Any,
) -> Carry:
    """Calls `take_steps` for the run with these `numbers`, which are scalars."""
    if numbers["algorithm"]:
        train_step = dataclasses.replace(parts, **numbers["algorithm"]).train_step
    common = [group.optimizer for group in carry.state.groups]
    own = [
        optim.freezing(settings.build(steps, differing), kept) if differing else optimizer
        for settings, kept, differing, optimizer in zip(
            optimizers, frozen, numbers["optimizers"], common, strict=True
        )
    ]
    take: Any = functools.partial(take_steps, train_step=train_step, **static)
    carry = take(_with_optimizers(own, carry), data, adjacency, num_steps, plan)
    return _with_optimizers(common, carry)


@functools.partial(
    jax.jit,
    static_argnames=(
        "train_step",
        "parts",
        "optimizers",
        "frozen",
        "steps",
        "schedule",
        "spec",
        "execution",
    ),
    donate_argnames=("carry",),
)
def _dispatch(
    carry: Carry,
    data: DeviceData,
    adjacency: PyTree,
    num_steps: Array,
    plan: PyTree,
    numbers: PyTree,
    *,
    execution: Execution,
    **static: Any,
) -> Carry:
    axes = _axes(carry)
    one: Any = functools.partial(_take_steps_of_one, execution=execution, **static)
    after = jax.vmap(one, in_axes=(axes, 0, 0, None, 0, 0), out_axes=axes)(
        carry, data, adjacency, num_steps, plan, numbers
    )
    return _placed(after, execution)
