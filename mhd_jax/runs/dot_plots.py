"""Dot plots of a comparison: paired differences to a baseline, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mhd_jax.runs import svg
from mhd_jax.runs.drawing import MaxNLocator
from mhd_jax.runs.palette import Style
from mhd_jax.training.metrics import SYMBOLS

_WIDTH, _ROW, _TOP, _BOTTOM = 480, 28, 30, 44  # in pixels
_LETTER = 6.6  # the width of a letter
_TICK = 60  # the width of a tick's label, with room
_MOST_LETTERS = 24  # of a row's name
_RIGHT = 104  # for the verdict in words


def differences(
    metric: str, baseline: str, found: Sequence[Any], styles: Mapping[str, Style]
) -> Markup:
    """Returns a drawing of the differences of rows to a baseline in one metric.

    A difference that ties is hollow.

    Args:
      metric: the metric.
      baseline: the baseline's name.
      found: the differences, with `first`, `mean`, `interval` and `verdict`.
      styles: the colour of each row.
    """
    names = [_cut(each.first) for each in found]
    left = _LETTER * max(map(len, names)) + 16
    right = _WIDTH - _RIGHT
    ends = [0.0, *(end for each in found for end in each.interval)]
    ticks = MaxNLocator(max(2, min(5, int((right - left) / _TICK)))).tick_values(
        min(ends), max(ends)
    )
    low, high = float(ticks[0]), float(ticks[-1])
    height = _TOP + _ROW * len(found) + _BOTTOM
    below = height - _BOTTOM

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [svg.element("text", f"{SYMBOLS[metric]} − {baseline}'s", x=0, y=14, font_weight=600)]
    for tick in map(float, ticks):
        at_zero = abs(tick) < 1e-9
        line = {"x1": x(tick), "x2": x(tick), "y1": _TOP - 4, "y2": below}
        parts.append(svg.element("line", **line, stroke="#555" if at_zero else "#ddd"))
        label = "0" if at_zero else f"{tick:+.3g}".replace("-", "−")
        parts.append(svg.element("text", label, x=x(tick), y=below + 16, text_anchor="middle"))
    said = "paired difference, 95 % interval; hollow: a tie"
    parts.append(
        svg.element("text", said, x=(left + right) / 2, y=below + 36, text_anchor="middle")
    )
    for place, (each, name) in enumerate(zip(found, names, strict=True)):
        y = _TOP + _ROW * (place + 0.5)
        parts += _row(each, name, y, (left, right), x, styles[each.first]["color"])
    title = "; ".join(
        f"{each.first} {each.mean:+.3f}, {each.verdict}".replace("-", "−") for each in found
    )
    return svg.drawing(
        _WIDTH, height, f"{SYMBOLS[metric]} minus that of {baseline}: {title}", *parts
    )


def _row(
    each: Any, name: str, y: float, ends: tuple[float, float], x: Any, colour: str
) -> list[Markup]:
    """Returns a row's name, interval, mean, and verdict in words."""
    low, high = (x(end) for end in each.interval)
    text = f"{each.mean:+.3f} {each.verdict}".replace("-", "−")
    inside = "#fff" if each.verdict == "tie" else colour
    return [
        svg.element("text", name, x=ends[0] - 10, y=y + 4, text_anchor="end"),
        svg.element("line", x1=low, x2=high, y1=y, y2=y, stroke=colour, stroke_width=2),
        svg.element(
            "circle", cx=x(each.mean), cy=y, r=5, fill=inside, stroke=colour, stroke_width=2
        ),
        svg.element("text", text, x=ends[1] + 10, y=y + 4),
    ]


def _cut(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
