"""Turns errors of optional outputs (figures, report pages, trackers) into warnings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mhd_jax.core.errors import in_a_line
from mhd_jax.core.warned import warn


@contextlib.contextmanager
def decoration(what: str, then: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns an error in the block into a one-line warning, so that the program goes on.

    Args:
      what: the name of the optional output, for the warning.
      then: a sentence about the remedy or the consequence, for the warning.
      but: types of errors that are raised nevertheless.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        warn(f"{what} failed ({in_a_line(error)}). {then}")
