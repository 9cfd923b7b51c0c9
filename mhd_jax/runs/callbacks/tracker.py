"""Base classes of experiment trackers, which log every number of each evaluation, by run."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from mhd_jax.runs.callbacks.base import Callback, WatchedRun
from mhd_jax.runs.settings import flat

_MOST_CLIENTS = 64  # with more clients, numbers of single clients are not logged


class Log(abc.ABC):
    """A log of one run's numbers.

    Attributes:
      last: the last step that is already logged.
    """

    last: int

    @abc.abstractmethod
    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds the numbers of an evaluation."""

    @abc.abstractmethod
    def close(self, status: str) -> None:
        """Closes the log; `status` as for `Callback.on_end`."""


class Tracker(Callback, abc.ABC):
    """Base class of trackers, with a separate log for each of several joint runs.

    A log gets each evaluation once, however often the run is interrupted and resumed.
    """

    may_fail = True

    def __init__(self) -> None:
        self._logs: list[tuple[WatchedRun, Log | None]] = []  # None after a run failed

    @abc.abstractmethod
    def open(self, run: WatchedRun, step: int) -> Log:
        """Opens the log of a run that starts or resumes at `step`."""

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Opens a log for each run and writes the evaluations that the log lacks."""
        self._logs = []  # drops logs that an error left open
        for run in runs:
            self._logs.append((run, self.open(run, step)))
        self._catch_up()

    def on_evaluation(self, record: Mapping[str, Any], view: WatchedRun) -> None:
        """Writes the evaluations that the logs lack."""
        self._catch_up()

    def on_failure(self, place: int) -> None:
        """Closes the log of the run that failed."""
        run, log = self._logs[place]
        self._logs[place] = (run, None)
        if log is not None:
            log.close("failed")

    def on_end(self, status: str) -> None:
        """Closes the logs that are still open."""
        while self._logs:
            _, log = self._logs.pop()
            if log is not None:
                log.close(status)

    def _catch_up(self) -> None:
        for run, log in self._logs:
            if log is None:
                continue
            missing = len(run.history)
            while missing and run.history[missing - 1]["step"] > log.last:
                missing -= 1
            for i, record in enumerate(run.history[missing:], missing):
                before = run.history[i - 1] if i else {"step": 0, "seconds": 0.0}
                seconds = max(record["seconds"] - before["seconds"], 1e-9)
                rate = (record["step"] - before["step"]) / seconds
                log.write(record["step"], {**numbers_of(record), "steps_per_second": rate})
                log.last = record["step"]


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of an evaluation by name, such as "beta_sh/aux_1" or "train/loss".

    Names of single clients' numbers end in the client: "per_client/beta_sh/main/3". Unknown numbers
    (None), single clients' numbers if there are more than 64 clients, and their accuracies by class
    are left out.
    """
    found: dict[str, float] = {}
    for name, value in flat(record, "/").items():
        if isinstance(value, list):
            if len(value) <= _MOST_CLIENTS:
                known = {i: x for i, x in enumerate(value) if isinstance(x, int | float)}
                found.update({f"{name}/{i}": x for i, x in known.items()})
        elif value is not None and name not in ("step", "seed"):
            found[name] = value
    return found
