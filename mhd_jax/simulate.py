"""`simulate(topology, clients)`: the host's loop around the compiled steps.

One dispatch draws batches, looks up the step's graph and trains, many steps long, on the
device. The host evaluates, logs and saves between dispatches; how long a dispatch is
changes nothing but the time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from mhd_jax import communication, hosts, optim, report
from mhd_jax import topology as topologies
from mhd_jax.callbacks import Callback, Callbacks, ShowProgress, is_interactive
from mhd_jax.checkpoint import RunFolder, jsonable
from mhd_jax.clients import Clients
from mhd_jax.engine import Carry
from mhd_jax.errors import DivergedError, InterruptedRun, LostProcessError
from mhd_jax.metrics import head_names
from mhd_jax.run import Run, prepare, require_counts
from mhd_jax.types import Algorithm, State

_SECONDS_PER_DISPATCH = 0.5
_COLLAPSE_ENTROPY = 0.1
_MOST_EDGES = 64**2  # that a summary lists one by one

Watcher = Callback | Callable[[Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
      summary: as in `summary.json`.
      history: one record for each evaluation, as in `metrics.jsonl`.
      state: the state at the end; None for a finished run whose checkpoints are gone.
      started_at: the step at which this process took it up: 0 for a new run, `steps` for
        one that had finished before.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    state: State | None
    started_at: int = 0

    def plot(self):
        """Accuracies over steps by head, as a matplotlib figure."""
        return report.accuracy_figure(self.history, self.summary["algorithm"])


def simulate(
    topology: Any,
    clients: Clients,
    algorithm: Algorithm | str | None = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 32,
    public_batch_size: int = 64,
    optimizer: optim.Optimizer | None = None,
    seed: int = 0,
    eval_every: int = 200,
    eval_batch_size: int = 500,
    compute_dtype: str = "float32",
    steps_per_dispatch: int | None = None,
    client_chunk: int | None = None,
    num_devices: int | None = None,
    workdir: str | pathlib.Path | None = None,
    checkpoint_every: int | None = None,
    callbacks: Watcher | Sequence[Watcher] = (),
    progress: bool | None = None,
) -> Result:
    """Lets clients learn from each other over a graph.

    Args:
      topology: who may learn from whom: a Topology, weights [K, K] or [T, K, K], a networkx
        graph, a traceable function of the step, or a name ("ring").
      clients: from `make_clients`.
      algorithm: from `mhd_jax.algorithms`, or a name; MHD with its defaults if None.
      steps: how many; 2,000 if neither these nor epochs are given.
      epochs: instead of `steps`: passes over the private data, averaged over clients.
      batch_size: B, private samples of one client in a step.
      public_batch_size: P, public samples in a step; unused by algorithms without them.
      optimizer: an `optim.SGD` or any optax transformation, for clients without their own;
        `optim.SGD()` if None.
      seed: of everything random in training (the split has its own, in `make_clients`).
      eval_every: steps between evaluations on the test set; the last step has one always.
      eval_batch_size: test samples evaluated at once.
      compute_dtype: in which backbones compute: "float32", or "bfloat16" for accelerators;
        parameters, heads and losses stay in float32.
      steps_per_dispatch: steps in one dispatch; None adapts it to about half a second.
        Results do not depend on it.
      client_chunk: clients of one device that are computed together, and whose activations
        alone are in memory; None takes as many as fit. It trades speed for memory, and
        changes results within floating-point tolerance.
      num_devices: devices that share the clients; None takes all, but no more than clients.
        Results are equal within floating-point tolerance.
      workdir: the run's folder. A second start resumes where the first was cut, and only
        reads a run that has finished.
      checkpoint_every: steps between checkpoints; None saves at every evaluation.
      callbacks: watchers, see `mhd_jax.callbacks`; a function is called with each record.
      progress: whether to show a progress bar on stderr; None shows it where someone watches.

    Returns:
      A `Result`.

    Raises:
      ConfigError: settings that cannot work, or a workdir of another run.
      DivergedError: a client's loss is no longer finite.
      InterruptedRun: Ctrl-C or SIGTERM during a run with a workdir; it has been saved.
      LostProcessError: another process of a run on several has ended.
    """
    run = prepare(
        topology,
        clients,
        algorithm,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        public_batch_size=public_batch_size,
        optimizer=optimizer,
        seed=seed,
        eval_every=eval_every,
        eval_batch_size=eval_batch_size,
        compute_dtype=compute_dtype,
        client_chunk=client_chunk,
        num_devices=num_devices,
    )
    checkpoint_every = eval_every if checkpoint_every is None else checkpoint_every
    require_counts(
        checkpoint_every=checkpoint_every,
        steps_per_dispatch=1 if steps_per_dispatch is None else steps_per_dispatch,
    )
    plan = Plan(run.steps, eval_every, checkpoint_every, steps_per_dispatch)
    folder = None if workdir is None else RunFolder(workdir, run.settings)
    watchers = [callbacks] if callable(callbacks) or isinstance(callbacks, Callback) else callbacks
    watch = Callbacks([*watchers, *_progress_bar(progress)] if hosts.is_main() else [])
    try:
        if folder is not None and folder.finished:
            restored = folder.restore(run.carry)
            state = None if restored is None else restored[0].state
            return Result(folder.summary(), folder.history(), state, started_at=run.steps)
        return _carry_out(run, plan, folder, watch)
    except jax.errors.JaxRuntimeError as error:
        if not hosts.lost_another(error):
            raise
        saved = "" if folder is None else f" {folder.path} holds what was saved;"
        raise LostProcessError(
            f"this process has lost the others ({str(error).splitlines()[0]}), and cannot go on "
            f"alone.{saved} start all of them again with the same command."
        ) from error
    finally:
        watch.on_end()
        if folder is not None:
            folder.close()


def _carry_out(run: Run, plan: Plan, folder: RunFolder | None, watch: Callback) -> Result:
    """Takes a run from its start, or its last checkpoint, to its end."""
    carry, seconds, history = None, 0.0, []
    if folder is not None:
        folder.create()
        restored = folder.restore(run.carry)
        if restored is not None:
            carry, seconds = restored
        history = folder.rewind(0 if carry is None else int(carry.state.step))
    if carry is None:
        carry = run.start()
    started_at = int(carry.state.step)
    watch.on_start(run.settings, started_at)
    with _stop_requests(active=folder is not None) as stop_requested:
        carry, compile_seconds, seconds = _train(
            run, plan, carry, seconds, history, folder, watch, stop_requested
        )
    summary = _summary(run, carry, history, compile_seconds, seconds)
    if folder is not None:
        if hosts.is_main():
            report.write(folder.path, summary, history, run.everyone)
        folder.finish(summary)
    return Result(summary, history, carry.state, started_at)


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run does what: all in steps."""

    steps: int
    eval_every: int
    checkpoint_every: int
    per_dispatch: int | None

    def evaluates_at(self, step: int) -> bool:
        """Whether step `step` ends with an evaluation."""
        return step % self.eval_every == 0 or step == self.steps

    def saves_at(self, step: int) -> bool:
        """Whether step `step` ends with a checkpoint."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def next_stop(self, step: int) -> int:
        """The next step after `step` at which the host has something to do."""
        every = (self.eval_every, self.checkpoint_every)
        return min(self.steps, *((step // n + 1) * n for n in every))


def _train(
    run: Run,
    plan: Plan,
    carry: Carry,
    seconds: float,
    history: list[dict[str, Any]],
    folder: RunFolder | None,
    watch: Callback,
    stop_requested: Callable[[], bool],
) -> tuple[Carry, float, float]:
    """Trains to the end of the plan, adding to `history`.

    Returns:
      The carry, the seconds of compilation, and those of training, earlier ones included.
    """
    started = time.perf_counter()
    carry = jax.block_until_ready(run.advance(carry, 0))  # compiles, and takes no step
    compile_seconds = time.perf_counter() - started
    watch.on_compiled(compile_seconds)

    step = int(carry.state.step)
    message_bytes = sum(communication.bytes_by_type(run.message()).values())
    pace = _Pace(plan.per_dispatch)
    while step < plan.steps:
        num_steps = min(int(hosts.from_each(pace.steps())[0]), plan.next_stop(step) - step)
        started = time.perf_counter()
        carry = jax.block_until_ready(run.advance(carry, num_steps))
        elapsed = time.perf_counter() - started
        pace.observe(num_steps, elapsed)
        seconds += elapsed
        step += num_steps
        _require_finite(run, carry, step)
        record = None
        if plan.evaluates_at(step):
            messages = int(run.messages(carry).sum())
            record = {
                "step": step,
                **run.accuracies(carry.state, run.test),
                "train": run.means(carry),
                "messages": messages,
                "bytes": messages * message_bytes,
                "seconds": seconds,
            }
            if run.validation is not None:
                record["validation"] = run.accuracies(carry.state, run.validation)
            carry = carry.reset()
            history.append(record)
            if folder is not None:
                folder.append(record)
        stopping = bool(hosts.from_each(stop_requested()).any()) and step < plan.steps
        if folder is not None and (plan.saves_at(step) or stopping):
            folder.save(step, carry, seconds)
        # Watchers come last: what they may raise loses nothing.
        watch.on_steps(step, pace.rate)
        if record is not None:
            _warn_of_collapse(record)
            watch.on_evaluation(record)
        if stopping and folder is not None:
            folder.wait()
            raise InterruptedRun(
                f"stopped at step {step} of {plan.steps}; everything is saved in {folder.path}, "
                "and the same command resumes it"
            )
    return carry, compile_seconds, seconds


class _Pace:
    """How many steps a dispatch takes: enough to hide its overhead, few enough to stay responsive."""

    def __init__(self, fixed: int | None):
        self._fixed = fixed
        self._next = 4
        self.rate = 0.0

    def steps(self) -> int:
        return self._fixed or self._next

    def observe(self, num_steps: int, seconds: float) -> None:
        self.rate = num_steps / max(seconds, 1e-9)
        self._next = max(1, min(int(self.rate * _SECONDS_PER_DISPATCH), 8 * self._next))


def _require_finite(run: Run, carry: Carry, step: int) -> None:
    bad = run.diverged(carry)
    if bad.size:
        raise DivergedError(
            f"the loss of client {', '.join(map(str, bad[:10]))} is no longer finite at step {step}; "
            "lower the learning rate or the distillation weights."
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


@contextlib.contextmanager
def _stop_requests(active: bool) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request; a second Ctrl-C interrupts at once."""
    requested = threading.Event()
    if not active or threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def handle(signum: int, frame: Any) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _summary(
    run: Run,
    carry: Carry,
    history: Sequence[Mapping[str, Any]],
    compile_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    last = history[-1]
    per_class = run.per_class_accuracy(carry.state, run.test)
    names = head_names(per_class.shape[1])
    messages = run.messages(carry)
    each = last["per_client"]
    models = run.everyone.model_names
    consensus = run.consensus(carry.state)
    return jsonable(
        {
            "algorithm": run.algorithm.name,
            "dataset": run.everyone.data.name,
            "num_clients": run.everyone.num_clients,
            "steps": run.steps,
            "seed": run.seed,
            "status": "finished",
            "beta_sh": last["beta_sh"],
            "beta_priv": last["beta_priv"],
            **({"validation": last["validation"]} if "validation" in last else {}),
            **({} if consensus is None else {"consensus": consensus}),
            "per_client": [
                {
                    "client": i,
                    "model": models[i],
                    "beta_sh": {name: each["beta_sh"][name][i] for name in names},
                    "beta_priv": {name: each["beta_priv"][name][i] for name in names},
                    "per_class_accuracy": {name: per_class[i, h] for h, name in enumerate(names)},
                }
                for i in range(len(per_class))
            ],
            "topology": topologies.describe(run.topology),
            "communication": {
                **communication.total(int(messages.sum()), run.message()),
                **({"by_edge": messages} if messages.size <= _MOST_EDGES else {}),
            },
            "timing": {
                "compile_seconds": compile_seconds,
                "seconds_per_step": seconds / run.steps,
                "steps_per_second": run.steps / seconds,
                "peak_memory_bytes": _peak_memory(),
            },
            "settings": run.settings,
        }
    )


def _peak_memory() -> int:
    """The most memory taken so far: the accelerator's where it tells, else this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
