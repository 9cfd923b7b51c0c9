"""A study's `report.html` while its runs go on."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mhd_jax.runs import comparison_curves, page, unfinished
from mhd_jax.runs.callbacks.live_page import LivePage
from mhd_jax.runs.decoration import decoration
from mhd_jax.runs.finished import read_history
from mhd_jax.runs.records import read_json
from mhd_jax.studies import over_seeds
from mhd_jax.training.metrics import SYMBOLS, declared_head

_MOST_NAMED = 4  # rows that the title names


class _Finished(NamedTuple):
    """What the page shows of a finished run; the metrics by head."""

    seed: int
    reached: Mapping[str, Mapping[str, float]]
    history: Sequence[Mapping[str, Any]]


class LiveStudy(LivePage):
    """Writes the `report.html` of several runs side by side while they go on, as `LiveReport` does.

    The page says how many runs have finished, which ones run at what step, and what the finished ones
    have reached; curves are of the runs of each row that have come furthest. The study's own page
    takes its place; a study that is cut leaves it, which says so, also where it is cut between two
    runs, if they are inside of a `with` block of the watcher.
    """

    what = "study"

    def __init__(
        self, folder: pathlib.Path, rows: Mapping[str, Sequence[pathlib.Path]], note: str = ""
    ):
        """Makes a watcher of a study's runs.

        Args:
          folder: the study's folder, which gets the page.
          rows: the folders of the runs of each row, by its name.
          note: a sentence about where these runs stand in a longer study.
        """
        super().__init__()
        self._folder, self._rows, self._note = folder, rows, note
        self._finished: dict[pathlib.Path, _Finished] = {}
        self._lost: set[pathlib.Path] = set()  # folders of runs that have diverged

    def __enter__(self) -> LiveStudy:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Says why a study ends between two runs, which no run's end does."""
        if error is not None and not isinstance(error, GeneratorExit):
            self._end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")

    def interrupt(self) -> None:
        """Says that the study was interrupted."""
        self._end("interrupted")

    def _end(self, status: str) -> None:
        if self.runs:
            with decoration(f"the page of {self._folder}", "All else is there."):
                self.on_end(status)

    def write(self, ended: str | None = None) -> None:
        """Writes the page."""
        every = [folder for folders in self._rows.values() for folder in folders]
        for run in set(every) - self._finished.keys():
            if (run / "summary.json").exists():
                summary = read_json(run / "summary.json")
                reached = {metric: summary[metric] for metric in SYMBOLS}
                history = read_history(run / "metrics.jsonl")
                self._finished[run] = _Finished(summary["seed"], reached, history)
        folders = [run.folder for run in self.runs if run.folder is not None]
        self._lost |= {folders[place] for place in self.diverged}
        running = [run for run in folders if run not in self._lost | self._finished.keys()]
        steps = self.runs[0].settings["steps"]
        done = f"{len(self._finished):,} of {len(every):,} runs have finished"
        names = list(self._rows)
        named = ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)} cases"
        lost = f"Runs that have diverged: {len(self._lost)}." if self._lost else ""
        at = f"step {self.step:,} of {steps:,}"
        now = f"Runs that go on: {len(running)}, at {at}. {self.news}" if running else ""
        taken = len(self._finished) + len(self._lost) + len(running) * self.step / steps
        unfinished.write_study(
            self._folder,
            title=f"{done}: {named}",
            sentences=["" if ended else now, lost, self._note],
            share=taken / len(every),
            table=self._table(running, at),
            curves=self._curves(),
            environments=[read_json(folders[0] / "config.json").get("environment", {})],
            ended=ended,
        )

    def _curves(self) -> dict[str, Any] | None:
        """Returns the accuracies of each row over its steps; None before the first evaluation.

        They are of the runs of a row with the most evaluations, which are at equal steps.
        """
        histories = {run: (each.seed, each.history) for run, each in self._finished.items()}
        for run in self.runs:
            if run.folder is not None:
                histories.setdefault(run.folder, (run.settings["seed"], list(run.history)))
        found = {}
        for name, runs in self._rows.items():
            known = dict(histories[run] for run in runs if run in histories and histories[run][1])
            most = max(map(len, known.values()), default=0)
            found[name] = {seed: each for seed, each in known.items() if len(each) == most}
        found = {name: each for name, each in found.items() if each}
        return comparison_curves.of(found, None) if found else None

    def _table(self, running: Sequence[pathlib.Path], at: str) -> page.Table:
        """Returns the rows: how many runs have finished, and what these have reached."""
        lines = []
        for name, runs in self._rows.items():
            finished = [self._finished[run].reached for run in runs if run in self._finished]
            reports = [
                page.link(self._folder, run, run.name.replace("_", " "))
                for run in runs
                if (run / "report.html").exists()
            ]
            cells = [page.spread(_declared(finished, metric)) for metric in SYMBOLS]
            now = page.Cell(at if set(runs) & set(running) else "")
            count = page.Cell(f"{len(finished)} of {len(runs)}", len(finished), True)
            lines.append([page.Cell(name), count, now, *cells, page.Cell("", links=reports)])
        return page.Table(
            "Runs that have finished: mean over clients, ± standard deviation over seeds",
            ("row", "finished", "now", *SYMBOLS.values(), "reports"),
            lines,
        )


def _declared(summaries: Sequence[Mapping[str, Any]], metric: str) -> over_seeds.Statistic:
    """Returns a metric's mean and deviation over runs, of the heads by which it judges them."""
    return over_seeds.spread(
        summary[metric][declared_head(metric, list(summary[metric]))] for summary in summaries
    )
