"""The graph of a run as it worked: who holds and knows what, and who learned from whom.

A client is a disc, whose fill is its accuracy and whose ring is the mix of its labels. A curve goes
from a teacher to who learned from it, and is the wider the more was learned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
from markupsafe import Markup

from mhd_jax.runs import levels, svg
from mhd_jax.runs.palette import class_colours
from mhd_jax.topology import layout
from mhd_jax.topology.graphs import linked
from mhd_jax.training.metrics import declared_head

MOST_DRAWN = 40  # clients up to which the graph is drawn; of more, a matrix is
_SIDE = 560  # pixels, of the square in which the graph stands
_MARGIN = 48
_WIDEST = 7.0  # pixels, of the curve along which most was learned
_MANY = 16  # curves beyond which all are thinner
_FAINTEST = 0.05  # shares of the widest below which no curve is drawn
_MOST_TOLD = 3  # classes that a client's description names

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Graph:
    """What is drawn of a run.

    Attributes:
      links: bool [K, K], whether i may learn from j.
      learned: [K, K], how much i learned from j, relative to the most; None if unknown.
      measure: what `learned` counts, in words.
      accuracy: [K], β_sh of the head that judges; NaN if unknown.
      head: this head.
      labels: [K, C], private samples.
      class_names: C names.
      badges: words about each client, such as "adversary".
      name: the topology's name.
      over_time: what `learned` was until each evaluation, [T, K, K]; None if it is not kept.
    """

    links: np.ndarray
    learned: np.ndarray | None
    measure: str
    accuracy: np.ndarray
    head: str
    labels: np.ndarray
    class_names: Sequence[str]
    badges: Sequence[Sequence[str]]
    name: str
    over_time: np.ndarray | None = None

    @property
    def drawn(self) -> np.ndarray:
        """Whether i learned enough from j at any time for a curve, bool [K, K]."""
        if self.learned is None:
            return np.zeros_like(self.links)
        every = self.learned[None] if self.over_time is None else self.over_time
        return (self.learned >= _FAINTEST) | (every >= _FAINTEST).any(axis=0)


def of_run(summary: Record, history: Sequence[Record] = ()) -> Graph | None:
    """Returns the graph of a run; None if nobody may learn from anybody, or it is not recorded."""
    count, data = summary["num_clients"], summary.get("data")
    if data is None or len(summary["per_client"]) < count:
        return None
    learned, measure = _learned(summary, count)
    links = linked(summary["topology"].get("links", ()), count)
    if learned is not None and not links.any():
        links = learned > 0
    if not links.any():
        return None
    head = declared_head("beta_sh", list(summary["beta_sh"]))
    return Graph(
        links,
        None if learned is None or not learned.any() else _relative(learned),
        measure,
        np.array([client["beta_sh"][head] for client in summary["per_client"]], float),
        head,
        np.array(data["private_samples"]),
        data["class_names"],
        [_badges(summary, client) for client in range(count)],
        summary["topology"]["name"],
        _over_time(summary, history),
    )


def _over_time(summary: Record, history: Sequence[Record]) -> np.ndarray | None:
    """Returns how much was learned until each evaluation, relative to the most at that time."""
    found = [record["followed"] for record in history if "followed" in record]
    if "diagnostics" not in summary or len(found) < len(history) or not found:
        return None
    return np.stack([_relative(np.array(each, float)) for each in found])


def _relative(learned: np.ndarray) -> np.ndarray:
    """Returns what was learned from others, [K, K], relative to the most."""
    others = np.where(np.eye(len(learned), dtype=bool), 0, learned)
    return others / max(others.max(), 1e-9)


def _learned(summary: Record, count: int) -> tuple[np.ndarray | None, str]:
    """Returns how much each client learned from each other one [K, K], and what that counts."""
    if "diagnostics" in summary:
        found = np.mean(np.array(summary["diagnostics"]["followed"], float), axis=0)
        measure = (
            "share of public samples on which a target was nearest to the teacher's prediction"
        )
    else:
        counts = [np.array(c, float) for c in summary["communication"]["by_edge"].values()]
        square = [each for each in counts if each.shape == (count, count)]
        if not square:
            return None, ""
        found, measure = np.sum(square, axis=0), "messages"
    return np.where(np.eye(count, dtype=bool), 0, np.nan_to_num(found)), measure


def _badges(summary: Record, client: int) -> list[str]:
    """Returns words about a client that is not as the others."""
    settings = summary["settings"]
    of_clients, faults = settings["clients"], settings.get("faults") or {}
    found = []
    if str(client) in of_clients.get("adversaries", {}):
        found.append("adversary")
    if client in dict(faults.get("joins", ())):
        found.append("late")
    if client in dict(faults.get("leaves", ())):
        found.append("left")
    if str(client) in summary.get("faults", {}).get("quarantined", {}):
        found.append("quarantined")
    if of_clients.get("objectives", ["supervised"] * (client + 1))[client] != "supervised":
        found.append("unlabelled")
    return found


def drawing(graph: Graph) -> Markup:
    """Returns the graph as a drawing; of more than 40 clients, as a matrix."""
    return _matrix(graph) if len(graph.links) > MOST_DRAWN else _discs(graph)


def _discs(graph: Graph) -> Markup:
    undirected = _undirected(graph.links)
    places = layout.places(undirected, graph.name)
    places = _MARGIN + places * (_SIDE - 2 * _MARGIN)
    count = len(places)
    apart = min(
        (math.dist(a, b) for i, a in enumerate(places) for b in places[:i]), default=_SIDE / 2
    )
    radius = float(np.clip(0.32 * apart, 5, 22))
    path = " ".join(
        f"M{places[i][0]:.0f} {places[i][1]:.0f}L{places[j][0]:.0f} {places[j][1]:.0f}"
        for i, j in undirected.edges
    )
    edges = svg.element("path", d=path, stroke="#ccc", fill="none", class_="edges")
    parts, widest = [edges], 0.0
    if graph.learned is not None:
        at_end = int((graph.learned >= _FAINTEST).sum())
        widest = _WIDEST * min(1.0, math.sqrt(_MANY / max(at_end, 1)))
        parts += [
            _curve((places[j], places[i]), (j, i), graph, widest)
            for i, j in np.argwhere(graph.drawn).tolist()
        ]
    parts += [_disc(graph, client, places[client], radius) for client in range(count)]
    scale = {"data_widest": widest, "data_faintest": _FAINTEST}
    return svg.drawing(_SIDE, _SIDE, _title(graph), *parts, class_="graph", **scale)


def _curve(
    places: tuple[np.ndarray, np.ndarray], pair: tuple[int, int], graph: Graph, widest: float
) -> Markup:
    """Draws what one client taught another: a curve that bends to the right on its way."""
    assert graph.learned is not None
    (start, end), (teacher, learner) = places, pair
    share = float(graph.learned[learner, teacher])
    shown = share if share >= _FAINTEST else 0.0
    middle, across = (start + end) / 2, np.array([start[1] - end[1], end[0] - start[0]])
    bend = middle + 0.12 * across
    (x1, y1), (x2, y2), (x, y) = start, end, bend
    return svg.element(
        "path",
        svg.element(
            "title", f"client {learner} learned from client {teacher}: {share:.2f} of most"
        ),
        d=f"M{x1:.1f} {y1:.1f}Q{x:.1f} {y:.1f} {x2:.1f} {y2:.1f}",
        fill="none",
        stroke="#D55E00",
        stroke_opacity=0.35 + 0.55 * shown,
        stroke_width=widest * shown,
        class_="learned",
        data_from=teacher,
        data_to=learner,
    )


def _disc(graph: Graph, client: int, place: np.ndarray, radius: float) -> Markup:
    """Draws a client: its number on its accuracy, its labels around, and badges below."""
    x, y = map(float, place)
    fill = levels.colour(graph.accuracy[client])
    text = {"text_anchor": "middle", "x": x}
    badges = ", ".join(graph.badges[client])
    parts = [
        svg.element("title", describe(graph, client)),
        svg.element("circle", cx=x, cy=y, r=radius + 1, fill="#fff"),
        *_ring(graph.labels[client], (x, y), radius),
        svg.element(
            "circle", cx=x, cy=y, r=0.72 * radius, fill=fill, stroke="#fff", class_="knows"
        ),
    ]
    if radius >= 8:
        size = f"{0.62 * radius:.0f}px"
        label = {**text, "y": y + 0.22 * radius, "fill": levels.ink(fill), "font_size": size}
        parts.append(svg.element("text", client, **label, class_="number"))
    if badges:
        parts.append(svg.element("text", badges, **text, y=y + radius + 14, class_="badge"))
    return svg.element(
        "g", *parts, class_="client", tabindex=0, role="img", data_client=client,
        aria_label=describe(graph, client),
    )  # fmt: skip


def _ring(samples: np.ndarray, centre: tuple[float, float], radius: float) -> list[Markup]:
    """Draws the mix of a client's labels as arcs around it, from the top clockwise."""
    total, colours = samples.sum(), class_colours(len(samples))
    if not total:
        return [svg.element("circle", cx=centre[0], cy=centre[1], r=radius, fill="#bbb")]
    width = 0.28 * radius
    around = 2 * math.pi * (radius - width / 2)
    arcs, start = [], 0.0
    for colour, share in zip(colours, samples / total, strict=True):
        if share > 0:
            arc = svg.element(
                "circle",
                cx=centre[0],
                cy=centre[1],
                r=radius - width / 2,
                fill="none",
                stroke=colour,
                stroke_width=width,
                stroke_dasharray=f"{share * around:.2f} {around:.2f}",
                stroke_dashoffset=float(-start * around),
                transform=f"rotate(-90 {centre[0]:.1f} {centre[1]:.1f})",
            )
            arcs.append(arc)
            start += float(share)
    return arcs


def _matrix(graph: Graph) -> Markup:
    """Draws who learned from whom as a matrix, with clients that learn from each other together."""
    weights = graph.links.astype(float) if graph.learned is None else graph.learned
    drawn = graph.links if graph.learned is None else graph.drawn
    both = nx.from_numpy_array(np.maximum(weights, weights.T))
    order = [client for group in layout.communities(both) for client in group]
    count, left = len(order), 40
    cell = (_SIDE - left) / count
    parts = [
        svg.element("text", "→ from client, ↓ to client", x=left, y=14),
        svg.element(
            "rect",
            x=left,
            y=left,
            width=_SIDE - left,
            height=_SIDE - left,
            fill="#f2f2f2",
            class_="ground",
        ),
    ]
    cells = []
    for row, column in np.argwhere(drawn[np.ix_(order, order)]).tolist():
        share = float(weights[order[row], order[column]])
        cells.append(
            svg.element(
                "rect",
                x=left + column * cell,
                y=left + row * cell,
                width=cell,
                height=cell,
                fill_opacity=0.15 + 0.85 * share if share >= _FAINTEST else 0,
                class_="learned",
                data_from=order[column],
                data_to=order[row],
            )
        )
    parts.append(svg.element("g", *cells, fill="#D55E00"))
    every = -(-count // 20)
    for place in range(0, count, every):
        middle = left + (place + 0.5) * cell
        small = {"font_size": "9px", "text_anchor": "end"}
        parts.append(svg.element("text", order[place], x=left - 4, y=middle + 3, **small))
        small["text_anchor"] = "middle"
        parts.append(svg.element("text", order[place], x=middle, y=left - 4, **small))
    scale = {"data_faintest": _FAINTEST}
    return svg.drawing(_SIDE, _SIDE, _title(graph), *parts, class_="graph", **scale)


def describe(graph: Graph, client: int) -> str:
    """Returns a client's accuracy, labels, teachers and badges in words."""
    samples = graph.labels[client]
    most = [c for c in np.argsort(-samples, kind="stable")[:_MOST_TOLD] if samples[c]]
    shares = [f"{graph.class_names[c]} ({samples[c] / samples.sum():.0%})" for c in most]
    words = [
        f"client {client}",
        *graph.badges[client],
        f"β_sh {graph.accuracy[client]:.3f}",
        f"holds most of class {', '.join(shares)}" if shares else "holds no labelled samples",
    ]
    if graph.learned is not None and graph.learned[client].any():
        words.append(f"learned most from client {graph.learned[client].argmax()}")
    return "; ".join(words)


def _title(graph: Graph) -> str:
    """Returns what the drawing shows, for those who cannot see it."""
    known = graph.accuracy[np.isfinite(graph.accuracy)]
    said = f"{graph.name} graph of {len(graph.links)} clients; β_sh of {graph.head} "
    said += f"{known.min():.3f} to {known.max():.3f}" if known.size else "unknown"
    if graph.learned is not None:
        learner, teacher = np.unravel_index(graph.learned.argmax(), graph.learned.shape)
        said += f"; most was learned by client {learner} from client {teacher}"
    return said


def legend(graph: Graph) -> dict[str, Any]:
    """Returns what a legend needs: the colours of classes that are held."""
    held = np.flatnonzero(graph.labels.sum(axis=0)).tolist()
    colours = class_colours(graph.labels.shape[1])
    return {
        "classes": [(graph.class_names[c], colours[c]) for c in held],
    }


def _undirected(links: np.ndarray) -> nx.Graph:
    return nx.from_numpy_array((links | links.T).astype(int))
