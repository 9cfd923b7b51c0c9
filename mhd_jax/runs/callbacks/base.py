"""The events of a run, as the methods of `Callback`, and the data that callbacks get."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mhd_jax.core.calls import takes
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import PyTree, State
from mhd_jax.runs.decoration import decoration

Record = Mapping[str, Any]


class Present(Protocol):
    """What a run can do at its present step; see `mhd_jax.engine.result.Result`."""

    @property
    def state(self) -> State | None:
        """The state of all clients."""

    def predict(self, inputs: PyTree) -> np.ndarray:
        """Returns logits [K, N, H, C] of all clients."""

    def client(self, number: int) -> Any:
        """Returns one client."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why a run is to stop, and the step that was its best, if there is one."""

    reason: str
    best_step: int | None = None


@dataclasses.dataclass
class WatchedRun:
    """A run as callbacks see it: `on_start` gets it, and `on_evaluation` as its `view`.

    Attributes:
      settings: the settings that determine the run's results, as in `config.json`.
      folder: the run folder; None for a run without a workdir.
      history: the evaluations so far, as in `metrics.jsonl`; it grows while the run goes on.
      scores: what evaluations measure on the validation set, like "beta_sh/main"; none without one.
      terms: what training reports, like "train/loss".
      present: returns the run at its present step; None between evaluations.
      stopping: set by `stop`; None while nobody has stopped the run.
    """

    settings: Mapping[str, Any]
    folder: pathlib.Path | None
    history: Sequence[Record] = ()
    scores: Sequence[str] = ()
    terms: Sequence[str] = ()
    present: Callable[[], Present] | None = None
    stopping: Stop | None = None

    @property
    def step(self) -> int:
        """The step of the last evaluation, 0 before the first."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def state(self) -> State:
        """A copy of the run's state at the evaluation."""
        state = self._now().state
        assert state is not None
        return state

    def predict(self, inputs: PyTree) -> np.ndarray:
        """Returns logits [K, N, H, C] of all clients, see `Result.predict`."""
        return self._now().predict(inputs)

    def client(self, number: int) -> Any:
        """Returns one client, see `Result.client`."""
        return self._now().client(number)

    def stop(self, reason: str = "a callback", best_step: int | None = None) -> None:
        """Stops the run at its present step, where it counts as finished.

        A run that has taken no step cannot be stopped, but refused with a `ConfigError`.

        Args:
          reason: the text of `summary["stopped_because"]`.
          best_step: the step with the best parameters, for `summary["best_step"]`.
        """
        if self.stopping is None:
            self.stopping = Stop(str(reason), best_step)

    def _now(self) -> Present:
        if self.present is None:
            raise ConfigError(
                "a run's state is there while it is evaluated; ask for it in on_evaluation."
            )
        return self.present()


class Callback:
    """Base class of objects that watch a run.

    Override the methods you need; a plain function of the evaluation's record, or of the record and
    the view, works as well. `StopIteration` from either stops the run, with its text as the reason.

    Attributes:
      may_fail: whether an error in the callback only causes a warning, after which it gets no more
        events of these runs, as for trackers and the progress bar; a `ConfigError` of `on_start`
        still refuses the run. By default an error ends the run.
    """

    may_fail: bool = False

    def check(self, runs: Sequence[WatchedRun]) -> None:
        """Called before anything is written or trained; a `ConfigError` refuses the runs."""

    def on_start(self, runs: Sequence[WatchedRun], step: int) -> None:
        """Called when a run, or several joint runs, start or resume at `step`, before compilation.

        All events up to `on_end` are about these runs.
        """

    def on_compiled(self, seconds: float) -> None:
        """Called when the training program has been compiled."""

    def on_steps(self, step: int, steps_per_second: float) -> None:
        """Called when training has reached `step`; the rate is that of all joint runs."""

    def on_evaluation(self, record: Record, view: WatchedRun) -> None:
        """Called after an evaluation.

        Args:
          record: its line of `metrics.jsonl`, the last of `view.history`.
          view: the run that was evaluated, at this step. A method without this argument works too.
        """

    def on_failure(self, place: int) -> None:
        """Called when one of several runs diverges; `place` is its index in `on_start`'s `runs`."""

    def on_end(self, status: str) -> None:
        """Called when the runs end.

        `status` is "finished", also for runs that were stopped, "interrupted" or "failed".
        """


class _Function(Callback):
    def __init__(self, function: Callable[..., None]):
        self.on_evaluation = function  # type: ignore[method-assign]


class Callbacks(Callback):
    """Several callbacks combined into one, which passes every event on to all of them."""

    def __init__(self, callbacks: Sequence[Callback | Callable[..., None]]):
        for each in callbacks:
            _require_callback(each)
        self._all = [c if isinstance(c, Callback) else _Function(c) for c in callbacks]
        self._silent: set[int] = set()  # indices of callbacks that have failed in these runs

    def check(self, runs: Sequence[WatchedRun]) -> None:
        """Calls `check` of every callback."""
        for callback in self._all:
            callback.check(runs)

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

    def on_evaluation(self, record: Record, view: WatchedRun) -> None:
        """Calls `on_evaluation` of every callback; `StopIteration` stops the run."""

        def tell(callback: Callback) -> None:
            seen = (record, view) if _takes_view(callback.on_evaluation) else (record,)
            try:
                callback.on_evaluation(*seen)
            except StopIteration as stop:
                view.stop(str(stop) or "StopIteration of a callback")

        self._tell(tell)

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


def _require_callback(given: Any) -> None:
    """Raises `ConfigError` unless something can watch a run."""
    if isinstance(given, type):
        raise ConfigError(
            f"{given.__name__} is a class, and a callback an object: give {given.__name__}(...)."
        )
    if not (isinstance(given, Callback) or callable(given)):
        raise ConfigError(
            f"a callback is a function of the record, or a mhd_jax.Callback, not {given!r}."
        )
    function = given.on_evaluation if isinstance(given, Callback) else given
    if not takes(function, *(("record", "view") if _takes_view(function) else ("record",))):
        raise ConfigError(
            "a callback takes the record, or the record and the view, not "
            f"{inspect.signature(function)}."
        )


def _takes_view(function: Callable[..., Any]) -> bool:
    """Returns whether a function takes the view: by its name, or as a second required argument."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [
        p
        for p in parameters.values()
        if p.kind in positional and p.default is inspect.Parameter.empty
    ]
    return "view" in parameters or len(required) > 1
