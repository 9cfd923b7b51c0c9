"""Who knows what: each client's accuracy on each class, and which classes it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from mhd_jax.runs import levels, svg
from mhd_jax.topology.distances import holds
from mhd_jax.training.metrics import first_and_last

MOST_CELLS = 4000  # clients times classes up to which a map is drawn
MOST_OPEN = 20  # classes up to which maps are unfolded
_LEFT, _TOP, _WIDTH = 44, 46, 480  # pixels
_ROW = (5.0, 24.0)  # the least and the largest height of a row
_LONGEST = 8  # letters of a class's name

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """What each client knows of each class.

    Attributes:
      held: bool [K, C], whether a client holds a class (see `mhd_jax.topology.distances`).
      order: the clients by the first class that they hold, and how many more they do.
      accuracy: by head, [K, C]; NaN for a class without test samples.
      class_names: C names.
    """

    held: np.ndarray
    order: Sequence[int]
    accuracy: Mapping[str, np.ndarray]
    class_names: Sequence[str]

    def means(self, head: str) -> tuple[float | None, float | None]:
        """Returns the mean accuracy on held and on other classes, over pairs of client and class."""
        values = self.accuracy[head]
        known = np.isfinite(values)
        parts = (values[known & self.held], values[known & ~self.held])
        held, others = (float(part.mean()) if part.size else None for part in parts)
        return held, others

    @property
    def is_drawn(self) -> bool:
        """Whether there are few enough cells for a drawing."""
        return self.held.size <= MOST_CELLS

    @property
    def is_folded(self) -> bool:
        """Whether the drawing is folded, for it has many classes."""
        return len(self.class_names) > MOST_OPEN


def of_run(summary: Record) -> ClassMap | None:
    """Returns the class map of a run; None of one pooled model, or if it is not recorded."""
    clients, data = summary["per_client"], summary.get("data")
    if data is None or len(clients) < summary["num_clients"]:
        return None
    held = holds(np.array(data["private_samples"]))
    first = np.where(held.any(axis=1), held.argmax(axis=1), held.shape[1])
    order = np.lexsort([*(~held.T)[::-1], first]).tolist()
    heads = list(summary["beta_sh"])
    accuracy = {
        head: np.array([client["per_class_accuracy"][head] for client in clients], float)
        for head in heads
    }
    return ClassMap(held, order, accuracy, data["class_names"])


def shown_heads(found: ClassMap) -> list[str]:
    """Returns the heads whose maps are drawn: those that evaluations keep by class."""
    return first_and_last(list(found.accuracy))


def orders(found: ClassMap) -> dict[str, Sequence[int]]:
    """Returns orders of the clients by name: those in which a reader may have the maps' rows.

    Accuracies are those of the last head; clients that hold every class come last.
    """
    values = np.where(found.held, np.nan, found.accuracy[list(found.accuracy)[-1]])
    known = np.isfinite(values)
    means = np.nansum(values, axis=1) / np.maximum(known.sum(axis=1), 1)
    return {
        "the classes that they hold": found.order,
        "number": range(len(values)),
        "accuracy on classes that they do not hold": np.lexsort(
            [-means, ~known.any(axis=1)]
        ).tolist(),
    }


def drawing(found: ClassMap, head: str) -> Markup:
    """Returns the map of one head: a row for each client, outlined where it holds the class."""
    values = found.accuracy[head]
    count, classes = values.shape
    wide = (_WIDTH - _LEFT) / classes
    high = float(np.clip(wide, *_ROW))
    height = _TOP + high * count + 6
    rows = [_row(found, head, client, (wide, high)) for client in found.order]
    # A page's script may put the rows in another order; where they are low, only some are numbered.
    every = max(1, -(-13 // int(high)))
    placed = [
        svg.element(
            "g",
            *row,
            class_="row" if place % every == 0 else "row unnumbered",
            data_client=client,
            transform=f"translate(0 {_TOP + place * high:.2f})",
        )
        for place, (client, row) in enumerate(zip(found.order, rows, strict=True))
    ]
    means = (_shown(mean) for mean in found.means(head))
    title = "{} head: mean accuracy on held classes {}, on other classes {}".format(head, *means)
    parts = [svg.element("text", f"{head} head", x=0, y=14, font_weight=600)]
    parts += [*_class_names(found, wide), *placed]
    return svg.drawing(_WIDTH, height, title, *parts, class_="class-map", data_head=head)


def _row(found: ClassMap, head: str, client: int, size: tuple[float, float]) -> list[Markup]:
    """Returns a client's number, its cells and the outlines of those that it holds."""
    wide, high = size
    line = float(np.clip(min(wide, high) / 8, 0.5, 2))  # of an outline, inside its cell

    def box(label: int, inset: float = 0.0, **look: Any) -> Markup:
        place = {"x": _LEFT + label * wide + inset, "y": inset}
        inner = {"width": wide - 2 * inset, "height": high - 2 * inset}
        return svg.element("rect", **place, **inner, **look)

    values = found.accuracy[head][client]
    cells = [box(label, fill=levels.colour(value)) for label, value in enumerate(values)]
    held = [box(label, line / 2) for label in np.flatnonzero(found.held[client]).tolist()]
    return [
        svg.element("text", client, x=_LEFT - 6, y=high / 2 + 4, text_anchor="end"),
        svg.element("g", *cells, class_="cells"),
        svg.element("g", *held, class_="held", stroke_width=line),
    ]


def _class_names(found: ClassMap, wide: float) -> list[Markup]:
    """Returns the headings, and the names of classes, with gaps where they are narrow."""
    parts = [
        svg.element("text", "class", x=_LEFT, y=28, class_="note"),
        svg.element("text", "client", x=_LEFT - 6, y=_TOP - 4, text_anchor="end", class_="note"),
    ]
    longest = min(max(map(len, found.class_names)), _LONGEST)
    every = max(1, -(-int(7 * longest + 6) // max(int(wide), 1)))
    for label in range(0, len(found.class_names), every):
        name = found.class_names[label]
        name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        x = _LEFT + (label + 0.5) * wide
        parts.append(svg.element("text", name, x=x, y=_TOP - 6, text_anchor="middle"))
    return parts


def _shown(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.3f}"
