"""Mixing weights of a graph, and averages by them: W [K, K], row-stochastic.

`W[i, j]` is the weight of client j in client i's average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core import modes
from mhd_jax.core.client_axis import everywhere, first_of, neighbour_slots, over_clients
from mhd_jax.core.types import PyTree

_GATHERING = 16  # as slow, by the neighbour, as so many clients in a product of matrices


@modes.standard()
def uniform_weights(adjacency: jax.Array) -> jax.Array:
    """The mixing matrix W [K, K] that gives neighbours and oneself equal weight, 1 / (degree + 1)."""
    linked = links(adjacency) + jnp.eye(len(adjacency))
    return linked / linked.sum(axis=1, keepdims=True)


@modes.standard()
def metropolis_hastings(adjacency: jax.Array) -> jax.Array:
    """The mixing matrix W [K, K] with W[i, j] = 1 / (1 + max(degree i, degree j)) for neighbours.

    Symmetric and doubly stochastic where the graph is undirected (Xiao and Boyd, 2004).
    """
    linked = links(adjacency)
    degree = linked.sum(axis=1)
    weights = linked / (1 + jnp.maximum(degree[:, None], degree[None, :]))
    return weights + jnp.diag(1 - weights.sum(axis=1))


@modes.standard()
def push_sum_weights(adjacency: jax.Array) -> jax.Array:
    """The column-stochastic P [K, K] by which each client shares equally with itself and its hearers."""
    linked = links(adjacency) + jnp.eye(len(adjacency))
    return linked / linked.sum(axis=0, keepdims=True)


MIXINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "uniform": uniform_weights,
    "metropolis_hastings": metropolis_hastings,
}


def links(adjacency: jax.Array) -> jax.Array:
    """1 where there is an edge, whatever its weight, float32 [K, K]."""
    return (jnp.asarray(adjacency) > 0).astype(jnp.float32)


def spectral_gap(mixing: Any) -> float:
    """`1 − |λ₂|` of a mixing matrix [K, K]: how much of a disagreement one round of gossip takes away."""
    matrix = np.asarray(mixing, np.float64)
    eigenvalues = np.linalg.eigvalsh if (matrix == matrix.T).all() else np.linalg.eigvals
    sizes = np.sort(np.abs(eigenvalues(matrix)))
    return float(1 - sizes[-2]) if len(sizes) > 1 else 1.0


def average(tree: PyTree, weights: Array) -> PyTree:
    """Σ_j W[i, j] a_j of arrays [K, …] by a mixing matrix [K, K]; of integers, rounded."""

    def mixed(a: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.inexact):  # what a model counts
            return jnp.round(mixed(a.astype(jnp.float32))).astype(a.dtype)
        # Accelerators would round parameters to fewer bits at every average.
        return jnp.einsum(
            "ij,j...->i...", weights.astype(a.dtype), everywhere(a), precision="highest"
        )

    return jax.tree.map(mixed, tree)


def average_neighbours(tree: PyTree, weights: Array) -> PyTree:
    """`average` by a mixing matrix in which only neighbours in the graph, and oneself, have weight."""
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
    """A mixing matrix [K, K] of those who are there [K]: each shares all its weight among them.

    Who is away, or has no weight left, keeps its own.
    """
    left = jnp.where(there[:, None] & there[None, :], weights, 0)
    total = left.sum(axis=1, keepdims=True)
    alone = jnp.eye(len(there), dtype=weights.dtype)
    return jnp.where(total > 0, left / jnp.where(total > 0, total, 1), alone)


def along_edges(adjacency: Array) -> Array:
    """One message along every edge of a graph: i ← j at [i, j], int32 [K, K]."""
    return (adjacency > 0).astype(jnp.int32)
