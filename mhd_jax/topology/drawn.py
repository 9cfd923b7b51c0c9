"""A graph as a small SVG image, for notebooks."""

from __future__ import annotations

import networkx as nx
import numpy as np

from mhd_jax.topology import layout

_SIDE = 220  # pixels
_EDGE = 14  # pixels between a node's centre and the border
_MOST = 64  # clients up to which a graph is drawn


def svg(adjacency: np.ndarray, name: str = "") -> str | None:
    """Returns a drawing of a graph [K, K] in which A[i, j] > 0 where i may learn from j.

    An edge in one direction has an arrow to who learns. Returns None for graphs of more than 64
    clients, of which one would see nothing.
    """
    count = len(adjacency)
    if count > _MOST:
        return None
    graph = nx.from_numpy_array(adjacency.T > 0, create_using=nx.DiGraph)
    places = _EDGE + layout.places(graph.to_undirected(), name) * (_SIDE - 2 * _EDGE)
    parts = []
    for sender, receiver in graph.edges:
        both = graph.has_edge(receiver, sender)
        if both and receiver < sender:
            continue
        (x1, y1), (x2, y2) = places[sender], places[receiver]
        marker = "" if both else ' marker-end="url(#to)"'
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#888"{marker}/>'
        )
    radius = 9 if count <= 20 else 5
    for node, (x, y) in enumerate(places):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="#4477aa"/>')
        if count <= 20:
            parts.append(
                f'<text x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle" font-size="9" '
                f'fill="white">{node}</text>'
            )
    arrow = (
        '<defs><marker id="to" viewBox="0 0 8 8" refX="16" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#888"/></marker></defs>'
    )
    title = f"<title>graph of {count} clients with {graph.number_of_edges()} directed edges</title>"
    return (
        f'<svg role="img" width="{_SIDE}" height="{_SIDE}" '
        f'xmlns="http://www.w3.org/2000/svg">{title}{arrow}{"".join(parts)}</svg>'
    )
