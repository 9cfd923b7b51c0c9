"""What a run tells those who watch it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.runs.decoration import decoration


@dataclasses.dataclass(frozen=True)
class WatchedRun:
    """A run as its watchers know it.

    Attributes:
      settings: what decides its results, as in `config.json`.
      folder: its workdir, if it has one.
      history: its evaluations so far, as in `metrics.jsonl`; it grows while the run goes on.
    """

    settings: Mapping[str, Any]
    folder: pathlib.Path | None
    history: Sequence[Mapping[str, Any]] = ()


class Callback:
    """Watches a run. Override what you need; a plain function of the record works as well.

    Attributes:
      may_fail: whether an error in it is but a warning, after which it is told no more of these
        runs. So it is with trackers and the progress bar; a `ConfigError` of `on_start` still
        refuses the run. By default errors end it.
    """

    may_fail: bool = False

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Runs start, or resume, at `step`: one, or several that go together.

        The program is about to be compiled. All that follows up to `on_end` is about these.
        """

    def on_compiled(self, seconds: float) -> None:
        """The training program is compiled."""

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Training has reached `step`, at that rate for all runs together."""

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """An evaluation is done; `record` is its line of `metrics.jsonl`, and its run's last."""

    def on_failure(self, place: int) -> None:
        """One of the runs has diverged, and the others go on; `place` is its own in `on_start`."""

    def on_end(self, status: str) -> None:
        """The runs are over: "finished", "interrupted" or "failed"."""


class _Function(Callback):
    def __init__(self, function: Callable[[Mapping[str, Any]], None]):
        self._function = function

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        self._function(record)


class Callbacks(Callback):
    """Several watchers as one."""

    def __init__(self, callbacks: Sequence[Callback | Callable[[Mapping[str, Any]], None]]):
        self._all = [c if isinstance(c, Callback) else _Function(c) for c in callbacks]
        self._silent: set[int] = set()  # places of those that have failed in these runs

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Tells all."""
        self._silent.clear()
        self._tell(lambda callback: callback.on_start(runs, step), refusals=(ConfigError,))

    def on_compiled(self, seconds: float) -> None:
        """Tells all."""
        self._tell(lambda callback: callback.on_compiled(seconds))

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Tells all."""
        self._tell(lambda callback: callback.on_steps(step, steps_per_second))

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """Tells all."""
        self._tell(lambda callback: callback.on_evaluation(record))

    def on_failure(self, place: int) -> None:
        """Tells all."""
        self._tell(lambda callback: callback.on_failure(place))

    def on_end(self, status: str) -> None:
        """Tells all."""
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
