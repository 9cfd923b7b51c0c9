"""The numbers of a comparison over steps, bytes and seconds, as a page draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.runs import curves, vega
from mhd_jax.runs.accuracies import METRICS, band
from mhd_jax.runs.palette import row_styles
from mhd_jax.training.metrics import declared_head

_MOST = 50_000  # numbers that a page holds
_AXES = {"step": "step", "bytes": "bytes sent by all clients", "seconds": "seconds of training"}

Runs = Mapping[int, Sequence[Mapping[str, Any]]]  # a row's histories, by seed


def of(rows: Mapping[str, Runs], chance: float | None) -> dict[str, Any]:
    """Returns each row's accuracies, by the heads that judge it, as JSON-like values.

    Args:
      rows: the histories of each row, by its name and by seed; those of a row have equal steps.
      chance: the accuracy of a guess; None if it is not the same for all.

    Returns:
      As `curves.of`: the groups are the mean over seeds ± its standard deviation, and where there
      are several each seed; panels are β_sh and β_priv over steps, bytes and seconds, with the
      abscissae of each line "at". A row that sends nothing is level over the bytes of the others.
    """
    seeds = list(dict.fromkeys(seed for runs in rows.values() for seed in runs))
    groups = {"the mean over seeds": seeds} if len(seeds) > 1 else {}
    groups |= {f"seed {seed}": [seed] for seed in seeds}
    records = [record for runs in rows.values() for run in runs.values() for record in run]
    axes = [axis for axis in _AXES if any(record.get(axis) for record in records)]
    lines = 4 * len(axes) * len(METRICS) * len(rows) * len(groups)
    most = int(np.clip(_MOST // max(lines, 1), 10, curves.MOST_MOMENTS))
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "panels": [
                _panel(rows, who, axis, metric, most) for metric in METRICS for axis in axes
            ],
        }
        for name, who in groups.items()
    ]
    styles = row_styles(list(rows))
    specs = []
    for place, panel in enumerate(found[0]["panels"]):
        every = [group["panels"][place] for group in found]
        ends = _known(each["at"] for each in every)
        values = _known([*each["lines"], *(x for r in each["ranges"] for x in r)] for each in every)
        specs.append(
            vega.chart(
                panel["label"],
                styles,
                vega.accuracy_domain(values),
                (min(ends), max(ends)),
                x_title=panel["over"],
                log=panel["over"] == _AXES["bytes"],
                chance=chance,
            )
        )
    return {**vega.legend(styles), "specs": specs, "groups": found}


def _panel(
    rows: Mapping[str, Runs], seeds: Sequence[int], axis: str, metric: str, most: int
) -> dict[str, Any]:
    """Returns one metric of each row over an axis: means over these seeds, and their deviation."""
    at: list[Any] = []
    lines: list[Any] = []
    ranges: list[Any] = []
    for runs in rows.values():
        chosen = [curves.moments(runs[seed], most) for seed in seeds if seed in runs]
        if not chosen:
            at.append([])
            lines.append([])
            ranges.append([[], []])
            continue
        head = declared_head(metric, list(chosen[0][-1][metric]))
        values = np.array([[record[metric][head] for record in run] for run in chosen], float)
        places = np.array([[record.get(axis) for record in run] for run in chosen], float)
        mean = values.mean(axis=0)
        spread = values.std(axis=0, ddof=1) if len(chosen) > 1 else np.full(len(mean), np.nan)
        at.append([curves.rounded(x) for x in places.mean(axis=0)])
        lines.append([curves.rounded(x) for x in mean])
        ranges.append([[curves.rounded(x) for x in end] for end in band(mean, spread)])
    if axis == "bytes":
        _level(at, lines, ranges)
    judge = "main" if metric == "beta_priv" else "last"
    label = f"{METRICS[metric]}, {judge} head"
    return {"label": label, "over": _AXES[axis], "at": at, "lines": lines, "ranges": ranges}


def _level(at: list[Any], lines: list[Any], ranges: list[Any]) -> None:
    """Lets rows that send nothing be level from the least to the most bytes, at their last value.

    Where no row of these seeds sends anything, none is drawn.
    """
    spent = [x for places in at for x in places if x]
    for row, places in enumerate(at):
        if places and not any(places):
            at[row] = [min(spent), max(spent)] if spent else []
            lines[row] = [lines[row][-1]] * len(at[row])
            ranges[row] = [[], []]
        elif places and not places[0]:  # a logarithm has no 0
            lines[row] = [y if x else None for x, y in zip(places, lines[row], strict=True)]
            at[row] = [x or min(spent) for x in places]


def _known(parts: Any) -> list[float]:
    return [x for part in parts for line in part for x in line if x is not None]
