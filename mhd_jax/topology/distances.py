"""Distances in a graph from clients to the classes that others hold, and accuracies by distance."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load when they are used

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import PyTree
from mhd_jax.topology.graphs import Topology
from mhd_jax.topology.schedules import Schedule, cycle


def edges_of(topology: Topology, steps: int) -> np.ndarray:
    """Returns the edges that exist in any of the first `steps` steps, bool [K, K]."""
    if topology.schedule is cycle:
        return np.any(np.asarray(topology.adjacency)[:steps] > 0, axis=0)
    return np.asarray(_ever(topology.adjacency, steps, schedule=topology.schedule))


def require_ways_back(topology: Topology, why: str, steps: int) -> None:
    """Raises `ConfigError` unless push-sum has a directed path back for every edge of a run.

    The union of the graphs of all steps is checked: each of its weakly connected components must
    be strongly connected. For a static graph this is the condition of push-sum. For a
    time-varying graph it is necessary only: the theory demands it of the union of any B steps in
    a row, for some B, and here B is the length of the run. Until a path back exists, the push-sum
    weight of a client shrinks at every step (by half if it sends to one client), and its
    optimizer steps grow by the same factor.

    Args:
      topology: the topology of the run.
      why: the name of the algorithm.
      steps: the number of steps of the run.
    """
    edges = edges_of(topology, steps)
    _, part = scipy.sparse.csgraph.connected_components(
        scipy.sparse.csr_array(edges), connection="strong"
    )
    one_way = np.argwhere(edges & (part[:, None] != part))
    if len(one_way):
        i, j = one_way[0]
        raise ConfigError(
            f"{why} with push_sum needs a way back for what goes over an edge, but client {i} of "
            f"{topology.name} hears client {j}, whom nothing reaches from {i}; choose a strongly "
            "connected graph, or an algorithm that does not average, like mhd."
        )


@functools.partial(jax.jit, static_argnames="schedule")
def _ever(adjacency: PyTree, steps: jax.Array, *, schedule: Schedule) -> jax.Array:
    def add(step: jax.Array, found: jax.Array) -> jax.Array:
        return found | (schedule(adjacency, step) > 0)

    graph = jax.eval_shape(schedule, adjacency, jnp.int32(0))
    return jax.lax.fori_loop(0, steps, add, jnp.zeros(graph.shape, bool))


def holds(counts: np.ndarray) -> np.ndarray:
    """Returns whether each client holds each class, bool [K, C], of sample counts [K, C].

    A client holds a class if it has at least as many labelled samples of it as the average client.
    """
    return (counts > 0) & (counts >= counts.mean(axis=0))


def to_classes(edges: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the number of hops from each client to the nearest client that holds each class.

    Args:
      edges: whether i may learn from j at [i, j], bool [K, K].
      counts: the number of labelled private samples by client and class, int [K, C].

    Returns:
      Numbers of edges, int [K, C]; −1 if no path leads to the class.
    """
    held = holds(counts)
    travels = scipy.sparse.csr_array(edges.T.astype(np.int8))  # knowledge flows from j to i
    hops = np.full(counts.shape, -1)
    for label in np.flatnonzero(held.any(axis=0)):
        far = scipy.sparse.csgraph.dijkstra(
            travels, unweighted=True, indices=np.flatnonzero(held[:, label]), min_only=True
        )
        hops[:, label] = np.where(np.isfinite(far), far, -1)
    return hops


def accuracies(per_class: np.ndarray, hops: np.ndarray, heads: list[str]) -> list[dict[str, Any]]:
    """Returns mean accuracies by distance, over pairs of a client and a class at that distance.

    Args:
      per_class: accuracies [K, H, C]; NaN for a class without test samples.
      hops: distances from `to_classes`, int [K, C].
      heads: names of the H heads.

    Returns:
      For each distance, ascending, "hops", the number of "pairs" and the mean "accuracy" by head;
      "hops" is None for classes that no path leads to, which come last.
    """
    known = ~np.isnan(per_class[:, 0])
    found = []
    for distance in sorted(set(hops[known]), key=lambda far: (far < 0, far)):
        pairs = known & (hops == distance)
        of_pairs = per_class.transpose(0, 2, 1)[pairs]  # [pairs, H]
        found.append(
            {
                "hops": None if distance < 0 else int(distance),
                "pairs": int(pairs.sum()),
                "accuracy": dict(zip(heads, of_pairs.mean(axis=0).tolist(), strict=True)),
            }
        )
    return found
