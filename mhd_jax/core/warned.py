"""Warnings that name the user's line, however deep in the package their reason is found."""

from __future__ import annotations

import pathlib
import sys
import traceback
import warnings

# On the way from a user's line to a warning's reason; `contextlib` runs decorated functions.
_BETWEEN = frozenset({"mhd_jax", "contextlib", "importlib", "jax", "flax"})


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the innermost line that is outside the package and outside what it calls.

    Args:
      text: what is to be known, and what to do about it.
      category: the kind of warning.
    """
    frame = sys._getframe(1)
    while _is_between(frame.f_globals.get("__name__", "")) and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(
        text,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def line_of(error: BaseException) -> str:
    """Returns the innermost place in the user's code that led to an error, like "my.py, line 12"."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not _is_between(frame.f_globals.get("__name__", "")):
            found = f"{pathlib.PurePath(frame.f_code.co_filename).name}, line {line}"
    return found


def _is_between(module: str) -> bool:
    return module.partition(".")[0] in _BETWEEN
