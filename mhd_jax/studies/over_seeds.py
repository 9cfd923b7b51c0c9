"""Numbers over seeds: mean, deviation and interval, as a table's cell and in a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy  # its parts load when they are used

from mhd_jax.training.metrics import SYMBOLS

if TYPE_CHECKING:
    from mhd_jax.runs.drawing import Axes

CONFIDENCE = 0.95
OF_ACCURACIES = (0.0, 1.0)  # what accuracies can be
OF_DIFFERENCES = (-1.0, 1.0)  # what differences of accuracies can be
OF_ALL = (-np.inf, np.inf)
Statistic = dict[str, float | None]
Limits = tuple[float, float]


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
        quantile = scipy.special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)
        half_width = float(quantile * found["std"] / np.sqrt(count))
    return {**found, "half_width": half_width}


def ends(value: Mapping[str, float | None], limits: Limits) -> Limits | None:
    """Returns the ends of a confidence interval within limits; None where there is no interval.

    Student's interval of two or three seeds may reach beyond what the values can be. Scores of a
    regression know no lower limit: where the mean is beyond a limit, there is none.
    """
    mean, half = value["mean"], value.get("half_width")
    if mean is None or half is None:
        return None
    low, high = limits
    return (
        max(mean - half, low) if mean >= low else mean - half,
        min(mean + half, high) if mean <= high else mean + half,
    )


def p_value(value: Mapping[str, float | None], count: int) -> float:
    """Returns the p-value of the mean of `count` numbers against 0, in Student's two-sided test."""
    mean, std = value["mean"], value["std"]
    assert mean is not None and std is not None
    if std == 0:
        return float(mean == 0)
    return float(2 * scipy.special.stdtr(count - 1, -abs(mean) / (std / np.sqrt(count))))


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
    return {metric: by_head([each[metric] for each in summaries], statistic) for metric in SYMBOLS}


def as_cell(
    value: Mapping[str, float | None], sign: str = "", limits: Limits = OF_ACCURACIES
) -> str:
    """Formats a mean ± its standard deviation, and its confidence interval where there is one.

    With `sign` "+" a positive mean has a sign. The interval is within the limits.
    """
    mean, found = value["mean"], ends(value, limits)
    if mean is None:
        return "–"
    deviation = "" if value["std"] is None else f" ± {value['std']:.3f}"
    between = "" if found is None else f" [{found[0]:.3f}, {found[1]:.3f}]"
    return f"{mean:{sign}.3f}{deviation}{between}"


def draw_line(
    axis: Axes, xs: Sequence[Any], values: Sequence[Mapping[str, float | None]], **style: Any
) -> None:
    """Draws mean accuracies over numbers, with their intervals or else their deviations."""
    means: list[Any] = [value["mean"] for value in values]
    errors = np.transpose([_errors(value, OF_ACCURACIES) for value in values])
    axis.errorbar(xs, means, yerr=errors, capsize=3, **style)


def draw_point(
    axis: Axes,
    y: float,
    value: Mapping[str, float | None],
    limits: Limits = OF_ACCURACIES,
    **style: Any,
) -> None:
    """Draws a mean at a height, with its interval or else its deviation; nothing without a mean."""
    if value["mean"] is not None:
        errors = np.transpose([_errors(value, limits)])
        axis.errorbar(value["mean"], y, xerr=errors, capsize=3, **style)


def name_rows(axis: Axes, names: Sequence[str], label: str) -> None:
    """Names the heights 0, 1, 2 … from the top, and labels the axis of what is drawn at them."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)


def _errors(value: Mapping[str, float | None], limits: Limits) -> tuple[float, float]:
    """Returns how far the interval within limits, or else the deviation, reaches to either side."""
    mean, found = value["mean"], ends(value, limits)
    if mean is not None and found is not None:
        return mean - found[0], found[1] - mean
    deviation = 0.0 if "half_width" in value else value["std"] or 0.0
    return deviation, deviation
