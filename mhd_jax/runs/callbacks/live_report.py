"""A run's `report.html` while the run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from mhd_jax.core.errors import DivergedError, in_a_line
from mhd_jax.runs.callbacks.base import Callback, WatchedRun
from mhd_jax.runs.callbacks.progress import pace_text

_LEAST_WAIT = 10.0  # seconds from one writing to the next
_SHARE = 20  # times what the last writing took, that the next one waits


class LiveReport(Callback):
    """Writes `report.html` while runs with folders go on, and says there how far they are.

    The page reloads itself until the run has finished, and its report takes the page's place. A run
    that is interrupted or diverges leaves the page, which says so. Pages are written at most every
    10 seconds, and take at most a twentieth of the time; one that cannot be written is a warning.
    """

    may_fail = True

    def __init__(self) -> None:
        self._runs: Sequence[WatchedRun] = ()
        self._diverged: dict[int, str] = {}  # sentences by the run's place
        self._step = 0
        self._news = ""
        self._due = 0.0

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Writes the first page."""
        self._runs, self._diverged, self._step = runs, {}, step
        self._news = "The program is being compiled."
        self._write_all()

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Writes the pages anew if it is time."""
        left = self._runs[0].settings["steps"] - step
        self._step, self._news = step, f"{pace_text(left, steps_per_second)}."
        if time.monotonic() >= self._due:
            self._write_all()

    def on_failure(self, place: int) -> None:
        """Says that a run has diverged."""
        self._diverged[place] = "The run has diverged: a client's loss is no longer finite."
        self._write(place)

    def on_end(self, status: str) -> None:
        """Says why runs end that have not finished."""
        if status == "finished":
            return  # the report of the finished run comes next
        ended = _why(status, sys.exception())
        for place in set(range(len(self._runs))) - self._diverged.keys():
            self._write(place, ended)

    def _write_all(self) -> None:
        started = time.monotonic()
        for place in range(len(self._runs)):
            self._write(place)
        took = time.monotonic() - started
        self._due = started + took + max(_LEAST_WAIT, _SHARE * took)

    def _write(self, place: int, ended: str | None = None) -> None:
        run = self._runs[place]
        ended = self._diverged.get(place, ended)
        if run.folder is not None:
            from mhd_jax.runs import unfinished  # imported late, as few programs write pages

            news = "" if ended else self._news
            unfinished.write(run.folder, run.history, self._step, news=news, ended=ended)


def _why(status: str, error: BaseException | None) -> str:
    """Returns why a run ended, in a sentence."""
    if status == "interrupted":
        return "The run was interrupted; the command that started it takes it up again."
    if isinstance(error, DivergedError):
        return f"The run has diverged: {error}"
    return f"The run has failed: {in_a_line(error) if error else 'see what it printed'}."
