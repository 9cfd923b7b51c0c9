"""What pages that go with runs have in common: when they are written, and what they say of the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from mhd_jax.core.errors import DivergedError, in_a_line
from mhd_jax.runs.callbacks.base import Callback, WatchedRun
from mhd_jax.runs.callbacks.progress import pace_text

_LEAST_WAIT = 10.0  # seconds from one writing to the next
_SHARE = 20  # times what the last writing took, that the next one waits


class LivePage(Callback):
    """Writes pages when runs start, at most every 10 seconds while they go on, and when one ends badly.

    Pages take at most a twentieth of the time; one that cannot be written is a warning.

    Attributes:
      what: what the pages are about, "run" or "study".
      runs: the runs that go on together.
      step: their step.
      news: a sentence about their speed.
      diverged: the places of those that have diverged.
    """

    may_fail = True
    what = "run"

    def __init__(self) -> None:
        self.runs: Sequence[WatchedRun] = ()
        self.step = 0
        self.news = ""
        self.diverged: set[int] = set()
        self._due = 0.0

    def write(self, ended: str | None = None) -> None:
        """Writes the pages; `ended` says why no more steps are taken, in a sentence."""
        raise NotImplementedError

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Writes the first pages."""
        self.runs, self.step, self.diverged = runs, step, set()
        self.news = "The program is being compiled."
        self._write_and_wait()

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Writes the pages anew if it is time."""
        left = self.runs[0].settings["steps"] - step
        self.step, self.news = step, f"{pace_text(left, steps_per_second)}."
        if time.monotonic() >= self._due:
            self._write_and_wait()

    def on_failure(self, place: int) -> None:
        """Says that a run has diverged."""
        self.diverged.add(place)
        self.write()

    def on_end(self, status: str) -> None:
        """Says why runs end that have not finished; what comes after finished ones is not ours."""
        error = sys.exception()
        if status == "interrupted":
            self.write(
                f"The {self.what} was interrupted; the command that started it takes it up again."
            )
        elif isinstance(error, DivergedError):
            self.write(f"The {self.what} has ended, for a run has diverged: {error}")
        elif error is not None:
            self.write(f"The {self.what} has failed: {in_a_line(error)}.")

    def _write_and_wait(self) -> None:
        started = time.monotonic()
        self.write()
        took = time.monotonic() - started
        self._due = started + took + max(_LEAST_WAIT, _SHARE * took)
