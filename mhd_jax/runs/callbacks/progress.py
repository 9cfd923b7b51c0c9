"""Display of a run's progress in a terminal, a notebook or a log."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mhd_jax.runs.callbacks.base import Callback, WatchedRun
from mhd_jax.runs.consoles import Console
from mhd_jax.training.metrics import SYMBOLS, first_and_last

_MOST_LINES = 8
_LONGEST_LABEL = 30  # characters; a longer label stands above the bar
_LONGEST_SILENCE = 60  # seconds between printed lines


def is_interactive() -> bool:
    """Returns whether this process runs in a terminal or a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


class ShowProgress(Callback):
    """Shows the rate, the time left and the accuracies of the main and the last head.

    A terminal shows a progress bar, a notebook lines that are updated in place. Elsewhere a line is
    printed for each evaluation, and after a minute without one.
    """

    may_fail = True

    def __init__(self, label: str | None = None):
        """Makes a display that starts with `label`, by default the algorithm's name."""
        self._label = label
        self._console = Console(stderr=True)
        self._bar: _Bar | None = None
        self._task = TaskID(0)
        self._cell: Any = None  # the display handle in a notebook
        self._steps = 0
        self._runs: Sequence[WatchedRun] = ()
        self._state = ""
        self._said_at = 0.0

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Opens the display."""
        settings = runs[0].settings
        self._steps, self._runs = settings["steps"], runs
        self._label = self._label or settings["algorithm"]
        self._state = ""
        if _in_notebook():
            from IPython.display import display  # installed, as this is a notebook

            self._cell = display({"text/plain": ""}, raw=True, display_id=True)
        elif self._console.is_terminal:
            long = len(self._label) > _LONGEST_LABEL
            self._bar = _Bar(self._console, above=self._label if long else None)
            self._task = self._bar.add_task(
                "" if long else self._label, total=self._steps, completed=step, rate="compiling"
            )
            self._bar.start()
        self._say(f"from step {step} of {self._steps}, compiling")

    def on_compiled(self, seconds: float) -> None:
        """Shows the time of compilation."""
        self._say(f"compiled in {seconds:.1f} s")

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Updates the bar, the rate and the time left."""
        rate = rate_text(steps_per_second)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, rate=rate)
        pace = pace_text(self._steps - step, steps_per_second)
        self._state = f"step {step} of {self._steps}, {pace}"
        self._refresh()
        if self._bar is None and time.monotonic() - self._said_at >= _LONGEST_SILENCE:
            self._say(self._state)

    def on_evaluation(self, record: Mapping[str, Any], view: WatchedRun) -> None:
        """Shows the accuracies."""
        if self._bar is not None:
            self._bar.below = self._accuracies()
        self._say(f"{self._state}, {self._accuracy(view)}")

    def on_end(self, status: str) -> None:
        """Closes the bar, and says which runs were stopped, and why."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        stops = [
            f"{self._prefix(run)}stopped at step {run.step} of {self._steps}: {run.stopping.reason}"
            for run in self._runs
            if run.stopping is not None and run.step < self._steps
        ]
        if stops and len(self._runs) == 1:
            self._state = stops[0]
        for line in stops:
            self._say(line)

    def _say(self, state: str) -> None:
        """Prints a line, or updates the notebook's; a bar needs no lines."""
        self._said_at = time.monotonic()
        if self._cell is not None:
            self._refresh()
        elif self._bar is None:
            line = f"{self._label}: {state}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _refresh(self) -> None:
        """Updates the notebook's lines."""
        if self._cell is not None:
            lines = [f"{self._label}: {self._state or 'compiling'}", *self._accuracies()]
            self._cell.update({"text/plain": "\n".join(lines)}, raw=True)

    def _accuracies(self) -> list[str]:
        """Returns a line of accuracies for each run, at most `_MOST_LINES`."""
        return [self._accuracy(run) for run in self._runs[:_MOST_LINES] if run.history]

    def _accuracy(self, run: WatchedRun) -> str:
        return self._prefix(run) + accuracy_line(run.history[-1])

    def _prefix(self, run: WatchedRun) -> str:
        """Returns what distinguishes a run from the joint ones: its folder's path, or its seed."""
        if len(self._runs) == 1:
            return ""
        folders = [run.folder for run in self._runs if run.folder is not None]
        if run.folder is None:
            return f"seed {run.settings['seed']}: "
        return f"{run.folder.relative_to(os.path.commonpath(folders))}: "


class _Bar(Progress):
    """A progress bar with lines above and below it, as narrow terminals have no room beside it."""

    def __init__(self, console: Console, above: str | None):
        self._above = above
        self.below: Sequence[str] = ()
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yields the line above, the bar, and the lines below."""
        if self._above is not None:
            yield _line(self._above)
        yield self.make_tasks_table(self.tasks)
        yield from (_line(f"  {line}") for line in self.below)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def rate_text(steps_per_second: float) -> str:
    """Returns a rate as text, such as "250 steps/s", "2.5 steps/s" or "4.0 s/step"."""
    if steps_per_second < 1:
        return f"{1 / steps_per_second:.1f} s/step"
    return f"{steps_per_second:,.{0 if steps_per_second >= 10 else 1}f} steps/s"


def pace_text(steps_left: int, steps_per_second: float) -> str:
    """Returns a rate and the time left as text, such as "250 steps/s, 0:01:30 left"."""
    left = datetime.timedelta(seconds=round(steps_left / steps_per_second))
    return f"{rate_text(steps_per_second)}, {left} left"


def accuracy_line(record: Mapping[str, Any]) -> str:
    """Returns β_sh and β_priv of the main and the last head as a line of text."""
    parts = []
    for metric, symbol in SYMBOLS.items():
        values = ", ".join(
            f"{head} {record[metric][head]:.3f}"
            for head in first_and_last(list(record[metric]))
            if record[metric][head] is not None
        )
        parts.append(f"{symbol} {values}")
    return "  ".join(parts)
