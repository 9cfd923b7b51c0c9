"""The events of a run, as the methods of `Callback`, and the data that callbacks get."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs.decoration import decoration


@dataclasses.dataclass(frozen=True)
class WatchedRun:
    """The data of a run that callbacks can read.

    Attributes:
      settings: the settings that determine the run's results, as in `config.json`.
      folder: the run folder; None for a run without a workdir.
      history: the evaluations so far, as in `metrics.jsonl`; it grows while the run goes on.
    """

    settings: Mapping[str, Any]
    folder: pathlib.Path | None
    history: Sequence[Mapping[str, Any]] = ()


class Callback:
    """Base class of objects that watch a run.

    Override the methods you need; a plain function of the evaluation's record works as well.

    Attributes:
      may_fail: whether an error in the callback only causes a warning, after which it gets no more
        events of these runs, as for trackers and the progress bar; a `ConfigError` of `on_start`
        still refuses the run. By default an error ends the run.
    """

    may_fail: bool = False

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Called when a run, or several joint runs, start or resume at `step`, before compilation.

        All events up to `on_end` are about these runs.
        """

    def on_compiled(self, seconds: float) -> None:
        """Called when the training program has been compiled."""

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Called when training has reached `step`; the rate is that of all joint runs."""

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """Called after an evaluation; `record` is its line of `metrics.jsonl`, its run's last."""

    def on_failure(self, place: int) -> None:
        """Called when one of several runs diverges; `place` is its index in `on_start`'s `runs`."""

    def on_end(self, status: str) -> None:
        """Called when the runs end; `status` is "finished", "interrupted" or "failed"."""


class _Function(Callback):
    def __init__(self, function: Callable[[Mapping[str, Any]], None]):
        self._function = function

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        self._function(record)


class Callbacks(Callback):
    """Several callbacks combined into one, which passes every event on to all of them."""

    def __init__(self, callbacks: Sequence[Callback | Callable[[Mapping[str, Any]], None]]):
        self._all = [c if isinstance(c, Callback) else _Function(c) for c in callbacks]
        self._silent: set[int] = set()  # indices of callbacks that have failed in these runs

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Calls `on_start` of every callback, also of those that failed in earlier runs."""
        self._silent.clear()
        self._tell(lambda callback: callback.on_start(runs, step), refusals=(ConfigError,))

    def on_compiled(self, seconds: float) -> None:
        """Calls `on_compiled` of every callback."""
        self._tell(lambda callback: callback.on_compiled(seconds))

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Calls `on_steps` of every callback."""
        self._tell(lambda callback: callback.on_steps(step, steps_per_second))

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """Calls `on_evaluation` of every callback."""
        self._tell(lambda callback: callback.on_evaluation(record))

    def on_failure(self, place: int) -> None:
        """Calls `on_failure` of every callback."""
        self._tell(lambda callback: callback.on_failure(place))

    def on_end(self, status: str) -> None:
        """Calls `on_end` of every callback."""
        self._tell(lambda callback: callback.on_end(status))

    def _tell(
        self, tell: Callable[[Callback], None], refusals: tuple[type[Exception], ...] = ()
    ) -> None:
        for place, callback in enumerate(self._all):
            if not callback.may_fail:
                tell(callback)
            elif place not in self._silent:
                told, then = False, "It is told no more of this run, which goes on without it."
                with decoration(type(callback).__name__, then, but=refusals):
                    tell(callback)
                    told = True
                if not told:
                    self._silent.add(place)
