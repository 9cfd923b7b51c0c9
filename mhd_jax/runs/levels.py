"""Numbers in [0, 1] as text, one character each, for a page's script."""

from __future__ import annotations

import functools
import string
from typing import Any

import numpy as np

from mhd_jax.runs.drawing import colormaps, to_hex

DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
_UNKNOWN = "."
_HIGHEST = len(DIGITS) - 1
UNKNOWN_COLOUR = "#ccc"


def text(values: Any) -> str:
    """Returns numbers of any shape in 64 levels, row by row; unknown ones (NaN, None) as a dot."""
    flat = np.asarray(values, float).reshape(-1)
    known = np.isfinite(flat)
    return "".join(
        DIGITS[level] if is_known else _UNKNOWN
        for level, is_known in zip(_levels(np.nan_to_num(flat)), known, strict=True)
    )


def colour(value: float) -> str:
    """Returns the colour of an accuracy, which is that of its level; grey for an unknown one."""
    if not np.isfinite(value):
        return UNKNOWN_COLOUR
    return colours()[int(_levels(np.array(value)))]


def _levels(values: np.ndarray) -> np.ndarray:
    """Returns the levels of numbers; of three digits, as evaluations hold few."""
    return np.rint(np.clip(values, 0, 1).round(3) * _HIGHEST).astype(int)


@functools.cache
def colours() -> list[str]:
    """Returns the colour of each level: those of viridis, which grow lighter."""
    return [to_hex(colormaps["viridis"](level / _HIGHEST)) for level in range(_HIGHEST + 1)]


def ink(fill: str) -> str:
    """Returns the colour of text that can be read on a fill."""
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    return "#fff" if 0.3 * red + 0.59 * green + 0.11 * blue < 128 else "#000"
