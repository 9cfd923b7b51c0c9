"""What may fail without the run that it is about: figures, pages, trackers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from mhd_jax.core.errors import in_a_line


@contextlib.contextmanager
def decoration(what: str, then: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What goes wrong inside becomes a warning of one line, and all else goes on.

    Args:
      what: is done inside, as the warning names it.
      then: what its reader can do, or what comes of it; a sentence.
      but: errors that are none of this, and pass.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        warnings.warn(f"{what} failed ({in_a_line(error)}). {then}", stacklevel=4)
