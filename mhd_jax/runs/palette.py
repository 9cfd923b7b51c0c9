"""One fixed colour and marker for each algorithm and each head, on all pages and in all figures.

The colours differ for colour-blind readers too, and each has a contrast of 3 : 1 or more on white.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from typing import Any

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#008A5E", "#8E2A8A"
SKY, BROWN, GREY, BLACK = "#3A9BDC", "#6B4E00", "#8A8A8A", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN, GREY, BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
_LINES = ("-", "--", "-.")  # dots are left to those who send nothing

# Those that are often compared have colours of their own; their variants share it, not the marker.
ALGORITHMS = {
    "mhd": (BLUE, "o"),
    "naive": (ORANGE, "s"),
    "isolated": (GREY, "D"),
    "supervised": (BLACK, "*"),
    "fedmd": (GREEN, "^"),
    "fedavg": (PURPLE, "p"),
    "ccl": (SKY, "v"),
    "dsgd": (BROWN, "P"),
    "qg_dsgd": (PURPLE, "<"),
    "distributed_distillation": (ORANGE, ">"),
    "idkd": (PURPLE, "h"),
    "ds_fl": (GREEN, "v"),
    "selective_fd": (SKY, "s"),
    "fedproto": (PURPLE, "o"),
}

# By rank: the main head, then auxiliary heads; further ones repeat the auxiliary heads' colours.
_HEADS = (BLACK, "#5B2A86", BLUE, "#009E73", BROWN, ORANGE, "#E0529C")

Style = dict[str, Any]
LOSS_STYLE: Style = {"color": "#555555", "marker": "o", "linestyle": "-", "markersize": 4}


def head_colours(num_heads: int) -> list[Any]:
    """Returns the colour of each head: of the main head, then of auxiliary heads by rank."""
    auxiliary = _HEADS[1:]
    return [_HEADS[0], *(auxiliary[i % len(auxiliary)] for i in range(num_heads - 1))][:num_heads]


def head_styles(heads: Sequence[str]) -> dict[str, Style]:
    """Returns colour and marker of each head, given all heads in their order."""
    colours = head_colours(len(heads))
    return {
        head: _style(colours[rank], _MARKERS[rank % len(_MARKERS)])
        for rank, head in enumerate(heads)
    }


def row_styles(names: Sequence[str]) -> dict[str, Style]:
    """Returns colour, marker and dashes of each row of a comparison.

    An algorithm's name has its own. Any other name has a colour and a marker by its letters, or the
    next ones that are free; no two rows look the same.
    """
    taken = {name: ALGORITHMS[name] for name in names if name in ALGORITHMS}
    lines = dict.fromkeys(names, _LINES[0])
    for name in [name for name in names if name not in taken]:
        start = zlib.crc32(name.encode())
        colour = _least_used(COLOURS, [colour for colour, _ in taken.values()], start)
        beside = [marker for other, marker in taken.values() if other == colour]
        marker = _least_used(_MARKERS, beside, start)
        lines[name] = _LINES[beside.count(marker) % len(_LINES)]
        taken[name] = colour, marker
    return {name: _style(*taken[name], lines[name]) for name in names}


def class_colours(num_classes: int) -> list[str]:
    """Returns a colour for each class: hues around the circle, by turns darker and lighter."""
    found = []
    for i in range(num_classes):
        hue, lightness = i / num_classes, (0.42, 0.6)[i % 2]
        red, green, blue = (round(255 * x) for x in colorsys.hls_to_rgb(hue, lightness, 0.7))
        found.append(f"#{red:02x}{green:02x}{blue:02x}")
    return found


def _least_used(choices: Sequence[str], used: Sequence[str], start: int) -> str:
    """Returns the choice that is used least, the first one counted from a place."""
    turned = [choices[(start + i) % len(choices)] for i in range(len(choices))]
    return min(turned, key=used.count)


def _style(colour: str, marker: str, line: str = "-") -> Style:
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": 4}
