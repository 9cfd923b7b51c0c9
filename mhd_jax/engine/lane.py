"""`Lane`: the host's side of one run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError, DivergedError
from mhd_jax.core.types import State, Terms
from mhd_jax.core.warned import warn
from mhd_jax.engine.answers import Answers
from mhd_jax.engine.faults import Tally
from mhd_jax.engine.host import HostSettings
from mhd_jax.engine.loading import keep_models
from mhd_jax.engine.result import Result
from mhd_jax.engine.run import Run
from mhd_jax.engine.schedule import Plan
from mhd_jax.engine.steps import Carry
from mhd_jax.engine.summary import executed, record_of, summarize
from mhd_jax.runs import report_process
from mhd_jax.runs.accuracies import METRICS
from mhd_jax.runs.callbacks import WatchedRun
from mhd_jax.runs.callbacks.base import Present
from mhd_jax.runs.checkpoints import best
from mhd_jax.runs.folder import RunFolder
from mhd_jax.training.metrics import head_names


@dataclasses.dataclass
class Lane:
    """The host's side of one run: its folder, its history, and its seconds of training."""

    run: Run
    folder: RunFolder | None
    plan: Plan
    host: HostSettings
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    started_at: int = 0
    compile_seconds: float = 0.0  # the run's share, like `seconds`
    runs_at_once: int = 1
    reported: dict[int, int] = dataclasses.field(default_factory=dict)  # clients in quarantine
    failure: DivergedError | None = None
    stopped: Carry | None = None  # where a callback or Ctrl-C has stopped the run
    interrupted: bool = False  # whether Ctrl-C came, and its answer is the result of what there is
    summary: dict[str, Any] | None = None  # of a run that has ended well
    best_score: float = -math.inf
    saved_at: int | None = None  # the step of the last checkpoint of this process
    per_class: tuple[int, np.ndarray] | None = None  # of the last evaluation, and its step

    @functools.cached_property
    def view(self) -> WatchedRun:
        """The run as callbacks see it."""
        folder = None if self.folder is None else self.folder.path
        metrics = [*METRICS, *self.host.own_metrics.functions] if self.run.validation else []
        heads = head_names(self.run.algorithm.num_heads)
        scores = [f"{metric}/{head}" for metric in metrics for head in heads]
        terms = [f"train/{name}" for name in self.run.carry.sums]
        return WatchedRun(self.run.settings, folder, self.history, scores, terms)

    @property
    def has_ended(self) -> bool:
        """Whether the run takes no more steps, because it has diverged or was stopped."""
        return self.failure is not None or self.stopped is not None

    @contextlib.contextmanager
    def seen_at(self, carry: Carry) -> Iterator[WatchedRun]:
        """Lets callbacks look at the run's clients inside the block; copies, as steps go on."""

        @functools.lru_cache(1)
        def present() -> Present:
            if jax.process_count() > 1:  # which all would have to ask, while only the first is told
                raise ConfigError(
                    "a view shows a run's clients on one process alone; this run has "
                    f"{jax.process_count()}, so look at them by mhd.load when it has finished."
                )
            state = jax.tree.map(jnp.copy, carry.state)
            num_clients = {"num_clients": self.run.everyone.num_clients}
            return Result(num_clients, self.history, state, _answers=self._answers)

        self.view.present = present
        try:
            yield self.view
        finally:
            self.view.present = None

    def stop(self, carry: Carry, reason: str) -> None:
        """Ends the run at this step, as if it had been its last: evaluated, saved and summarized.

        It has finished then, whatever becomes of the runs that share its program.
        """
        step = int(carry.state.step)
        self.view.stop(reason)
        if not self.history or self.history[-1]["step"] != step:
            self.record(carry)
        if self.saved_at != step:
            self.save(step, carry, due=True)
        self.stopped = carry
        self.run = dataclasses.replace(self.run, steps=step)
        self.summary = self._concluded(carry)

    @property
    def starts(self) -> list[int]:
        """The steps from which the run can start or resume, ascending."""
        if self.folder is None:
            return [0]
        checkpoints = self.folder.checkpoints
        return (checkpoints.whole_steps() if self.host.fall_back else checkpoints.steps) or [0]

    def begin(self, step: int) -> Carry:
        """Returns the carry at `step`, one of `starts`, and opens the folder there."""
        self.started_at = step
        if self.folder is None:
            return self.run.start()
        self.folder.create(self.run.everyone)
        if step:
            carry, self.seconds = self.folder.restore(self.run.carry, step, self.run.start)
            self.folder.warn_of_another_environment(step, self.run.carry)
        else:
            carry = self.run.start()
        self.history, self.saved_at = self.folder.rewind(step), step or None
        scores = self.folder.checkpoints.scores().values()
        self.best_score = max((score for score in scores if score is not None), default=-math.inf)
        self.view.history = self.history
        return carry

    def read(self) -> Result:
        """Returns the result of a finished run from its folder, and writes a missing report."""
        assert self.folder is not None
        self.history = self.folder.history()
        summary = self.folder.summary()
        self.run = dataclasses.replace(self.run, steps=summary["steps"])
        state = self._saved_state(self.run.steps)
        if not self.folder.has_report:
            self._report(self.folder, summary)
        return self.result(summary, state, self.run.steps)

    def _best(self, final: State | None) -> State | None:
        """Returns the state of the checkpoint kept as the best one; None if none was kept as such."""
        if self.folder is None or not self.host.keep_best:
            return None
        step = best(self.folder.checkpoints.scores())
        if step is None:  # the run has finished without `keep_best`
            return None
        return final if step == self.run.steps else self._saved_state(step)

    def _saved_state(self, step: int) -> State | None:
        """Returns the state of the checkpoint at `step`; None if there is none."""
        if self.folder is None or step not in self.starts:
            return None
        return self.folder.restore(self.run.carry, step, self.run.start)[0].state

    def save(self, step: int, carry: Carry, *, due: bool) -> None:
        """Saves a checkpoint if one is due, or if this step's evaluation is the best so far."""
        if self.folder is None:
            return
        score = None
        if self.host.keep_best and self.history and self.history[-1]["step"] == step:
            score = list(self.history[-1]["validation"]["beta_sh"].values())[-1]  # the last head's
        is_best = score is not None and score > self.best_score
        if score is not None and is_best:
            self.best_score = score
        if due or is_best:
            self.saved_at = step
            self.folder.save(step, carry, self.seconds, len(self.history), score)

    def record(self, carry: Carry) -> dict[str, Any]:
        """Evaluates, and adds the record to the history and the folder."""
        per_class = self._per_class(carry)
        record = record_of(self.run, carry, per_class, self.seconds, self.host.own_metrics)
        self.history.append(record)
        if self.folder is not None:
            self.folder.append(record)
        return record

    def finish(self, carry: Carry) -> Result:
        """Writes the summary, unless the run was stopped before, and the report; returns the result."""
        carry = self.stopped or carry
        if self.summary is None:
            self.summary = self._concluded(carry)
        if self.folder is not None:
            self._report(self.folder, self.summary)
        return self.result(self.summary, carry.state, self.started_at)

    def _concluded(self, carry: Carry) -> dict[str, Any]:
        """Returns the summary after writing it, which marks the run as finished."""
        if self.folder is not None:
            self.folder.wait()  # the last checkpoint may be the best one
        per_class = self._per_class(carry)
        summary = summarize(
            self.run, carry, per_class, self.history, self.compile_seconds, self.seconds
        )
        summary |= self._ending()
        summary["execution"] = executed(self.run, self.runs_at_once)
        if self.folder is not None:
            if multihost.is_main():
                keep_models(self.folder.path, carry.state, self._answers)
            self.folder.finish(summary)
        return summary

    def _per_class(self, carry: Carry) -> np.ndarray:
        """Returns accuracies on test samples by class, [K, H, C], evaluated once at a step."""
        step = int(carry.state.step)
        if self.per_class is None or self.per_class[0] != step:
            self.per_class = step, self.run.per_class_accuracy(carry.state, self.run.test)
        return self.per_class[1]

    def _ending(self) -> dict[str, Any]:
        """Returns why the run was stopped, for its summary, and the step that was its best."""
        stop = self.view.stopping if self.stopped is not None else None
        found: dict[str, Any] = {}
        if stop is not None:
            found = {"status": "stopped", "stopped_because": stop.reason}
        best_step = stop.best_step if stop is not None else None
        if best_step is None and self.folder is not None and self.host.keep_best:
            best_step = best(self.folder.checkpoints.scores())
        return found if best_step is None else {**found, "best_step": best_step}

    def _report(self, folder: RunFolder, summary: dict[str, Any]) -> None:
        """Writes figures and a report page, if asked for; the results do not depend on it."""
        if self.host.write_reports and multihost.is_main():
            report_process.write(folder.finished_with(summary, self.history))

    def look_after(self, sums: Terms, tally: Tally, finite: Array, step: int) -> None:
        """Raises `DivergedError` if the run has diverged or, with `keep_going`, keeps it.

        `finite` is which clients' models are, bool [K].
        """
        try:
            self._require_finite("loss", "is", self.run.diverged(sums), step)
            if self.run.quarantine:
                self._report_quarantine(tally)
            else:
                overflown = ~multihost.fetch(finite)[: self.run.num_active]
                self._require_finite("parameters", "are", np.flatnonzero(overflown), step)
        except DivergedError as error:
            if not self.host.keep_going:
                raise
            self.failure = error

    def _require_finite(self, what: str, verb: str, bad: np.ndarray, step: int) -> None:
        if bad.size:
            raise DivergedError(
                f"the {what} of client {', '.join(map(str, bad[:10]))} {verb} no longer finite at "
                f"step {step} (seed {self.run.seed}); lower the learning rate or the distillation "
                "weights."
            )

    def _report_quarantine(self, tally: Tally) -> None:
        """Warns about clients new in quarantine; raises `DivergedError` if all clients are in it."""
        run, found = self.run, self.run.quarantined(tally)
        for client in sorted(found.keys() - self.reported.keys()):
            warn(
                f"the loss or the parameters of client {client} are no longer finite at step "
                f"{found[client]} (seed {run.seed}): it is in quarantine, and the others go on."
            )
        self.reported = found
        if len(found) == run.num_active:
            raise DivergedError(
                f"all clients are in quarantine, the last since step {max(found.values())} "
                f"(seed {run.seed}); lower the learning rate or the distillation weights."
            )

    def result(self, summary: dict[str, Any], state: State | None, started_at: int) -> Result:
        """Returns the `Result` for the user."""
        folder = None if self.folder is None else self.folder.path
        best_state = self._best(state)
        return Result(summary, self.history, state, started_at, best_state, self._answers, folder)

    @property
    def _answers(self) -> Answers:
        data = self.run.clients.data
        return Answers(
            self.run.algorithm.predict,
            self.run.spec.preparation,
            self.run.execution,
            data.kind,
            data.name,
            data.vocabulary_size,
            data.vocabulary,
        )
