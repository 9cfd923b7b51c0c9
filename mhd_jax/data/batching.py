"""Drawing of batches on the device, inside the compiled step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax.core import random
from mhd_jax.core.client_axis import BY_DEVICE, over_clients, share_samples
from mhd_jax.core.trees import take_rows
from mhd_jax.core.types import Batch
from mhd_jax.data.augmentation import Augmentation
from mhd_jax.data.preprocessing import PLAIN, Preparation
from mhd_jax.data.shuffle import shuffled

PyTree = Any


@struct.dataclass
class DeviceData:
    """Training data on the devices.

    Attributes:
      inputs: the private samples of each device's clients, one client after the other, arrays
        [devices, N, ...]; uint8 is scaled when a batch is drawn.
      labels: int32 [devices, N]; of a regression, numbers [devices, N, D].
      starts: the first row of each client's samples on its device, int32 [K].
      sizes: the number of each client's samples, int32 [K].
      has_labels: whether each client learns from its labels, bool [K].
      public_inputs: the public set, arrays [M, ...].
    """

    inputs: PyTree
    labels: Array
    starts: Array
    sizes: Array
    has_labels: Array
    public_inputs: PyTree

    @property
    def num_public(self) -> int:
        """M, the size of the public set."""
        return jax.tree.leaves(self.public_inputs)[0].shape[0]

    def stored(self, key: Array, client_ids: Array, step: Array, spec: BatchSpec) -> Batch:
        """Returns the batch of one step, of samples as stored."""
        offsets, public_rows = draw_rows(key, client_ids, step, self.sizes, self.num_public, spec)

        def one_client(
            start: Array, offsets: Array, inputs: PyTree, labels: Array
        ) -> tuple[PyTree, Array]:
            return take_rows(inputs, start + offsets), labels[start + offsets]

        inputs, labels = over_clients(one_client, (0, 0, BY_DEVICE, BY_DEVICE))(
            self.starts, offsets, self.inputs, self.labels
        )
        mask = self.has_labels.astype(jnp.float32)
        return Batch(
            inputs=inputs,
            labels=labels,
            mask=jnp.broadcast_to(mask[:, None], offsets.shape),
            public_inputs=take_rows(self.public_inputs, public_rows),
            public_indices=public_rows,
        )


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The sizes of one step's batch, and the processing of its samples.

    Attributes:
      private: B, private samples of each client.
      public: P, public samples; 0 draws none.
      independent_public: whether each client draws its own public samples.
      preparation: turns stored samples into model inputs.
      augmentation: the augmentation of private samples; None for none.
      augment_public: whether public samples are augmented too. Public samples that all clients
        share are augmented in the same way for all.
    """

    private: int
    public: int = 0
    independent_public: bool = False
    preparation: Preparation = PLAIN
    augmentation: Augmentation | None = None
    augment_public: bool = False


class Data(Protocol):
    """A source of batches: `DeviceData`, or a block of batches that the host has read."""

    def stored(self, key: Array, client_ids: Array, step: Array, spec: BatchSpec) -> Batch:
        """Returns the batch of one step, of samples as stored."""


def draw_batch(data: Data, key: Array, client_ids: Array, step: Array, spec: BatchSpec) -> Batch:
    """Returns the batch of one step, which depends only on (key, step, client ids).

    A client reads its samples as an endless stream of shuffled epochs, B a step, so that all
    clients see equally many samples, whatever the size of their data. The public set is read as one
    more stream that all clients share or, with `spec.independent_public`, as a stream for each.

    Returns:
      A `Batch`; the mask is 0 for a client without private labels.
    """
    return prepared(data.stored(key, client_ids, step, spec), key, client_ids, step, spec)


def draw_rows(
    key: Array, client_ids: Array, step: Array, sizes: Array, num_public: int, spec: BatchSpec
) -> tuple[Array, Array]:
    """Draws which samples a step's batch holds.

    Args:
      key, client_ids, step, spec: as for `draw_batch`.
      sizes: the number of each client's samples, int32 [K].
      num_public: M.

    Returns:
      Positions among each client's own samples, int32 [K, B], and in the public set, int32 [P],
      or [K, P] for independent batches.
    """
    positions = _positions(step, spec.private)
    keys = random.client_keys(key, random.Purpose.PRIVATE_ORDER, client_ids)
    offsets = over_clients(shuffled, (0, None, 0))(keys, positions, jnp.maximum(sizes, 1))

    positions = _positions(step, spec.public)
    size = jnp.asarray(num_public)
    if spec.public == 0:
        return offsets, jnp.zeros(0, jnp.int32)
    if spec.independent_public:
        keys = random.client_keys(key, random.Purpose.PUBLIC_ORDER, client_ids)
        return offsets, over_clients(shuffled, (0, None, None))(keys, positions, size)
    return offsets, shuffled(random.purpose_key(key, random.Purpose.PUBLIC_ORDER), positions, size)


def prepared(stored: Batch, key: Array, client_ids: Array, step: Array, spec: BatchSpec) -> Batch:
    """Turns a batch of stored samples into model inputs, with augmentation."""
    inputs, labels, mask = share_samples((stored.inputs, stored.labels, stored.mask), axis=1)
    public = share_samples(stored.public_inputs, axis=int(spec.independent_public))
    if spec.augmentation is None:
        inputs = spec.preparation(inputs)
    else:
        keys = random.client_keys(key, random.Purpose.AUGMENTATION, client_ids, step)
        inputs = over_clients(functools.partial(_augmented, spec))(keys, inputs)
    if spec.augmentation is None or not spec.augment_public:
        public = spec.preparation(public)
    elif spec.independent_public:
        keys = random.client_keys(key, random.Purpose.PUBLIC_AUGMENTATION, client_ids, step)
        public = over_clients(functools.partial(_augmented, spec))(keys, public)
    else:
        common = random.purpose_key(key, random.Purpose.PUBLIC_AUGMENTATION, step)
        public = _augmented(spec, common, public)
    return Batch(inputs, labels, mask, public, stored.public_indices)


def _augmented(spec: BatchSpec, key: Array, images: Array) -> Array:
    """Augments each of the images [N, h, w, c] independently."""
    keys = jax.random.split(key, images.shape[0])
    augment: Any = spec.augmentation
    return jax.vmap(lambda key, image: augment(key, image, spec.preparation))(keys, images)


def _positions(step: Array, size: int) -> Array:
    """Returns the stream positions of a step that reads `size` samples, uint32 [size]."""
    return step.astype(jnp.uint32) * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)
