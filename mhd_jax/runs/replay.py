"""What a page needs to play a run's training: graph, class maps and accuracies at each evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.runs import class_map, curves, levels
from mhd_jax.runs.class_map import ClassMap
from mhd_jax.runs.graph import Graph

_MOST = 200_000  # of a page: a character each

Record = Mapping[str, Any]


def of(
    history: Sequence[Record], graph: Graph | None, classes: ClassMap | None
) -> dict[str, Any] | None:
    """Returns a run's evaluations for the page's script; None if there is only one.

    Args:
      history: the evaluations.
      graph: the drawn graph; None if there is none.
      classes: the class maps; None if there are none.

    Returns:
      "steps" [T]; "colours", the fills of the 64 levels and the "inks" on them; and as texts of
      levels, one for each step: "accuracy" of clients [K], "learned" [K, K], and "classes" by head
      [K, C] in the order of the map's rows. What evaluations do not keep is None.
    """
    if len(history) < 2:
        return None
    by_class = None
    if all("per_class_accuracy" in record["per_client"] for record in history):
        by_class = classes if classes is not None and classes.is_drawn else None
    over_time = None if graph is None else graph.over_time
    size = max(1, (0 if over_time is None else len(over_time[0]) ** 2))
    size += 0 if by_class is None else 2 * by_class.held.size
    places = curves.moments(range(len(history)), max(2, min(curves.MOST_MOMENTS, _MOST // size)))
    records = [history[i] for i in places]
    fills = levels.colours()
    return {
        "steps": [record["step"] for record in records],
        "digits": levels.DIGITS,
        "colours": fills,
        "inks": [levels.ink(fill) for fill in fills],
        "unknown": levels.UNKNOWN_COLOUR,
        "accuracy": graph
        and [levels.text(record["per_client"]["beta_sh"][graph.head]) for record in records],
        "learned": None if over_time is None else [levels.text(over_time[i]) for i in places],
        "classes": by_class
        and {
            head: [_rows(record, head, by_class) for record in records]
            for head in class_map.shown_heads(by_class)
        },
    }


def _rows(record: Record, head: str, classes: ClassMap) -> str:
    values = np.array(record["per_client"]["per_class_accuracy"][head], float)
    return levels.text(values[list(classes.order)])
