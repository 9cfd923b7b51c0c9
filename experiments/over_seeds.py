"""Numbers over seeds: mean, deviation and interval, as a table's cell and in a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from mhd_jax.runs.drawing import Axes
from mhd_jax.runs.figures import METRICS

CONFIDENCE = 0.95
Statistic = dict[str, float | None]


def spread(values: Iterable[float | None]) -> Statistic:
    """Returns mean and standard deviation (n − 1) of the values that are not None.

    The mean is None without such values, the deviation with fewer than two.
    """
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def interval(values: Sequence[float | None]) -> Statistic:
    """Returns `spread`, and the half-width of Student's 95 % confidence interval of the mean.

    It is over the values that are not None; the half-width is None with fewer than two.
    """
    found, count = spread(values), sum(value is not None for value in values)
    half_width = None
    if found["std"] is not None:
        quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        half_width = float(quantile * found["std"] / np.sqrt(count))
    return {**found, "half_width": half_width}


def by_head(
    found: Sequence[Mapping[str, float | None]],
    statistic: Callable[[Sequence[float | None]], Statistic] = spread,
) -> dict[str, Statistic]:
    """Returns a statistic for each head, over values by head, one mapping for each seed."""
    return {head: statistic([values[head] for values in found]) for head in (found or [{}])[0]}


def accuracies(
    summaries: Sequence[Mapping[str, Any]],
    statistic: Callable[[Sequence[float | None]], Statistic] = spread,
) -> dict[str, dict[str, Statistic]]:
    """Returns a statistic of β_sh and β_priv for each head, over the summaries of runs."""
    return {metric: by_head([each[metric] for each in summaries], statistic) for metric in METRICS}


def as_cell(value: Mapping[str, float | None], sign: str = "") -> str:
    """Formats a mean ± its standard deviation, and its confidence interval where there is one.

    With `sign` "+" a positive mean has a sign.
    """
    mean, half = value["mean"], value.get("half_width")
    if mean is None:
        return "–"
    deviation = "" if value["std"] is None else f" ± {value['std']:.3f}"
    between = "" if half is None else f" [{mean - half:.3f}, {mean + half:.3f}]"
    return f"{mean:{sign}.3f}{deviation}{between}"


def draw_line(
    axis: Axes, xs: Sequence[Any], values: Sequence[Mapping[str, float | None]], **style: Any
) -> None:
    """Draws means over numbers, with their intervals or else their deviations."""
    means: list[Any] = [value["mean"] for value in values]
    axis.errorbar(xs, means, yerr=[_error(value) for value in values], capsize=3, **style)


def draw_point(axis: Axes, y: float, value: Mapping[str, float | None], **style: Any) -> None:
    """Draws a mean at a height, with its interval or else its deviation; nothing without a mean."""
    if value["mean"] is not None:
        axis.errorbar(value["mean"], y, xerr=_error(value), capsize=3, **style)


def name_rows(axis: Axes, names: Sequence[str], label: str) -> None:
    """Names the heights 0, 1, 2 … from the top, and labels the axis of what is drawn at them."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)


def _error(value: Mapping[str, float | None]) -> float:
    return value.get("half_width", value["std"]) or 0.0
