"""A run's progress for who watches the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mhd_jax.callbacks.base import Callback, WatchedRun


def is_interactive() -> bool:
    """Whether someone watches: a terminal, or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class ShowProgress(Callback):
    """A bar with rate, time left and the main accuracies; plain lines where nobody watches live."""

    def __init__(self, label: str | None = None):
        """`label` stands before the bar; by default the algorithm's name."""
        self._label = label
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._rate = 0.0
        self._steps = 0

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Opens the bar."""
        self._steps = runs[0].settings["steps"]
        self._label = self._label or runs[0].settings["algorithm"]
        if not is_interactive():
            self._print(f"{self._label}: from step {step} of {self._steps}, compiling")
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[accuracy]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(
            self._label, total=self._steps, completed=step, rate="compiling", accuracy=""
        )
        self._bar.start()

    def on_compiled(self, seconds: float) -> None:
        """Notes how long it took."""
        if self._bar is None:
            self._print(f"{self._label}: compiled in {seconds:.1f} s")

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Moves the bar."""
        self._rate = steps_per_second
        if self._bar is not None:
            self._bar.update(self._task, completed=step, rate=f"{steps_per_second:,.0f} steps/s")

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """Shows the accuracies."""
        accuracy = f"seed {record['seed']}: {accuracy_line(record)}"
        if self._bar is not None:
            self._bar.update(self._task, accuracy=accuracy)
            return
        left = (self._steps - record["step"]) / self._rate if self._rate else 0.0
        self._print(
            f"{self._label}: step {record['step']} of {self._steps}, {self._rate:,.0f} steps/s, "
            f"{left:.0f} s left, {accuracy}"
        )

    def on_end(self, status: str) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def accuracy_line(record: Mapping[str, Any]) -> str:
    """β_sh and β_priv of the main and the last head in one line."""
    heads = list(record["beta_sh"])
    shown = heads[:1] if len(heads) == 1 else [heads[0], heads[-1]]
    parts = []
    for metric, symbol in (("beta_sh", "β_sh"), ("beta_priv", "β_priv")):
        values = ", ".join(
            f"{head} {record[metric][head]:.3f}"
            for head in shown
            if record[metric][head] is not None
        )
        parts.append(f"{symbol} {values}")
    return "  ".join(parts)
