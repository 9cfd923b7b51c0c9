"""Exchange between the devices of neighbours alone, where a graph is sparse.

Consecutive clients share a device: of K clients on n devices, client i is on device i // (K / n). On a
sparse graph the clients of a device have their neighbours on a few devices near it, such as those
before and after it on a ring. What clients send then goes by collective permutes, one for each of these
distances, instead of to all devices by an all-gather.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from mhd_jax.core.client_axis import AXIS, current_execution, on_devices

PyTree = Any


def distances(edges: np.ndarray, num_clients: int, num_devices: int) -> tuple[int, ...] | None:
    """Returns how many devices further on neighbours are, each in 0 … n − 1, with 0 for the device itself.

    Args:
      edges: the edges i ← j of all steps, bool [k, k]; the clients from k on have none.
      num_clients: K ≥ k, a multiple of n.
      num_devices: n.

    Returns:
      The distances, ascending; None if they are all that there are, so that nothing is gained.
    """
    device = np.arange(len(edges)) // (num_clients // num_devices)
    receivers, senders = np.nonzero(edges)
    found = {0, *((device[senders] - device[receivers]) % num_devices).tolist()}
    return tuple(sorted(found)) if len(found) < num_devices else None


def are_chosen() -> bool:
    """Returns whether the program that is being traced exchanges between neighbours' devices alone."""
    return current_execution().near is not None


def rows_of_neighbours(tree: PyTree, positions: Array) -> PyTree:
    """Returns rows [K, T, …] of arrays [K, …] that are split by client.

    Args:
      tree: the arrays.
      positions: for each client the rows that it gets, int32 [K, T]: its own, or neighbours'. In the
        place of any other row is an arbitrary one.
    """
    near, num_devices = _near()
    slots = np.zeros(num_devices, np.int32)
    slots[list(near)] = np.arange(len(near))

    def on_one_device(tree: PyTree, positions: Array) -> PyTree:
        size = len(positions)
        further = (positions // size - jax.lax.axis_index(AXIS)) % num_devices
        rows = jnp.asarray(slots)[further] * size + positions % size
        blocks = [_block(tree, distance, num_devices) for distance in near]
        return jax.tree.map(lambda *a: jnp.concatenate(a)[rows], *blocks)

    return on_devices(on_one_device, (PartitionSpec(AXIS),) * 2)(tree, positions)


def sum_over_neighbours(tree: PyTree, weights: Array) -> PyTree:
    """Returns Σ_j W[i, j] a_j for floating-point arrays a [K, …] that are split by client.

    Args:
      tree: the arrays.
      weights: W [K, K], 0 but for each client and its neighbours.
    """
    near, num_devices = _near()

    def on_one_device(tree: PyTree, weights: Array) -> PyTree:
        size, here = len(weights), jax.lax.axis_index(AXIS)
        total = None
        for distance in near:
            first = (here + distance) % num_devices * size
            own = jax.lax.dynamic_slice_in_dim(weights, first, size, axis=1)
            part = jax.tree.map(
                lambda a, own=own: jnp.einsum(
                    "ij,j...->i...", own.astype(a.dtype), a, precision="highest"
                ),
                _block(tree, distance, num_devices),
            )
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total

    return on_devices(on_one_device, (PartitionSpec(AXIS),) * 2)(tree, weights)


def seen_by_neighbours(values: Array) -> Array:
    """Returns values [K] that are split by client as each client sees them, [K, K].

    Row i has the values of client i and of its neighbours; those of others are either theirs or 0.
    """
    near, num_devices = _near()

    def on_one_device(values: Array) -> Array:
        size, here = len(values), jax.lax.axis_index(AXIS)
        seen = jnp.zeros(size * num_devices, values.dtype)
        for distance in near:
            first = (here + distance) % num_devices * size
            block = _block(values, distance, num_devices)
            seen = jax.lax.dynamic_update_slice_in_dim(seen, block, first, axis=0)
        return jnp.broadcast_to(seen, (size, len(seen)))

    return on_devices(on_one_device, (PartitionSpec(AXIS),))(values)


def _near() -> tuple[tuple[int, ...], int]:
    execution = current_execution()
    assert execution.near is not None
    return execution.near, execution.num_shards


def _block(tree: PyTree, distance: int, num_devices: int) -> PyTree:
    """Returns the rows of the device that is `distance` further on."""
    if distance == 0:
        return tree
    pairs = [((device + distance) % num_devices, device) for device in range(num_devices)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, AXIS, pairs), tree)
