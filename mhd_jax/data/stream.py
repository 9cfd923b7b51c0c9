"""Batches read on the host, ahead of the steps that take them, for data that the device cannot hold.

Which samples a step takes is the function of the step that it is on the device
(`mhd_jax.data.batching.draw_rows`), so that both give the same batches, and a run that was cut goes on
with the very sample that would have followed. Blocks of several steps travel at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from mhd_jax.clients import Clients
from mhd_jax.data.batching import BatchSpec, draw_rows
from mhd_jax.data.dataset import take
from mhd_jax.execution import Execution
from mhd_jax.types import Batch, PyTree

_BLOCK_BYTES = 2**25
_MOST_STEPS = 64
_MOST_THREADS = 16


@struct.dataclass
class Block:
    """Batches of consecutive steps, where the steps run.

    Attributes:
      batches: as stored, every array with an axis of steps in front.
      first: the step of the first one, int32 [].
    """

    batches: Batch
    first: Array

    def stored(self, key: Array, client_ids: Array, step: Array, spec: BatchSpec) -> Batch:
        """The batch of one step, which must be one of the block's."""
        del key, client_ids, spec
        return jax.tree.map(lambda a: a[step - self.first], self.batches)


class Stream:
    """The training data of a run, block by block.

    Args:
      clients: of the run, padded to fill the devices.
      spec: of the batches.
      key: the run's.
      execution: says where the blocks' arrays live.
    """

    def __init__(self, clients: Clients, spec: BatchSpec, key: Array, execution: Execution):
        self._clients, self._spec, self._execution = clients, spec, execution
        owned = np.argsort(clients.owner, kind="stable")
        self._owned = owned[np.count_nonzero(clients.owner < 0) :]
        self._sizes = clients.label_counts().sum(axis=1).astype(np.int32)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._key = jax.random.key_data(key)
        self._own = execution.own_clients(clients.num_clients)
        one_step = self._batches(0, 1)
        self.block_steps = max(1, min(_MOST_STEPS, _BLOCK_BYTES // max(_num_bytes(one_step), 1)))
        self._block: Block | None = None
        self._at = 0  # the block's number
        self._ahead: Iterator[Batch] = iter(())
        self._next = -1  # the number of the block that comes out of it

    def blank(self) -> Block:
        """A block of zeros, for shapes and places."""
        nothing = jax.tree.map(
            lambda a: np.zeros((self.block_steps, *a.shape[1:]), a.dtype), self._batches(0, 1)
        )
        return self._placed(nothing, 0)

    def block_at(self, step: int) -> tuple[Block, int]:
        """The block that holds `step`, and how many of its steps are left from there."""
        number, offset = divmod(step, self.block_steps)
        if self._block is None or self._at != number:
            self._block = self._read(number)
            self._at = number
        return self._block, self.block_steps - offset

    def _read(self, number: int) -> Block:
        if number != self._next:
            self._ahead = ahead(
                lambda i: self._batches(i * self.block_steps, self.block_steps), number
            )
        self._next = number + 1
        return self._placed(next(self._ahead), number * self.block_steps)

    def _batches(self, first: int, count: int) -> Batch:
        """Batches of the clients of this host as stored, arrays [count, ...] on the host."""
        clients, spec = self._clients, self._spec
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            offsets, public_rows = jax.tree.map(
                np.asarray,
                _rows(self._key, first, self._sizes, clients.num_public, spec=spec, count=count),
            )
        own = self._own
        offsets = offsets[:, own]
        if spec.independent_public:
            public_rows = public_rows[:, own]
        # Clients without samples get what the mask hides.
        places = np.minimum(self._starts[own, None] + offsets, len(self._owned) - 1)
        rows = self._owned[places]
        has_samples = np.broadcast_to((self._sizes[own] > 0)[:, None], rows.shape)
        found: Any = (  # still on the host
            take(clients.data.inputs, rows),
            clients.data.labels[rows],
            has_samples.astype(np.float32),
            take(clients.public_inputs, public_rows),
            public_rows,
        )
        return Batch(*found)

    def _placed(self, batches: Batch, first: int) -> Block:
        shared = not self._spec.independent_public
        put = self._execution.put
        return Block(
            Batch(
                inputs=put(batches.inputs, axis=1),
                labels=put(batches.labels, axis=1),
                mask=put(batches.mask, axis=1),
                public_inputs=put(batches.public_inputs, axis=None if shared else 1),
                public_indices=put(batches.public_indices, axis=None if shared else 1),
            ),
            put(np.int32(first), axis=None),
        )


def ahead(load: Callable[[int], Any], first: int, stop: int = 2**31 - 1) -> Iterator[Any]:
    """`load(first)`, `load(first + 1)` … in order, read by other threads before they are asked for."""
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(grain.MapDataset.range(first, stop).map(load).to_iter_dataset(options))


@functools.partial(jax.jit, static_argnames=("num_public", "spec", "count"))
def _rows(
    key: Array, first: Array, sizes: Array, num_public: int, *, spec: BatchSpec, count: int
) -> tuple[Array, Array]:
    """`draw_rows` for each of `count` steps."""
    ids = jnp.arange(len(sizes), dtype=jnp.int32)
    wrapped = jax.random.wrap_key_data(key)
    return jax.vmap(lambda step: draw_rows(wrapped, ids, step, sizes, num_public, spec))(
        first + jnp.arange(count, dtype=jnp.int32)
    )


def _num_bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
