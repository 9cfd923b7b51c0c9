"""Shuffled order with random access: the sample at a position of an epoch, without a table.

A stored permutation would have to be drawn anew for every epoch of every client and kept in the
state. A keyed bijection of 0 … n − 1 gives each position's sample directly, in a few integer
operations, so that a batch depends only on the step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

_ROUNDS = 8


@jax.jit
def shuffled(key: Array, position: Array, size: Array) -> Array:
    """Returns the sample at `position` of an endless stream of shuffled epochs.

    Every `size` positions from a multiple of `size` on are one epoch, which visits each sample
    once, in its own order. The order is a generalised Feistel network on an a × b rectangle with
    a·b ≥ n, applied until the result is in 0 … n − 1 (Black and Rogaway, CT-RSA 2002).

    Args:
      key: the stream's key.
      position: uint32 array of any shape.
      size: n, integer [] of at least 1.

    Returns:
      Samples in 0 … n − 1, int32 in the shape of `position`.
    """
    size = jnp.asarray(size).astype(jnp.uint32)
    position = position.astype(jnp.uint32)
    epoch, offset = position // size, position % size
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)
    rows = _ceil_sqrt(size)
    columns = (size + rows - 1) // rows

    def permute(value: Array) -> Array:
        row, column = value // columns, value % columns
        for i in range(_ROUNDS):
            salt = round_keys[i] + epoch * jnp.uint32(0x9E3779B9)
            if i % 2:
                column = (column + _mix(row ^ salt) % columns) % columns
            else:
                row = (row + _mix(column ^ salt) % rows) % rows
        return row * columns + column

    def walk(value: Array) -> Array:
        return jnp.where(value >= size, permute(value), value)

    inside = jax.lax.while_loop(lambda value: (value >= size).any(), walk, permute(offset))
    return inside.astype(jnp.int32)


def _ceil_sqrt(size: Array) -> Array:
    """Returns ⌈√n⌉ exactly: backends round square roots differently, but must shuffle alike."""
    root = jnp.sqrt(size.astype(jnp.float32)).astype(jnp.uint32)
    root += (root * root < size).astype(jnp.uint32)
    return root - ((root - 1) * (root - 1) >= size).astype(jnp.uint32)


def _mix(value: Array) -> Array:
    """Returns a 32-bit integer hash (the finaliser of MurmurHash3, in the public domain)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)
