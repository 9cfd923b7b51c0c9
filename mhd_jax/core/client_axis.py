"""Mapping a function of one client over all clients: at once, in chunks, or across devices.

Algorithms call `over_clients` and do not depend on the choice. The engine chooses an
`Execution` and traces the program under it; without one, all clients are vmapped at once.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from mhd_jax.core.machine import machine

AXIS = "clients"
BATCH_AXIS = "batch"
BY_DEVICE = "by device"  # see `over_clients`
Axis = int | str | None


@dataclasses.dataclass(frozen=True)
class Execution:
    """Static choices of how the client axis is computed.

    Attributes:
      chunk: the number of clients that one device computes together; it computes its chunks one
        after another. None computes all its clients together.
      recompute: whether the backward pass recomputes activations, chunk by chunk, instead of
        storing those of all clients in the forward pass.
      mesh: devices along the axes "clients" and "batch"; where there are more devices than
        clients, several devices share the samples of one client. None is a single device.
      near: how many devices further on neighbours' devices are (`mhd_jax.core.neighbour_devices`);
        None is anywhere.
      most_neighbours: the largest number of neighbours of any client at any step; None is K − 1.
      platform: the platform that programs are compiled for, "cpu", "gpu" or "tpu"; None is the
        platform on which JAX runs.
      part: the most private samples of a client whose gradient is computed at once, where a loss
        is a mean over samples; None is the whole batch.
    """

    chunk: int | None = None
    recompute: bool = False
    mesh: Mesh | None = None
    near: tuple[int, ...] | None = None
    most_neighbours: int | None = None
    platform: str | None = None
    part: int | None = None

    @property
    def num_shards(self) -> int:
        """The number of parts into which the client axis is split."""
        return 1 if self.mesh is None else self.mesh.shape[AXIS]

    @property
    def num_devices(self) -> int:
        """The number of devices that compute."""
        return 1 if self.mesh is None else self.mesh.size

    def at_once(self, num_clients: int) -> int:
        """Returns how many of K clients each device computes together."""
        return self.chunk or -(-num_clients // self.num_shards)

    def sharding(self, by_client: bool) -> Sharding:
        """Returns the sharding of arrays: split by their leading client axis, or replicated."""
        return self.sharding_along(0 if by_client else None)

    def sharding_along(self, axis: int | None) -> Sharding:
        """Returns the sharding of arrays whose client axis is `axis`; None replicates them."""
        if self.mesh is None:
            return SingleDeviceSharding(machine().devices[0])
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
        return NamedSharding(self.mesh, spec)


AT_ONCE = Execution()
_current: contextvars.ContextVar[Execution] = contextvars.ContextVar("execution", default=AT_ONCE)


@contextlib.contextmanager
def under(execution: Execution) -> Iterator[None]:
    """Sets the execution under which the code of the with block is traced."""
    token = _current.set(execution)
    try:
        yield
    finally:
        _current.reset(token)


def current_execution() -> Execution:
    """Returns the execution under which code is being traced."""
    return _current.get()


def computes_at_once() -> bool:
    """Returns whether each device computes all samples of all its clients in a single pass."""
    execution = _current.get()
    shares = execution.mesh is not None and execution.mesh.shape[BATCH_AXIS] > 1
    return execution.chunk is None and not execution.recompute and not shares


def part_of(num_samples: int) -> int:
    """Returns how many of a client's samples are computed at once: a divisor of their number."""
    most = _current.get().part
    return num_samples if most is None else even_part(num_samples, most)


def even_part(count: int, most: int) -> int:
    """Returns the largest divisor of `count` up to `most`; all, if it is less than half of `most`."""
    part = max(n for n in range(1, most + 1) if count % n == 0)
    return part if 2 * part >= most else count


def default_platform() -> str:
    """Returns the platform of the devices: "cpu", "gpu" or "tpu"."""
    return machine().platform


def target_platform() -> str:
    """Returns the platform for which the program that is being traced is compiled."""
    return _current.get().platform or default_platform()


def neighbour_slots(num_clients: int) -> int:
    """Returns the number of slots, at least 1, that hold the neighbours of any of K clients."""
    others, most = num_clients - 1, _current.get().most_neighbours
    return max(others if most is None else min(most, others), 1)


def first_of(chosen: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Returns the first columns chosen in each row of `chosen`, and which slots they fill.

    Args:
      chosen: bool [K, K].
      slots: the number of columns returned for each row.

    Returns:
      The columns, int32 [K, slots], and which slots are filled, bool [K, slots].
    """
    num_clients = chosen.shape[1]
    order = num_clients - jnp.arange(num_clients, dtype=jnp.float32)
    found, columns = jax.lax.top_k(jnp.where(chosen, order, 0), slots)  # floats are sorted fastest
    return columns.astype(jnp.int32), found > 0


def over_clients(fn: Callable, in_axes: int | Sequence[Axis] = 0) -> Callable:
    """Maps a function of one client over the client axis; all code does so through this function.

    Args:
      fn: takes the arguments of one client and returns a tree of arrays.
      in_axes: for each argument 0 (its leading axis is the client axis), None (all clients share
        it) or `BY_DEVICE` (its leading axis is one of devices; the clients of a device share
        that device's part, and no other device sees it).

    Returns:
      A function of stacked arguments whose results have a leading client axis.
    """

    def mapped(*arguments: Any) -> Any:
        axes = [in_axes] * len(arguments) if isinstance(in_axes, int) else list(in_axes)
        execution = _current.get()
        one_client = fn
        if execution.recompute:
            one_client = jax.checkpoint(fn)
        elif execution.chunk is not None:
            one_client = jax.checkpoint(fn, prevent_cse=False, policy=_are_products)
        chunked = functools.partial(_in_chunks, one_client, _stacked(axes), execution.chunk)
        return _by_device(chunked, axes)(*arguments)

    return mapped


def one_after_the_other(fn: Callable, in_axes: Sequence[Axis]) -> Callable:
    """Maps a function that updates what a client has over the client axis, in place.

    Each device takes its clients one after the other. Unlike with `over_clients`, no second array
    of all clients is filled.

    Args:
      fn: takes the arguments of one client and returns the first of them, updated.
      in_axes: as for `over_clients`; the first is 0.

    Returns:
      A function of stacked arguments that returns the first of them, updated.
    """
    axes = _stacked(in_axes)

    def on_one_device(everyone: Any, *others: Any) -> Any:
        def update(i: jax.Array, everyone: Any) -> Any:
            own = [
                jax.tree.map(lambda a: a[i], part) if axis == 0 else part
                for part, axis in zip((everyone, *others), axes, strict=True)
            ]
            return jax.tree.map(lambda a, new: a.at[i].set(new), everyone, fn(*own))

        size = jax.tree.leaves(everyone)[0].shape[0]
        return jax.lax.fori_loop(0, size, update, everyone)

    return _by_device(on_one_device, in_axes)


def _stacked(axes: Sequence[Axis]) -> list[int | None]:
    """Returns, for each argument as a device has it, 0 if it is stacked by client, and else None."""
    return [0 if axis == 0 else None for axis in axes]


def _by_device(fn: Callable, axes: Sequence[Axis]) -> Callable:
    """Returns what calls `fn` on each device with its own part of the arguments."""

    def on_one_device(*local: Any) -> Any:
        return fn(
            *(
                jax.tree.map(lambda a: a[0], part) if axis == BY_DEVICE else part
                for part, axis in zip(local, axes, strict=True)
            )
        )

    def called(*arguments: Any) -> Any:
        if _current.get().mesh is None:
            return on_one_device(*arguments)
        specs = tuple(PartitionSpec() if axis is None else PartitionSpec(AXIS) for axis in axes)
        return on_devices(on_one_device, specs)(*arguments)

    return called


def on_devices(function: Callable, specs: tuple[PartitionSpec, ...]) -> Callable:
    """Returns what calls a function on each device with its part of the arguments, split by `specs`.

    Results are split by client.
    """
    on_all = jax.shard_map(
        function,
        mesh=_current.get().mesh,
        in_specs=specs,
        out_specs=PartitionSpec(AXIS),
        axis_names={AXIS},
        check_vma=False,
    )

    def called(*arguments: Any) -> Any:
        # Outside of any program shard_map knows no mesh with a second axis.
        return on_all(*arguments) if is_traced(arguments) else jax.jit(on_all)(*arguments)

    return called


def is_traced(tree: Any) -> bool:
    """Tells whether a tree's arrays are of a program that is being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _are_products(primitive: Primitive, *_: Any, **__: Any) -> bool:
    """Returns whether a result is kept for the backward pass of a loop over chunks of clients.

    The loop stores what it keeps for all clients, in slow memory; all that lies between products
    and convolutions is computed again sooner than it is read.
    """
    return primitive.name in ("dot_general", "conv_general_dilated", "custom_vjp_call")


def _in_chunks(fn: Callable, axes: Sequence[int | None], chunk: int | None, *arguments: Any) -> Any:
    stacked = [a for a, axis in zip(arguments, axes, strict=True) if axis == 0]
    size = jax.tree.leaves(stacked)[0].shape[0]
    if size == 1 and target_platform() == "tpu":
        # TPUs compute a convolution sooner than the grouped one that vmap makes of it, which turns
        # and converts its kernel in passes of their own.
        own = [
            jax.tree.map(lambda a: a[0], argument) if axis == 0 else argument
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda a: a[None], fn(*own))
    if chunk is None or chunk >= size:
        return jax.vmap(fn, in_axes=tuple(axes))(*arguments)

    def one_client(mine: Sequence[Any]) -> Any:
        own = iter(mine)
        return fn(
            *(
                next(own) if axis == 0 else shared
                for shared, axis in zip(arguments, axes, strict=True)
            )
        )

    return jax.lax.map(one_client, stacked, batch_size=None if chunk == 1 else chunk)


@jax.custom_batching.custom_vmap
def in_any_run(flag: Any) -> Any:
    """Returns whether a flag, bool [], is set in any of the runs that one program computes jointly.

    As the predicate of `jax.lax.cond` it is the same for all these runs; with a flag of each run,
    both branches would be computed at every step. The branch that is taken when the flag is set
    must also be correct for the runs in which it is not set.
    """
    return flag


@in_any_run.def_vmap
def _(axis_size: int, in_batched: Sequence[bool], flag: Any) -> tuple[Any, bool]:
    return (flag.any(axis=0) if in_batched[0] else flag), False


def everywhere(tree: Any) -> Any:
    """Replicates arrays that are split by client on every device, as messages require."""
    if _current.get().mesh is None:
        return tree
    sharding = _current.get().sharding(by_client=False)
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, sharding), tree)


def share_samples(tree: Any, axis: int) -> Any:
    """Splits the samples of arrays, along `axis`, over the devices that share a client."""
    mesh = _current.get().mesh
    if mesh is None or mesh.shape[BATCH_AXIS] == 1:
        return tree
    spec = PartitionSpec(*((AXIS,) if axis else ()), BATCH_AXIS)
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, sharding), tree)


def client_mesh(num_devices: int, num_parts: int | None = None) -> Mesh | None:
    """Returns a mesh of devices along the client axis and the batch axis.

    Args:
      num_devices: the number of devices, a multiple of the number of processes; the same number
        is taken from each process.
      num_parts: the number of parts of the client axis, a divisor of `num_devices`; by default
        one for each device.

    Returns:
      The mesh; None for a single device.
    """
    if num_devices == 1:
        return None
    available = machine()
    each = num_devices // len(available.processes)
    devices = [
        device
        for process in available.processes
        for device in [d for d in available.devices if d.process_index == process][:each]
    ]
    grid = np.array(devices).reshape(num_parts or num_devices, -1)
    return Mesh(grid, (AXIS, BATCH_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))
