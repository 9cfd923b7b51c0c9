"""`simulate(topology, clients)`: the host's loop around the compiled steps.

One dispatch takes many steps on the device: in each it draws batches, looks up the step's graph and
trains. The host evaluates, logs and saves between dispatches; the length of a dispatch affects only
the running time.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mhd_jax.clients import Clients
from mhd_jax.core import modes, multihost
from mhd_jax.core.errors import (
    ConfigError,
    DivergedError,
    InterruptedRun,
    LostProcessError,
    StorageError,
    in_a_line,
)
from mhd_jax.core.files import folder_here
from mhd_jax.core.types import Algorithm, State, Terms
from mhd_jax.core.validation import require_counts
from mhd_jax.data.augmentation import Augmentation
from mhd_jax.engine import memory
from mhd_jax.engine.answers import Answers
from mhd_jax.engine.faults import Faults, Tally
from mhd_jax.engine.joint_runs import Together, partition
from mhd_jax.engine.loading import keep_models
from mhd_jax.engine.prepare import known_arguments, prepare
from mhd_jax.engine.result import Result
from mhd_jax.engine.run import Run
from mhd_jax.engine.schedule import Pace, Plan
from mhd_jax.engine.settings import Settings
from mhd_jax.engine.signals import stop_requests
from mhd_jax.engine.steps import Carry
from mhd_jax.engine.summary import executed, record_of, summarize
from mhd_jax.runs.callbacks import Callback, ShowProgress, WatchedRun
from mhd_jax.runs.callbacks.base import Callbacks
from mhd_jax.runs.callbacks.progress import is_interactive
from mhd_jax.runs.checkpoints import Keep, best
from mhd_jax.runs.decoration import decoration
from mhd_jax.runs.folder import RunFolder
from mhd_jax.training import optim

_COLLAPSE_ENTROPY = 0.1
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_FORESEEN = (ConfigError, DivergedError, LostProcessError, StorageError)

Watcher = Callback | Callable[[Mapping[str, Any]], None]


@known_arguments
def simulate(
    topology: Any,
    clients: Clients,
    algorithm: Algorithm | str | None = None,
    *,
    steps: int | None = Settings.steps,
    epochs: float | None = Settings.epochs,
    batch_size: int = Settings.batch_size,
    public_batch_size: int = Settings.public_batch_size,
    optimizer: optim.Optimizer | None = Settings.optimizer,
    seed: int = Settings.seed,
    eval_every: int = Settings.eval_every,
    eval_batch_size: int = Settings.eval_batch_size,
    augmentation: Augmentation | str | None = Settings.augmentation,
    augment_public: bool = Settings.augment_public,
    compute_dtype: str = Settings.compute_dtype,
    steps_per_dispatch: int | None = None,
    data_placement: str = Settings.data_placement,
    client_chunk: int | None = Settings.client_chunk,
    num_devices: int | None = Settings.num_devices,
    faults: Faults | None = Settings.faults,
    on_nonfinite: str = Settings.on_nonfinite,
    workdir: str | pathlib.Path | None = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    keep_best: bool = False,
    fall_back: bool = False,
    callbacks: Watcher | Sequence[Watcher] = (),
    progress: bool | None = None,
) -> Result:
    """Trains clients that learn from each other over a communication graph.

    Args:
      topology: the graph of who may learn from whom: a Topology, weights [K, K] or [T, K, K], a
        networkx graph, a traceable function of the step, or a name ("ring",
        "ring@0,complete@1000").
      clients: from `make_clients`.
      algorithm: from `mhd_jax.algorithms`, or a name; MHD with its defaults if None.
      steps: the number of training steps; 2,000 if neither `steps` nor `epochs` is given.
      epochs: instead of `steps`: passes over the private data, averaged over clients.
      batch_size: B, private samples of one client in a step.
      public_batch_size: P, public samples in a step; unused by algorithms without a public set.
      optimizer: an `optim.SGD` or any optax transformation, for clients without their own;
        `optim.SGD()` if None.
      seed: the seed of all randomness in training (the split has its own, in `make_clients`).
      eval_every: steps between evaluations on the test set; the last step always has one.
      eval_batch_size: test samples evaluated at once; fewer are taken if they do not fit in memory.
      augmentation: the random changes of training images, a `mhd_jax.data.Augmentation` or as on
        the command line: "flip,crop:4".
      augment_public: whether public images are augmented too.
      compute_dtype: the type in which backbones compute: "float32", or "bfloat16" for
        accelerators; parameters, heads and losses stay in float32.
      steps_per_dispatch: steps in one dispatch; None adapts it to about half a second.
        Results do not depend on it.
      data_placement: where data are stored: on the "device"; on the "host", from which batches
        stream ahead of the steps; "auto" chooses the host for data that the device cannot hold.
        The batches are the same.
      client_chunk: how many clients one device computes together; only their activations are in
        memory. None takes as many as fit. Small chunks save memory and cost time; results change
        within floating-point tolerance.
      num_devices: the number of devices that share the clients; None takes all devices. Results
        are equal within floating-point tolerance.
      faults: lost links, clients that are offline, slow or late, as a `mhd_jax.Faults`.
      on_nonfinite: what happens if a client's loss or parameters are no longer finite: "stop" ends
        the run; with "quarantine" this client neither trains nor teaches from that step on, and
        the others go on.
      workdir: the run folder, on this machine; ~ is the home folder. A second start resumes an
        interrupted run, only reads a finished one, and is refused while the run is in progress.
      checkpoint_every: steps between checkpoints; None saves at every evaluation.
      keep_checkpoints: how many of the latest checkpoints stay; the last step's always stays.
      keep_best: whether the checkpoint with the highest β_sh of the last head on the validation
        set stays too. An evaluation that finds a better one saves it.
      fall_back: whether a run whose latest checkpoint is damaged resumes from the newest intact
        one, with a warning; otherwise it is refused.
      callbacks: watchers, see `mhd_jax.runs.callbacks`; a function is called with each record.
        Models and callbacks run in JAX's standard modes, see `mhd_jax.core.modes`.
      progress: whether to show a progress bar on stderr; None shows it in interactive sessions.

    Returns:
      A `Result`.

    Raises:
      ConfigError: settings that cannot work or do not fit in memory, a workdir of another run or
        in use, or a damaged checkpoint.
      DivergedError: a client's loss is no longer finite, or all clients are in quarantine.
      InterruptedRun: Ctrl-C or SIGTERM during a run with a workdir; the run has been saved.
      LostProcessError: another process of a run on several processes has ended.
      StorageError: the workdir cannot be written, for example because the disk is full.
    """
    settings = {
        "topology": topology,
        "clients": clients,
        "algorithm": algorithm,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "public_batch_size": public_batch_size,
        "optimizer": optimizer,
        "seed": seed,
        "eval_batch_size": eval_batch_size,
        "augmentation": augmentation,
        "augment_public": augment_public,
        "compute_dtype": compute_dtype,
        "data_placement": data_placement,
        "client_chunk": client_chunk,
        "num_devices": num_devices,
        "faults": faults,
        "on_nonfinite": on_nonfinite,
    }
    found = simulate_many(
        [settings],
        eval_every=eval_every,
        steps_per_dispatch=steps_per_dispatch,
        workdirs=None if workdir is None else [workdir],
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        keep_best=keep_best,
        fall_back=fall_back,
        callbacks=callbacks,
        progress=progress,
    )
    return _all_finite(found)[0]


def simulate_seeds(
    topologies: Sequence[Any],
    clients: Sequence[Clients],
    algorithm: Algorithm | str | None = None,
    *,
    seeds: Sequence[int],
    eval_every: int = Settings.eval_every,
    steps_per_dispatch: int | None = None,
    workdirs: Sequence[str | pathlib.Path] | None = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    keep_best: bool = False,
    fall_back: bool = False,
    callbacks: Watcher | Sequence[Watcher] = (),
    progress: bool | None = None,
    **settings: Any,
) -> list[Result]:
    """Runs `simulate` with several seeds, in one program if the runs have one shape and fit.

    It raises the errors that `simulate` raises.

    Args:
      topologies, clients: one for each seed.
      algorithm: as for `simulate`.
      seeds: the seeds of training.
      workdirs: one for each seed.
      eval_every, steps_per_dispatch, checkpoint_every: as for `simulate_many`.
      keep_checkpoints, keep_best, fall_back, callbacks, progress: as for `simulate_many`.
      **settings: the other arguments of `simulate`.

    Returns:
      A `Result` for each seed, whose training time is its share of the joint time.
    """
    lengths = {len(seeds), len(topologies), len(clients), len(workdirs or seeds)}
    if lengths != {len(seeds)} or not seeds:
        raise ConfigError("topologies, clients and workdirs must be one for each seed.")
    found = simulate_many(
        [
            {"topology": topology, "clients": who, "algorithm": algorithm, "seed": seed, **settings}
            for topology, who, seed in zip(topologies, clients, seeds, strict=True)
        ],
        eval_every=eval_every,
        steps_per_dispatch=steps_per_dispatch,
        workdirs=workdirs,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        keep_best=keep_best,
        fall_back=fall_back,
        callbacks=callbacks,
        progress=progress,
    )
    return _all_finite(found)


@modes.standard()
def simulate_many(
    runs: Sequence[Mapping[str, Any]],
    *,
    eval_every: int = Settings.eval_every,
    steps_per_dispatch: int | None = None,
    workdirs: Sequence[str | pathlib.Path] | None = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    keep_best: bool = False,
    fall_back: bool = False,
    callbacks: Watcher | Sequence[Watcher] = (),
    progress: bool | None = None,
    keep_going: bool = False,
    write_reports: bool = True,
) -> list[Result | DivergedError]:
    """Runs `simulate` with several settings; runs of one shape that fit in memory share a program.

    Such runs may differ in their seed, their clients' data, their graph, and in numbers of the
    algorithm or the optimizer, such as a learning rate or a weight; but the number 0, which means
    "without", makes another shape. Each result equals that of `simulate` with the same settings,
    within floating-point tolerance, and each run has its own folder. A run that resumes at another
    step than the others runs on its own. It raises the errors that `simulate` raises.

    Args:
      runs: for each run the arguments of `simulate`, without those below.
      eval_every, steps_per_dispatch, checkpoint_every, progress: as for `simulate`.
      keep_checkpoints, keep_best, fall_back: as for `simulate`, for each run.
      workdirs: one for each run.
      callbacks: watchers of all runs; from `on_start` they know which run a record belongs to.
      keep_going: whether the other runs go on after one diverges.
      write_reports: whether run folders get figures and a report page, a second or two each.

    Returns:
      A `Result` for each run, whose training time is its share of the joint time; with
      `keep_going`, the `DivergedError` of a run that diverged.
    """
    if len(workdirs or runs) != len(runs) or not runs:
        raise ConfigError("runs must be some, and workdirs one for each.")
    folders: Sequence[Any] = [None for _ in runs]
    if workdirs:
        folders = [folder_here(path, "workdir") for path in workdirs]
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise ConfigError("workdirs must differ from run to run.")
    prepared = [prepare(**settings, eval_every=eval_every) for settings in runs]
    plans = [
        Plan.checked(run.steps, eval_every, checkpoint_every, steps_per_dispatch)
        for run in prepared
    ]
    for run in prepared:
        memory.require_state_fits(run, saves=workdirs is not None)
    watch = _watchers(callbacks, progress)
    keep = _keep(prepared, keep_checkpoints, keep_best, folders)
    lanes = [
        _Lane(run, _folder(folder, run, keep), plan, keep, fall_back, write_reports)
        for run, folder, plan in zip(prepared, folders, plans, strict=True)
    ]
    return _simulate(lanes, watch, keep_going)


def _keep(runs: Sequence[Run], last: int, keep_best: bool, folders: Sequence[Any]) -> Keep:
    """Returns which checkpoints stay, after checking that the best one can be chosen."""
    require_counts(keep_checkpoints=last)
    if keep_best and any(run.validation is None for run in runs):
        raise ConfigError(
            "keep_best chooses on a validation set, and there is none; set validation_fraction. "
            "Nothing is chosen on the test set."
        )
    if keep_best and None in folders:
        raise ConfigError("keep_best keeps a checkpoint in a folder; give a workdir.")
    return Keep(last, keep_best)


def _folder(path: str | pathlib.Path | None, run: Run, keep: Keep) -> RunFolder | None:
    return None if path is None else RunFolder(path, run.settings, run.programs, keep)


def _all_finite(found: Sequence[Result | DivergedError]) -> list[Result]:
    results = []
    for each in found:
        if isinstance(each, DivergedError):
            raise each
        results.append(each)
    return results


def _watchers(callbacks: Watcher | Sequence[Watcher], progress: bool | None) -> Callback:
    watchers = [callbacks] if callable(callbacks) or isinstance(callbacks, Callback) else callbacks
    return Callbacks([*watchers, *_progress_bar(progress)] if multihost.is_main() else [])


@dataclasses.dataclass
class _Lane:
    """The host's side of one run: its folder, its history, and its seconds of training."""

    run: Run
    folder: RunFolder | None
    plan: Plan
    keep: Keep
    fall_back: bool
    has_report: bool = True
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    reported: dict[int, int] = dataclasses.field(default_factory=dict)  # clients in quarantine
    failure: DivergedError | None = None
    best_score: float = -math.inf

    @property
    def watched(self) -> WatchedRun:
        """The run as callbacks see it."""
        folder = None if self.folder is None else self.folder.path
        return WatchedRun(self.run.settings, folder, self.history)

    @property
    def starts(self) -> list[int]:
        """The steps from which the run can start or resume, ascending."""
        if self.folder is None:
            return [0]
        checkpoints = self.folder.checkpoints
        return (checkpoints.whole_steps() if self.fall_back else checkpoints.steps) or [0]

    def begin(self, step: int) -> Carry:
        """Returns the carry at `step`, one of `starts`, and opens the folder there."""
        if self.folder is None:
            return self.run.start()
        self.folder.create(self.run.everyone)
        if step:
            carry, self.seconds = self.folder.restore(self.run.carry, step, self.run.start)
            self.folder.warn_of_another_environment(step, self.run.carry)
        else:
            carry = self.run.start()
        self.history = self.folder.rewind(step)
        scores = self.folder.checkpoints.scores().values()
        self.best_score = max((score for score in scores if score is not None), default=-math.inf)
        return carry

    def read(self) -> Result:
        """Returns the result of a finished run from its folder, and writes a missing report."""
        assert self.folder is not None
        state = self._saved_state(self.plan.steps)
        self.history = self.folder.history()
        summary = self.folder.summary()
        if self.has_report and multihost.is_main() and not self.folder.has_report:
            self._report(self.folder, summary)
        return self.result(summary, state, self.plan.steps)

    def _best(self, final: State | None) -> State | None:
        """Returns the state of the checkpoint kept as the best one; None without `keep_best`."""
        if self.folder is None or not self.keep.best:
            return None
        step = best(self.folder.checkpoints.scores())
        if step is None or step == self.plan.steps:
            return final
        return self._saved_state(step)

    def _saved_state(self, step: int) -> State | None:
        """Returns the state of the checkpoint at `step`; None if there is none."""
        if self.folder is None or step not in self.starts:
            return None
        return self.folder.restore(self.run.carry, step, self.run.start)[0].state

    def score(self) -> float | None:
        """Returns β_sh of the last head on the validation set at the last evaluation."""
        values = list(self.history[-1]["validation"]["beta_sh"].values())
        return values[-1]

    def save(self, step: int, carry: Carry, *, due: bool) -> None:
        """Saves a checkpoint if one is due, or if this step's evaluation is the best so far."""
        if self.folder is None:
            return
        evaluated = bool(self.history) and self.history[-1]["step"] == step
        score = self.score() if self.keep.best and evaluated else None
        is_best = score is not None and score > self.best_score
        if score is not None and is_best:
            self.best_score = score
        if due or is_best:
            self.folder.save(step, carry, self.seconds, len(self.history), score)

    def record(self, carry: Carry) -> dict[str, Any]:
        """Evaluates, and adds the record to the history and the folder."""
        record = record_of(self.run, carry, self.seconds)
        self.history.append(record)
        if self.folder is not None:
            self.folder.append(record)
        return record

    def finish(
        self, carry: Carry, started_at: int, compile_seconds: float, runs_at_once: int
    ) -> Result:
        """Writes the summary and the report, and returns the result."""
        summary = summarize(self.run, carry, self.history, compile_seconds, self.seconds)
        summary["execution"] = executed(self.run, runs_at_once)
        if self.folder is not None:
            self.folder.finish(summary)
            if self.has_report and multihost.is_main():
                self._report(self.folder, summary)
        return self.result(summary, carry.state, started_at)

    def _report(self, folder: RunFolder, summary: dict[str, Any]) -> None:
        """Writes figures and a report page; if that fails, the run's results are unaffected."""
        again = f"The run has finished; python -m experiments.report {folder.path} tries again."
        with decoration(f"the report of {folder.path}", again):
            from mhd_jax.runs import report

            report.write(folder.finished_with(summary, self.history))

    def result(self, summary: dict[str, Any], state: State | None, started_at: int) -> Result:
        """Returns the `Result` for the user."""
        data = self.run.clients.data
        answers = Answers(
            self.run.algorithm.predict,
            self.run.spec.preparation,
            self.run.execution,
            data.kind,
            data.name,
        )
        folder = None if self.folder is None else self.folder.path
        if folder is not None and state is not None and multihost.is_main():
            keep_models(folder, state, answers)
        return Result(summary, self.history, state, started_at, self._best(state), answers, folder)


def _simulate(
    lanes: Sequence[_Lane], watch: Callback, keep_going: bool = False
) -> list[Result | DivergedError]:
    """Runs all lanes that have not finished, jointly if they can share a program."""
    results: dict[int, Result | DivergedError] = {}
    unfinished: list[int] = []
    try:
        for i, lane in enumerate(lanes):
            if lane.folder is not None and not lane.folder.finished:
                lane.folder.claim()  # until it returns, another process may finish the run
            if lane.folder is not None and lane.folder.finished:
                results[i] = lane.read()
            else:
                unfinished.append(i)
        for start, indices in _by_start(lanes, unfinished).items():
            for part, joined in partition([lanes[i].run for i in indices]):
                who = [indices[i] for i in part]
                found = _carry_out([lanes[i] for i in who], joined, start, watch, keep_going)
                results.update(zip(who, found, strict=True))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ConfigError(
                f"the run does not fit ({in_a_line(error)}); lower batch_size, "
                "public_batch_size, eval_batch_size or client_chunk, or take more devices."
            ) from error
        if not multihost.lost_another(error):
            raise
        kept = _folders(lanes)
        saved = f" {kept} holds what was saved;" if kept else ""
        raise LostProcessError(
            f"this process has lost the others ({in_a_line(error)}), and cannot go on "
            f"alone.{saved} start all of them again with the same command."
        ) from error
    except OSError as error:
        if error.errno not in _OF_THE_DISK or not _folders(lanes):
            raise
        raise StorageError(
            f"{_folders(lanes)} cannot be written ({error.strerror}). Make room, and the same "
            "command resumes the run."
        ) from error
    finally:
        for lane in lanes:
            if lane.folder is not None:
                lane.folder.close()
        _note_what_is_saved(sys.exception(), lanes)
    return [results[i] for i in range(len(lanes))]


def _note_what_is_saved(error: BaseException | None, lanes: Sequence[_Lane]) -> None:
    """Notes the folders from which runs resume on an unexpected error, e.g. of a user's model."""
    saved = [lane for lane in lanes if lane.folder is not None and lane.folder.checkpoints.steps]
    if saved and isinstance(error, Exception) and not isinstance(error, _FORESEEN):
        error.add_note(f"{_folders(saved)} holds what was saved; the same command resumes it.")


def _by_start(lanes: Sequence[_Lane], indices: Sequence[int]) -> dict[int, list[int]]:
    """Groups runs by the step at which they start or resume, a common one if possible.

    A process that dies between two saves leaves one run a checkpoint ahead of the next.
    """
    common = set.intersection(*(set(lanes[i].starts) for i in indices)) if indices else set()
    if common:
        return {max(common): list(indices)}
    found: dict[int, list[int]] = {}
    for i in indices:
        found.setdefault(lanes[i].starts[-1], []).append(i)
    return found


def _folders(lanes: Sequence[_Lane]) -> str:
    return ", ".join(str(lane.folder.path) for lane in lanes if lane.folder is not None)


def _carry_out(
    lanes: Sequence[_Lane],
    joined: Together | None,
    started_at: int,
    watch: Callback,
    keep_going: bool,
) -> list[Result | DivergedError]:
    """Runs one lane, or several joined ones, from step `started_at` to their end."""
    carries = [lane.begin(started_at) for lane in lanes]
    carry = joined.join(carries) if joined else carries[0]
    del carries
    program = joined or lanes[0].run
    status = "failed"
    try:
        watch.on_start([lane.watched for lane in lanes], started_at)
        with stop_requests(active=lanes[0].folder is not None) as stop_requested:
            carry, compile_seconds = _train(
                lanes, program, carry, watch, stop_requested, keep_going
            )
        if not all(lane.failure for lane in lanes):
            status = "finished"
    except (InterruptedRun, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        watch.on_end(status)
    return [
        lane.failure or lane.finish(part, started_at, compile_seconds / len(lanes), len(lanes))
        for lane, part in zip(lanes, program.split(carry), strict=True)
    ]


def _train(
    lanes: Sequence[_Lane],
    program: Run | Together,
    carry: Carry,
    watch: Callback,
    stop_requested: Callable[[], bool],
    keep_going: bool,
) -> tuple[Carry, float]:
    """Trains to the end of the lanes' common plan, or until all have diverged.

    Returns:
      The carry, and the seconds of compilation.
    """
    plan = lanes[0].plan
    started = time.perf_counter()
    if isinstance(program, Run):
        program = lanes[0].run = memory.fitted(program)
    else:
        memory.require_step_fits(program.lower(carry), lanes[0].run)
    carry = jax.block_until_ready(program.advance(carry, 0))  # loads the program, takes no step
    compile_seconds = time.perf_counter() - started
    watch.on_compiled(compile_seconds)

    step = int(carry.state.step)
    pace = Pace(plan.per_dispatch)
    while step < plan.steps:
        num_steps = min(int(multihost.from_each(pace.steps())[0]), plan.next_stop(step) - step)
        started = time.perf_counter()
        carry = jax.block_until_ready(program.advance(carry, num_steps))
        elapsed = time.perf_counter() - started
        pace.observe(num_steps, elapsed)
        step += num_steps
        parts = program.split((carry.sums, carry.tally))
        for place, (lane, (sums, tally)) in enumerate(zip(lanes, parts, strict=True)):
            lane.seconds += elapsed / len(lanes)
            if lane.failure is None:
                _look_after(lane, sums, tally, step, keep_going)
                if lane.failure is not None:
                    watch.on_failure(place)
        if all(lane.failure for lane in lanes):
            break
        records = []
        if plan.evaluates_at(step):
            records = [lane.record(part) for lane, part in _going(lanes, program, carry)]
            carry = carry.reset()
        stopping = bool(multihost.from_each(stop_requested()).any()) and step < plan.steps
        folders = [lane.folder for lane in lanes if lane.folder is not None]  # of all or none
        due = plan.saves_at(step) or stopping
        if folders and (due or (records and lanes[0].keep.best)):
            for lane, part in _going(lanes, program, carry):
                lane.save(step, part, due=due)
        # Watchers come last: an error that they raise loses no evaluation and no checkpoint.
        watch.on_steps(step, pace.rate)
        for record in records:
            _warn_of_collapse(record)
            watch.on_evaluation(record)
        if stopping and folders:
            for folder in folders:
                folder.wait()
            raise InterruptedRun(
                f"stopped at step {step} of {plan.steps}; everything is saved in "
                f"{_folders(lanes)}, and the same command resumes it"
            )
    return carry, compile_seconds


def _going(
    lanes: Sequence[_Lane], program: Run | Together, carry: Carry
) -> list[tuple[_Lane, Carry]]:
    """Returns the lanes that have not diverged, each with its run's carry."""
    parts = zip(lanes, program.split(carry), strict=True)
    return [(lane, part) for lane, part in parts if lane.failure is None]


def _look_after(lane: _Lane, sums: Terms, tally: Tally, step: int, keep_going: bool) -> None:
    """Raises `DivergedError` if a run has diverged or, with `keep_going`, stores it in its lane."""
    try:
        _require_finite(lane.run, sums, step)
        if lane.run.quarantine:
            _report_quarantine(lane, tally)
    except DivergedError as error:
        if not keep_going:
            raise
        lane.failure = error


def _require_finite(run: Run, sums: Terms, step: int) -> None:
    bad = run.diverged(sums)
    if bad.size:
        raise DivergedError(
            f"the loss of client {', '.join(map(str, bad[:10]))} is no longer finite at step {step} "
            f"(seed {run.seed}); lower the learning rate or the distillation weights."
        )


def _report_quarantine(lane: _Lane, tally: Tally) -> None:
    """Warns about clients new in quarantine; raises `DivergedError` if all clients are in it."""
    run, found = lane.run, lane.run.quarantined(tally)
    for client in sorted(found.keys() - lane.reported.keys()):
        warnings.warn(
            f"the loss or the parameters of client {client} are no longer finite at step "
            f"{found[client]} (seed {run.seed}): it is in quarantine, and the others go on.",
            stacklevel=2,
        )
    lane.reported = found
    if len(found) == run.num_active:
        raise DivergedError(
            f"all clients are in quarantine, the last since step {max(found.values())} "
            f"(seed {run.seed}); lower the learning rate or the distillation weights."
        )


def _warn_of_collapse(record: Mapping[str, Any]) -> None:
    entropy = record["train"].get("public_entropy")
    if entropy is not None and entropy < _COLLAPSE_ENTROPY:
        warnings.warn(
            f"at step {record['step']} the clients answer nearly the same on all public samples "
            f"(entropy of the mean prediction {entropy:.2f} of its maximum): distillation has "
            "collapsed. Lower nu_aux, num_targets or the learning rate.",
            stacklevel=2,
        )


def _progress_bar(progress: bool | None) -> list[Callback]:
    return [ShowProgress()] if progress or (progress is None and is_interactive()) else []
