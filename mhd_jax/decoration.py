"""What may fail without the run that it is about: figures, pages, trackers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


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
        warnings.warn(f"{what} failed ({reason(error)}). {then}", stacklevel=4)


def reason(error: BaseException) -> str:
    """An error in one line: its kind, and the first line that it says."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
