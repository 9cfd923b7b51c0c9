"""Batches drawn on the device, inside the compiled step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax import random
from mhd_jax.data.shuffle import shuffled
from mhd_jax.execution import BY_DEVICE, over_clients, share_samples
from mhd_jax.types import Batch

PyTree = Any


@struct.dataclass
class DeviceData:
    """Training data where the step runs.

    Attributes:
      inputs: the private samples of each device's clients, one client after the other, arrays
        [devices, N, ...]; uint8 is scaled at the draw.
      labels: int32 [devices, N].
      starts: the first row of each client's samples on its device, int32 [K].
      sizes: how many samples each client has, int32 [K].
      public_inputs: the public set, arrays [M, ...].
    """

    inputs: PyTree
    labels: Array
    starts: Array
    sizes: Array
    public_inputs: PyTree

    @property
    def num_public(self) -> int:
        """M, the size of the public set."""
        return jax.tree.leaves(self.public_inputs)[0].shape[0]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Sizes of one step's batch.

    Attributes:
      private: B, for each client.
      public: P; 0 draws none.
      independent_public: whether each client draws its own public samples.
    """

    private: int
    public: int = 0
    independent_public: bool = False


def take_rows(tree: PyTree, rows: Array) -> PyTree:
    """Rows of every array of a tree."""
    return jax.tree.map(lambda a: a[rows], tree)


def as_float(inputs: PyTree) -> PyTree:
    """Samples as the models see them: uint8 pixels become floats in [0, 1], the rest stays."""

    def scale(a: Array) -> Array:
        return a.astype(jnp.float32) / 255 if a.dtype == jnp.uint8 else a

    return jax.tree.map(scale, inputs)


def draw_batch(
    data: DeviceData, key: Array, client_ids: Array, step: Array, spec: BatchSpec
) -> Batch:
    """The batch of one step, a function of (key, step, client ids) alone.

    A client reads its samples as an endless stream of shuffled epochs, B a step, so that all
    see equally many samples whatever they hold. The public set is one more stream, common to
    all clients or (`spec.independent_public`) one for each.

    Returns:
      A `Batch`; the mask is 0 for a client without private samples.
    """
    positions = _positions(step, spec.private)
    keys = random.client_keys(key, random.Purpose.PRIVATE_ORDER, client_ids)

    def one_client(
        key: Array, start: Array, size: Array, inputs: PyTree, labels: Array
    ) -> tuple[PyTree, Array, Array]:
        rows = start + shuffled(key, positions, jnp.maximum(size, 1))
        mask = jnp.full(spec.private, size > 0, jnp.float32)
        return take_rows(inputs, rows), labels[rows], mask

    inputs, labels, mask = over_clients(one_client, (0, 0, 0, BY_DEVICE, BY_DEVICE))(
        keys, data.starts, data.sizes, data.inputs, data.labels
    )

    positions = _positions(step, spec.public)
    num_public = jnp.asarray(data.num_public)
    if spec.public == 0:
        public_rows = jnp.zeros(0, jnp.int32)
    elif spec.independent_public:
        keys = random.client_keys(key, random.Purpose.PUBLIC_ORDER, client_ids)
        public_rows = over_clients(shuffled, (0, None, None))(keys, positions, num_public)
    else:
        public_key = random.purpose_key(key, random.Purpose.PUBLIC_ORDER)
        public_rows = shuffled(public_key, positions, num_public)

    inputs, labels, mask = share_samples((inputs, labels, mask), axis=1)
    public_inputs = take_rows(data.public_inputs, public_rows)
    return Batch(
        inputs=as_float(inputs),
        labels=labels,
        mask=mask,
        public_inputs=share_samples(as_float(public_inputs), axis=int(spec.independent_public)),
        public_indices=public_rows,
    )


def _positions(step: Array, size: int) -> Array:
    """Where a stream that gives `size` samples a step stands, uint32 [size]."""
    return step.astype(jnp.uint32) * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)
