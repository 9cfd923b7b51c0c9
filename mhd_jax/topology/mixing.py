"""Mixing matrices W [K, K] of a graph, which are row-stochastic, and weighted averages.

`W[i, j]` is the weight of client j in client i's average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core import modes, neighbour_devices
from mhd_jax.core.client_axis import everywhere, first_of, neighbour_slots, over_clients
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import PyTree

_GATHERING = 16  # gathering one neighbour is as slow as 16 clients of a matrix product


@modes.standard()
def uniform_weights(adjacency: jax.Array) -> jax.Array:
    """Returns W [K, K] with equal weights 1 / (degree + 1) for the client and its neighbours."""
    linked = links(adjacency) + jnp.eye(len(adjacency))
    return linked / linked.sum(axis=1, keepdims=True)


@modes.standard()
def metropolis_hastings(adjacency: jax.Array) -> jax.Array:
    """Returns W [K, K] with W[i, j] = 1 / (1 + max(degree i, degree j)) for neighbours.

    W is symmetric and doubly stochastic if the graph is undirected (Xiao and Boyd, 2004).
    """
    linked = links(adjacency)
    degree = linked.sum(axis=1)
    weights = linked / (1 + jnp.maximum(degree[:, None], degree[None, :]))
    return weights + jnp.diag(1 - weights.sum(axis=1))


@modes.standard()
def push_sum_weights(adjacency: jax.Array) -> jax.Array:
    """Returns the column-stochastic P [K, K] of push-sum on a directed graph.

    Each client sends equal shares to itself and to all clients that receive from it.
    """
    linked = links(adjacency) + jnp.eye(len(adjacency))
    return linked / linked.sum(axis=0, keepdims=True)


MIXINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "uniform": uniform_weights,
    "metropolis_hastings": metropolis_hastings,
}


def links(adjacency: jax.Array) -> jax.Array:
    """Returns 1 for each edge, whatever its weight, and 0 elsewhere, float32 [K, K]."""
    _require_matrix(adjacency)
    return (jnp.asarray(adjacency) > 0).astype(jnp.float32)


def _require_matrix(given: Any) -> None:
    if hasattr(given, "adjacency"):
        raise ConfigError(
            "mixing matrices are of a graph's matrix at one step; give topology.at(0), not the topology."
        )


def spectral_gap(mixing: Any) -> float:
    """Returns the spectral gap `1 − |λ₂|` of a mixing matrix [K, K].

    The larger the gap, the faster gossip brings the clients to consensus.
    """
    _require_matrix(mixing)
    matrix = np.asarray(mixing, np.float64)
    eigenvalues = np.linalg.eigvalsh if (matrix == matrix.T).all() else np.linalg.eigvals
    sizes = np.sort(np.abs(eigenvalues(matrix)))
    return float(1 - sizes[-2]) if len(sizes) > 1 else 1.0


def average(tree: PyTree, weights: Array) -> PyTree:
    """Returns Σ_j W[i, j] a_j for arrays a [K, …] and W [K, K], or [1, K]; integers are rounded."""

    def mixed(tree: PyTree, weights: Array) -> PyTree:
        if len(weights) > 1:  # of a single average, devices add up what each has
            tree = everywhere(tree)
        # By default, accelerators would round the parameters to fewer bits at every average.
        return jax.tree.map(
            lambda a: jnp.einsum("ij,j...->i...", weights.astype(a.dtype), a, precision="highest"),
            tree,
        )

    return _rounded(mixed, tree, weights)


def average_for_all(tree: PyTree, weights: Array) -> PyTree:
    """Returns the same average Σ_j w[j] a_j for each client, [K, …], for arrays a [K, …] and w [K]."""
    mean = average(tree, weights[None])
    return jax.tree.map(lambda one, own: jnp.broadcast_to(one, own.shape), mean, tree)


def _rounded(mixed: Callable[[PyTree, Array], PyTree], tree: PyTree, weights: Array) -> PyTree:
    """Returns averages of a tree, whose integers, such as counters among statistics, are rounded."""

    def is_whole(a: Array) -> bool:
        return not jnp.issubdtype(a.dtype, jnp.inexact)

    found = mixed(
        jax.tree.map(lambda a: a.astype(jnp.float32) if is_whole(a) else a, tree), weights
    )
    return jax.tree.map(
        lambda a, mean: jnp.round(mean).astype(a.dtype) if is_whole(a) else mean, tree, found
    )


def average_neighbours(tree: PyTree, weights: Array) -> PyTree:
    """Returns the same as `average`, faster, if W is 0 except for the client and its neighbours."""
    if neighbour_devices.are_chosen():
        return _rounded(neighbour_devices.sum_over_neighbours, tree, weights)
    num_clients = len(weights)
    slots = min(neighbour_slots(num_clients) + 1, num_clients)
    if slots * _GATHERING > num_clients:
        return average(tree, weights)
    positions, _ = first_of(weights != 0, slots)
    shares = jnp.take_along_axis(weights, positions, axis=1)

    def of_one(positions: Array, shares: Array, everyone: PyTree) -> PyTree:
        def add(t: Array, sums: PyTree) -> PyTree:
            return jax.tree.map(
                lambda total, a: total + shares[t].astype(a.dtype) * a[positions[t]], sums, everyone
            )

        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), everyone)
        return jax.lax.fori_loop(0, slots, add, zeros)

    return over_clients(of_one, in_axes=(0, 0, None))(positions, shares, everywhere(tree))


def among(weights: Array, there: Array) -> Array:
    """Restricts a mixing matrix [K, K] to present clients, bool [K], and renormalises its rows.

    A client that is absent, or has no weight left, gets weight 1 for itself.
    """
    left = jnp.where(there[:, None] & there[None, :], weights, 0)
    total = left.sum(axis=1, keepdims=True)
    alone = jnp.eye(len(there), dtype=weights.dtype)
    return jnp.where(total > 0, left / jnp.where(total > 0, total, 1), alone)


def along_edges(adjacency: Array) -> Array:
    """One message along every edge of a graph: i ← j at [i, j], int32 [K, K]."""
    return (adjacency > 0).astype(jnp.int32)
