"""Where the clients of a graph stand in a drawing, and in which order in a matrix."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np


def places(graph: nx.Graph, name: str = "") -> np.ndarray:
    """Returns each client's place in the unit square, [K, 2].

    Rings, complete graphs and graphs in several parts stand on a circle, tori on a grid, islands in
    clusters, and all others as Kamada and Kawai (1989) have their edges pull.

    Args:
      graph: an undirected graph over 0, …, K − 1.
      name: the topology's name.
    """
    count = len(graph)
    degrees = {degree for _, degree in graph.degree}
    if name == "torus":
        found = _on_a_grid(count)
    elif name == "islands":
        found = _in_clusters(communities(graph), count)
    elif degrees <= {2} or degrees <= {count - 1} or not nx.is_connected(graph):
        found = _on_a_circle(count)
    else:
        by_client = nx.kamada_kawai_layout(graph)
        found = np.array([by_client[client] for client in range(count)])
    low, span = found.min(axis=0), np.ptp(found, axis=0).max()
    if span < 1e-9:
        return np.full((count, 2), 0.5)
    scaled = (found - low) / span
    return scaled + (1 - np.ptp(scaled, axis=0)) / 2


def communities(graph: nx.Graph) -> list[list[int]]:
    """Returns groups of clients with many edges inside, in the order of their first clients.

    They are those of the greedy search for modularity (Clauset, Newman and Moore, 2004).
    """
    if not graph.number_of_edges():
        return [list(graph)]
    found = nx.community.greedy_modularity_communities(graph, weight="weight")
    return sorted(sorted(group) for group in found)


def _on_a_circle(count: int) -> np.ndarray:
    """Returns places on a circle, clockwise from the top."""
    angles = 2 * np.pi * np.arange(count) / count
    return np.stack([np.sin(angles), -np.cos(angles)], axis=-1)


def _on_a_grid(count: int) -> np.ndarray:
    """Returns places on the grid of a torus, numbered along its longer side as `torus` does."""
    shorter = max(a for a in range(1, math.isqrt(count) + 1) if count % a == 0)
    rows, columns = np.divmod(np.arange(count), count // shorter)
    # Each second row is a little aside: an edge around the torus would lie on the others.
    return np.stack([columns + 0.12 * (rows % 2), rows + 0.12 * (columns % 2)], axis=-1)


def _in_clusters(groups: list[list[int]], count: int) -> np.ndarray:
    """Returns places on small circles, one for each group, whose centres are on a large one."""
    found = np.zeros((count, 2))
    centres = _on_a_circle(len(groups)) * (0.0 if len(groups) == 1 else 1.0)
    radius = 0.6 * math.sin(math.pi / max(len(groups), 2))
    for group, centre in zip(groups, centres, strict=True):
        found[group] = centre + radius * _on_a_circle(len(group)) * (len(group) > 1)
    return found
