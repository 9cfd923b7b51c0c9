"""Charts of numbers over steps, bytes or seconds, as specifications that Vega-Lite draws in a page.

A specification holds no numbers: `templates/charts.js` gives it the rows that a reader chooses.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import markupsafe

from mhd_jax.runs.palette import Style

_VENDORED = pathlib.Path(__file__).with_name("vendor")
_DASHES = {"-": [1, 0], "--": [6, 3], "-.": [6, 3, 2, 3], ":": [2, 3]}
_X = "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z"


def _star(corners: int, inner: float) -> str:
    """Returns the outline of a star whose inner corners have this radius."""
    turns = [math.pi * i / corners for i in range(2 * corners)]
    radii = [(1.0, inner)[i % 2] for i in range(2 * corners)]
    ends = [
        f"{r * math.sin(t):.2f},{-r * math.cos(t):.2f}" for r, t in zip(radii, turns, strict=True)
    ]
    return f"M{'L'.join(ends)}Z"


# The shape of each marker of `palette`, and a letter that looks like it, for legends.
_SHAPES = {
    "o": ("circle", "●"),
    "s": ("square", "■"),
    "^": ("triangle-up", "▲"),
    "D": ("diamond", "◆"),
    "v": ("triangle-down", "▼"),
    "P": ("cross", "✚"),
    "X": (_X, "✖"),
    "*": (_star(5, 0.45), "★"),
    "<": ("triangle-left", "◀"),
    ">": ("triangle-right", "▶"),
    "h": (_star(6, math.cos(math.pi / 6)), "⬢"),
    "p": (_star(5, math.cos(math.pi / 5)), "⬟"),
}


@functools.cache
def library() -> markupsafe.Markup:
    """Returns Vega, Vega-Lite and Vega-Embed, with their licences, as one script for a page."""
    parts = [f"/*!\n{(_VENDORED / 'LICENSES.txt').read_text(encoding='utf-8')}*/"]
    for name in json.loads((_VENDORED / "versions.json").read_text(encoding="utf-8")):
        text = (_VENDORED / f"{name}.min.js").read_text(encoding="utf-8")
        parts.append(re.sub(r"//# sourceMappingURL=\S+", "", text))
    return markupsafe.Markup("\n".join(parts))


def legend(styles: dict[str, Style]) -> dict[str, Any]:
    """Returns the names of lines, with the colour and the marker's letter of each, for a legend."""
    return {
        "names": list(styles),
        "colours": [style["color"] for style in styles.values()],
        "glyphs": [_SHAPES[style["marker"]][1] for style in styles.values()],
    }


def accuracy_domain(values: Iterable[float | None]) -> list[float]:
    """Returns an axis of accuracies: from 0, or from where they begin if all are high, to 1.

    Scores of numbers may be below 0, down to -1 on the axis; what is lower lies on its edge.
    """
    low = min((value for value in values if value is not None), default=0.0)
    if low < 0:
        return [max(math.floor(low * 4) / 4, -1), 1]
    return [max(math.floor((low - 0.01) * 20) / 20, 0) if low > 0.5 else 0, 1]


def loss_domain(values: Iterable[float | None]) -> list[float]:
    """Returns an axis of losses, from 0 to the highest one, rounded up to two leading digits."""
    high = max((value for value in values if value is not None), default=0.0)
    unit = 10 ** (math.floor(math.log10(max(high, 1e-9))) - 1)
    return [0, math.ceil(high / unit) * unit]


def chart(
    label: str,
    styles: dict[str, Style],
    y_domain: Sequence[float],
    x_domain: Sequence[float],
    *,
    x_title: str = "step",
    log: bool = False,
    chance: float | None = None,
) -> dict[str, Any]:
    """Returns the specification of one chart.

    Its data, "rows", have "x", "y" and the line's name, "series"; where there is a range "low" and
    "high"; and "marked" for points that have a marker. Its signal "moment" is the x of the cursor, or null.

    Args:
      label: the chart's title.
      styles: colour, marker and dashes of each line by name.
      y_domain, x_domain: the lowest and the highest value of each axis, before a reader zooms.
      x_title: what the horizontal axis shows.
      log: whether that axis is logarithmic, of bytes.
      chance: where a dashed line stands, if it is on the axis.
    """
    x, x_format = _horizontal(x_domain, x_title, log)
    y = {
        "field": "y",
        "type": "quantitative",
        "scale": {"domain": list(y_domain), "nice": False, "clamp": True},
        "axis": {"title": None, "tickCount": 5, "gridColor": "#ddd"},
    }
    tooltip = [
        {"field": "series", "type": "nominal", "title": "line"},
        {"field": "x", "type": "quantitative", "title": x_title, "format": x_format},
        {"field": "y", "type": "quantitative", "title": label, "format": ".3~f"},
        {"field": "range", "type": "nominal", "title": "range"},
    ]
    layers = [_ranges(y), _lines(y, styles), _points(y, styles, tooltip), _cursor(x)]
    if chance is not None and y_domain[0] < chance:
        layers.insert(0, _chance(chance, y))
    return {
        "title": {"text": label, "anchor": "start", "fontSize": 13},
        "width": "container",
        "height": 190,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "rows"},
        "params": [{"name": "moment", "value": None}, _ZOOM],
        "encoding": {
            "x": x,
            "color": _by_name(styles, [style["color"] for style in styles.values()]),
        },
        "layer": layers,
        "config": _CONFIG,
    }


_CONFIG = {
    "aria": False,  # the page says what a chart shows
    "font": "system-ui, sans-serif",
    "background": "transparent",
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "view": {"stroke": None},
}
# Dragged sideways; the wheel alone scrolls the page.
_ZOOM = {
    "name": "zoom",
    "select": {
        "type": "interval",
        "encodings": ["x"],
        "zoom": "wheel![event.ctrlKey || event.metaKey]",
    },
    "bind": "scales",
    "views": ["lines"],
}
_HOVER = {
    "name": "hover",
    "select": {"type": "point", "nearest": True, "on": "pointermove", "clear": "pointerout"},
}


def _by_name(styles: dict[str, Style], looks: Sequence[Any]) -> dict[str, Any]:
    """Returns the encoding of a line's name by one look for each name."""
    scale = {"domain": list(styles), "range": looks}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": None}


def _horizontal(domain: Sequence[float], title: str, log: bool) -> tuple[dict[str, Any], str]:
    """Returns the encoding of x, and the format of its numbers."""
    first, last = domain
    inside = [first, last] if first < last else [first * 0.9, last * 1.1 or 1]
    form = "~s" if log else ",~r"
    axis = {"title": title, "format": form, "tickCount": 5, "grid": False}
    of_bytes = {"labelExpr": "datum.label ? datum.label + 'B' : ''"} if log else {}
    scale = {"domain": inside, "nice": False, **({"type": "log"} if log else {})}
    return {"field": "x", "type": "quantitative", "scale": scale, "axis": axis | of_bytes}, form


def _ranges(y: dict[str, Any]) -> dict[str, Any]:
    """Returns the layer of the bands between "low" and "high"."""
    return {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "area", "opacity": 0.12, "clip": True},
        "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }


def _lines(y: dict[str, Any], styles: dict[str, Style]) -> dict[str, Any]:
    """Returns the layer of the lines."""
    dashes = [_DASHES[style["linestyle"]] for style in styles.values()]
    return {
        "name": "lines",
        "mark": {"type": "line", "strokeWidth": 1.8, "clip": True},
        "encoding": {"y": y, "strokeDash": _by_name(styles, dashes)},
    }


def _points(
    y: dict[str, Any], styles: dict[str, Style], tooltip: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the layer of the points: markers, and the one under the pointer with its tooltip."""
    pointed = {"param": "hover", "empty": False}
    opaque = [{**pointed, "value": 1}, {"test": "datum.marked", "value": 1}]
    return {
        "name": "points",
        "params": [_HOVER],
        "transform": [{"filter": "isValid(datum.y)"}],
        "mark": {"type": "point", "filled": True, "clip": True},
        "encoding": {
            "y": y,
            "shape": _by_name(styles, [_SHAPES[style["marker"]][0] for style in styles.values()]),
            "size": {"condition": {**pointed, "value": 110}, "value": 36},
            "opacity": {"condition": opaque, "value": 0},
            "tooltip": tooltip,
        },
    }


def _cursor(x: dict[str, Any]) -> dict[str, Any]:
    """Returns the layer of the cursor, which stands at the signal "moment"."""
    return {
        "name": "cursor",
        "data": {"values": [{}]},
        "transform": [{"calculate": "moment", "as": "x"}, {"filter": "isValid(datum.x)"}],
        "mark": {"type": "rule", "color": "#9c1c1c", "strokeWidth": 1.5, "clip": True},
        "encoding": {"x": x, "color": None},
    }


def _chance(value: float, y: dict[str, Any]) -> dict[str, Any]:
    """Returns the layer of a dashed line, with its name at its right end."""
    of_text = {"type": "text", "align": "right", "baseline": "bottom", "dy": -2, "text": "chance"}
    at = {"y": {**y, "field": "value"}, "color": None}
    return {
        "data": {"values": [{"value": value}]},
        "layer": [
            {
                "mark": {"type": "rule", "color": "#666", "strokeDash": [6, 3]},
                "encoding": {**at, "x": None},
            },
            {
                "mark": {**of_text, "color": "#595959", "fontSize": 12},
                "encoding": {**at, "x": {"value": "width"}},
            },
        ],
    }
