"""Streaming of training data that the device cannot hold.

The host reads batches ahead of the steps and sends them to the device in blocks of several steps.
A step's samples are drawn by the same function as on the device
(`mhd_jax.data.batching.draw_rows`), so that both ways give the same batches, and an interrupted run
resumes with the next sample.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from mhd_jax.clients import Clients
from mhd_jax.core import modes
from mhd_jax.core.client_axis import Execution
from mhd_jax.core.types import Batch, PyTree
from mhd_jax.data.batching import BatchSpec, draw_rows
from mhd_jax.engine.placing import held, place, rows_of, shapes

_BLOCK_BYTES = 2**25
_MOST_STEPS = 64
_MOST_THREADS = 16


@struct.dataclass
class Block:
    """Batches of consecutive steps, on the devices.

    Attributes:
      batches: batches of stored samples; every array has a leading axis of steps.
      first: the step of the first batch, int32 [].
    """

    batches: Batch
    first: Array

    def stored(self, key: Array, client_ids: Array, step: Array, spec: BatchSpec) -> Batch:
        """Returns the batch of stored samples of `step`, which must lie in the block."""
        del key, client_ids, spec
        here = step - self.first
        return jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, here, keepdims=False), self.batches
        )


class Stream:
    """Reads the training data of a run block by block.

    Args:
      clients: the run's clients, padded to fill the devices.
      spec: the specification of the batches.
      key: the run's base key.
      execution: decides on which devices the blocks' arrays are placed.
    """

    def __init__(self, clients: Clients, spec: BatchSpec, key: Array, execution: Execution):
        self._clients, self._spec, self._execution = clients, spec, execution
        owned = np.argsort(clients.owner, kind="stable")
        self._owned = owned[np.count_nonzero(clients.owner < 0) :]
        self._sizes = clients.label_counts().sum(axis=1).astype(np.int32)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._key = jax.random.key_data(key)
        public = spec.public * (clients.num_clients if spec.independent_public else 1)
        samples_a_step = clients.num_clients * spec.private + public
        bytes_a_step = samples_a_step * _bytes_of_one(clients.data.inputs)
        self.block_steps = max(1, min(_MOST_STEPS, _BLOCK_BYTES // bytes_a_step))
        self._block: Block | None = None
        self._at = 0  # the block's number
        self._ahead: Iterator[Block] = iter(())
        self._next = -1  # the number of the block that `_ahead` yields next

    def shapes(self) -> Block:
        """Returns shapes, types and shardings of a block."""
        return shapes(self._unplaced(0), self._execution)

    def block_at(self, step: int) -> tuple[Block, int]:
        """Returns the block that contains `step`, and the number of its steps from there on."""
        number, offset = divmod(step, self.block_steps)
        if self._block is None or self._at != number:
            if self._next != number:
                self._ahead = ahead(self._read, number)
            self._block = next(self._ahead)
            self._at, self._next = number, number + 1
        return self._block, self.block_steps - offset

    @modes.standard()  # JAX's modes are set by thread, and this is a reading thread
    def _read(self, number: int) -> Block:
        return place(self._unplaced(number * self.block_steps), self._execution)

    def _unplaced(self, first: int) -> Block:
        """Returns the block from step `first` on, whose samples are yet to be read and placed."""
        clients, spec = self._clients, self._spec
        with _on_the_cpu():
            offsets, public_rows = jax.tree.map(
                np.asarray,
                _rows(
                    self._key,
                    first,
                    self._sizes,
                    clients.num_public,
                    spec=spec,
                    count=self.block_steps,
                ),
            )
        # Clients without samples get other samples, which the mask hides.
        places = np.minimum(self._starts[:, None] + offsets, len(self._owned) - 1)
        rows = self._owned[places]  # [steps, K, B]
        public_axis = 1 if spec.independent_public else None
        has_labels = clients.learns_labels & (self._sizes > 0)
        mask = np.broadcast_to(has_labels[:, None], rows.shape).astype(np.float32)

        batch: Any = {  # not arrays yet
            "inputs": rows_of(clients.data.inputs, rows, 1),
            "labels": rows_of(clients.data.targets, rows, 1),
            "mask": held(mask, 1),
            "public_inputs": rows_of(clients.public_inputs, public_rows, public_axis),
            "public_indices": held(public_rows, public_axis),
        }
        first_step: Any = held(np.asarray(first, np.int32), None)
        return Block(Batch(**batch), first_step)


def ahead(load: Callable[[int], Any], first: int, stop: int = 2**31 - 1) -> Iterator[Any]:
    """Yields `load(first)`, `load(first + 1)` … in order; other threads load them ahead."""
    import grain  # slow to import, and only streams need it

    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    return iter(grain.MapDataset.range(first, stop).map(load).to_iter_dataset(options))


def _on_the_cpu() -> contextlib.AbstractContextManager[Any]:
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was configured without its CPU backend
        return contextlib.nullcontext()


@functools.partial(jax.jit, static_argnames=("num_public", "spec", "count"))
def _rows(
    key: Array, first: Array, sizes: Array, num_public: int, *, spec: BatchSpec, count: int
) -> tuple[Array, Array]:
    """Calls `draw_rows` for `count` steps from step `first` on."""
    ids = jnp.arange(len(sizes), dtype=jnp.int32)
    wrapped = jax.random.wrap_key_data(key)
    return jax.vmap(lambda step: draw_rows(wrapped, ids, step, sizes, num_public, spec))(
        first + jnp.arange(count, dtype=jnp.int32)
    )


def _bytes_of_one(inputs: PyTree) -> int:
    """Returns the bytes of one sample as stored."""
    return sum(int(np.prod(a.shape[1:])) * a.dtype.itemsize for a in jax.tree.leaves(inputs))
