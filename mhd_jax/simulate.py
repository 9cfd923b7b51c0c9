"""`simulate(topology, clients)`: the host's loop around the compiled steps.

One dispatch draws batches, looks up the step's graph and trains, many steps long, on the
device. The host evaluates, logs and saves between dispatches; how long a dispatch is
changes nothing but the time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
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
import jax.numpy as jnp
import numpy as np

from mhd_jax import optim, report
from mhd_jax import topology as topologies
from mhd_jax.algorithms.mhd import mhd
from mhd_jax.callbacks import Callback, Callbacks, ShowProgress, is_interactive
from mhd_jax.checkpoint import RunFolder, jsonable, read_json
from mhd_jax.clients import Clients
from mhd_jax.data.batching import BatchSpec, DeviceData, draw_batch
from mhd_jax.engine import (
    Carry,
    EvaluationSet,
    count_correct,
    device_data,
    dispatch,
    evaluation_set,
    initial_carry,
)
from mhd_jax.errors import ConfigError, DivergedError, InterruptedRun
from mhd_jax.metrics import beta_priv, beta_sh, head_names
from mhd_jax.topology import Topology
from mhd_jax.types import Algorithm, Batch, State

_SECONDS_PER_DISPATCH = 0.5
_COLLAPSE_ENTROPY = 0.1


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
      summary: as in `summary.json`.
      history: one record for each evaluation, as in `metrics.jsonl`.
      state: the state at the end.
      started_at: the step at which this process took it up: 0 for a new run, `steps` for
        one that had finished before.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    state: State
    started_at: int = 0

    def plot(self):
        """Accuracies over steps by head, as a matplotlib figure."""
        return report.accuracy_figure(self.history, self.summary["algorithm"])


def simulate(
    topology: Any,
    clients: Clients,
    algorithm: Algorithm | None = None,
    *,
    steps: int = 2000,
    epochs: float | None = None,
    batch_size: int = 32,
    public_batch_size: int = 64,
    optimizer: optim.Optimizer | None = None,
    seed: int = 0,
    eval_every: int = 200,
    eval_batch_size: int = 500,
    steps_per_dispatch: int | None = None,
    workdir: str | pathlib.Path | None = None,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Callback | Callable[[Mapping[str, Any]], None]] = (),
    progress: bool | None = None,
) -> Result:
    """Lets clients learn from each other over a graph.

    Args:
      topology: who may learn from whom: a Topology, weights [K, K] or [T, K, K], a networkx
        graph, a traceable function of the step, or a name ("ring").
      clients: from `make_clients`.
      algorithm: from `mhd_jax.algorithms`; MHD with its defaults if None.
      steps: how many.
      epochs: instead of `steps`: passes over the private data, averaged over clients.
      batch_size: B, private samples of one client in a step.
      public_batch_size: P, public samples in a step; unused by algorithms without them.
      optimizer: an `optim.SGD` or any optax transformation, for clients without their own;
        `optim.SGD()` if None.
      seed: of everything random in training (the split has its own, in `make_clients`).
      eval_every: steps between evaluations on the test set; the last step has one always.
      eval_batch_size: test samples evaluated at once.
      steps_per_dispatch: steps in one dispatch; None adapts it to about half a second.
        Results do not depend on it.
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
    """
    algorithm = algorithm or mhd()
    optimizer = optim.SGD() if optimizer is None else optimizer
    topology = topologies.as_topology(topology, clients.num_clients)
    if epochs is not None:
        private_samples = int((clients.owner >= 0).sum())
        steps = max(1, round(epochs * private_samples / (clients.num_clients * batch_size)))
    checkpoint_every = eval_every if checkpoint_every is None else checkpoint_every
    _check(
        algorithm,
        clients,
        {
            "steps": steps,
            "batch_size": batch_size,
            "public_batch_size": public_batch_size,
            "eval_every": eval_every,
            "eval_batch_size": eval_batch_size,
            "checkpoint_every": checkpoint_every,
            "steps_per_dispatch": 1 if steps_per_dispatch is None else steps_per_dispatch,
        },
    )
    settings = {
        "algorithm": algorithm.name,
        "hyperparameters": algorithm.hyperparameters,
        "topology": {"name": topology.name, "digest": _digest(topology)},
        "clients": clients.settings,
        "optimizer": dataclasses.asdict(optimizer) if isinstance(optimizer, optim.SGD) else "optax",
        "steps": steps,
        "batch_size": batch_size,
        "public_batch_size": public_batch_size if algorithm.public_batch else None,
        "eval_every": eval_every,
        "seed": seed,
    }
    everyone = clients
    if algorithm.pooled:  # the same number of private samples in a step, in one place
        clients = clients.pooled()
        topology = topologies.empty(1)
        batch_size *= everyone.num_clients
    clients = clients.with_optimizer(optim.build(optimizer, steps))
    run = _Run(
        algorithm=algorithm,
        clients=clients,
        topology=topology,
        spec=BatchSpec(
            batch_size,
            public_batch_size if algorithm.public_batch else 0,
            algorithm.public_batch == "independent",
        ),
        data=device_data(clients),
        test=evaluation_set(clients.data.test_inputs, clients.data.test_labels, eval_batch_size),
        validation=None
        if not len(clients.validation)
        else evaluation_set(*clients.validation_samples(), eval_batch_size),
    )
    watch = Callbacks([*callbacks, *_progress_bar(progress)])
    folder = None if workdir is None else RunFolder(workdir, settings)
    try:
        carry = initial_carry(algorithm, clients, topology, run.data, run.spec, seed)
        history: list[dict[str, Any]] = []
        if folder is not None:
            folder.create()  # nothing is written for clients that init refuses
            carry = folder.restore(carry) or carry
            history = folder.history(until=int(carry.state.step))
            if folder.finished:
                summary = read_json(folder.path / "summary.json")
                return Result(summary, history, carry.state, started_at=steps)
        started_at = int(carry.state.step)
        watch.on_start(settings, started_at)
        with _stop_requests(active=folder is not None) as stop_requested:
            carry, compile_seconds = _train(
                run,
                carry,
                history,
                Plan(steps, eval_every, checkpoint_every, steps_per_dispatch),
                folder,
                watch,
                stop_requested,
            )
        state = carry.state
        summary = _summary(run, state, settings, everyone, history, compile_seconds)
        if folder is not None:
            report.write(folder.path, summary, history, everyone)
            folder.finish(summary)
        return Result(summary, history, state, started_at)
    finally:
        watch.on_end()
        if folder is not None:
            folder.close()


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


@dataclasses.dataclass(frozen=True)
class _Run:
    """What does not change during a run."""

    algorithm: Algorithm
    clients: Clients
    topology: Topology
    spec: BatchSpec
    data: DeviceData
    test: EvaluationSet
    validation: EvaluationSet | None

    def advance(self, carry: Carry, num_steps: int) -> Carry:
        """Takes steps; `carry` is used up."""
        return dispatch(
            carry,
            self.data,
            self.topology.adjacency,
            jnp.int32(num_steps),
            train_step=self.algorithm.train_step,
            schedule=self.topology.schedule,
            spec=self.spec,
        )

    def per_class_accuracy(self, state: State, samples: EvaluationSet) -> np.ndarray:
        """Accuracies [K, H, C]; NaN for a class without samples."""
        correct, total = count_correct(
            state, samples, predict=self.algorithm.predict, num_classes=self.clients.num_classes
        )
        correct, total = np.asarray(correct), np.asarray(total)
        return np.divide(
            correct, total, out=np.full(correct.shape, np.nan), where=np.asarray(total > 0)
        )

    def accuracies(self, state: State, samples: EvaluationSet) -> dict[str, Any]:
        """β_sh and β_priv by head: means over clients, and each client's."""
        per_class = self.per_class_accuracy(state, samples)
        betas = {
            "beta_sh": beta_sh(per_class),
            "beta_priv": beta_priv(per_class, self.clients.label_distributions),
        }
        names = head_names(per_class.shape[1])
        means = {
            metric: {
                name: float(np.nanmean(values[:, h])) if np.isfinite(values[:, h]).any() else None
                for h, name in enumerate(names)
            }
            for metric, values in betas.items()
        }
        each = {
            metric: {name: values[:, h] for h, name in enumerate(names)}
            for metric, values in betas.items()
        }
        return {**means, "per_client": jsonable(each)}

    def edge_bytes(self, state: State) -> dict[str, int]:
        """What one edge carries in one step, by type."""
        batch = jax.eval_shape(self._some_batch, state)
        return self.algorithm.edge_bytes(state, batch)

    def _some_batch(self, state: State) -> Batch:
        return draw_batch(self.data, state.key, state.client_ids, state.step, self.spec)


def _train(
    run: _Run,
    carry: Carry,
    history: list[dict[str, Any]],
    plan: Plan,
    folder: RunFolder | None,
    watch: Callback,
    stop_requested: Callable[[], bool],
) -> tuple[Carry, float]:
    """Runs to the end of the plan; adds to `history`. Returns the carry and the seconds of compilation."""
    started = time.perf_counter()
    carry = run.advance(carry, 0)  # compiles, and takes no step
    jax.block_until_ready(carry)
    compile_seconds = time.perf_counter() - started
    watch.on_compiled(compile_seconds)

    step = int(carry.state.step)
    seconds = history[-1]["seconds"] if history else 0.0
    edges = history[-1]["edges"] if history else 0
    pace = _Pace(plan.per_dispatch)
    while step < plan.steps:
        num_steps = min(pace.steps(), plan.next_stop(step) - step)
        started = time.perf_counter()
        carry = jax.block_until_ready(run.advance(carry, num_steps))
        elapsed = time.perf_counter() - started
        pace.observe(num_steps, elapsed)
        seconds += elapsed
        step += num_steps
        _require_finite(carry, step)
        watch.on_steps(step, pace.rate)
        if plan.evaluates_at(step):
            train, new_edges = _means(carry)
            edges += new_edges
            record = {
                "step": step,
                **run.accuracies(carry.state, run.test),
                "train": train,
                "edges": edges,
                "seconds": seconds,
            }
            if run.validation is not None:
                record["validation"] = run.accuracies(carry.state, run.validation)
            _warn_of_collapse(record)
            carry = carry.reset()
            history.append(record)
            if folder is not None:
                folder.append(record)
            watch.on_evaluation(record)
        stopping = stop_requested() and step < plan.steps
        if folder is not None and (plan.saves_at(step) or stopping):
            folder.save(step, carry)
        if stopping:
            folder.wait()  # type: ignore[union-attr]
            raise InterruptedRun(
                f"stopped at step {step} of {plan.steps}; everything is saved in {folder.path}, "  # type: ignore[union-attr]
                "and the same command resumes it"
            )
    return carry, compile_seconds


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


def _means(carry: Carry) -> tuple[dict[str, float | None], int]:
    """Metrics as means over steps and clients, and the number of edges used."""
    sums = jax.device_get(carry.sums)
    edges = int(sums.pop("edges", 0))
    count = int(carry.count)
    return {name: float(np.mean(total)) / count for name, total in sums.items()}, edges


def _require_finite(carry: Carry, step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(np.atleast_1d(carry.sums["loss"])))
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


def _check(
    algorithm: Algorithm,
    clients: Clients,
    positive: Mapping[str, int],
) -> None:
    for name, value in positive.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    if algorithm.public_batch and clients.num_public == 0:
        raise ConfigError(
            f"{algorithm.name} distills on public samples, but there are none; "
            "set public_fraction above 0."
        )
    # Positions in the sample streams are 32-bit.
    most = max(
        positive["batch_size"] * (clients.num_clients if algorithm.pooled else 1),
        positive["public_batch_size"],
    )
    if positive["steps"] * most >= 2**32:
        raise ConfigError(
            f"steps × batch size must stay below 2^32, but it is {positive['steps'] * most:,}; "
            "take fewer steps."
        )


def _digest(topology: Topology) -> str:
    """Tells graphs apart: the first steps' matrices, hashed."""
    horizon = topology.adjacency.shape[0] if topology.schedule is topologies.cycle else 16
    sha = hashlib.sha256()
    for step in range(horizon):
        sha.update(np.asarray(topology.at(step)).tobytes())
    return sha.hexdigest()[:16]


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
    run: _Run,
    state: State,
    settings: Mapping[str, Any],
    everyone: Clients,
    history: Sequence[Mapping[str, Any]],
    compile_seconds: float,
) -> dict[str, Any]:
    last = history[-1]
    steps = settings["steps"]
    per_class = run.per_class_accuracy(state, run.test)
    names = head_names(per_class.shape[1])
    edge_bytes = run.edge_bytes(state)
    each = last["per_client"]
    models = everyone.model_names
    return jsonable(
        {
            "algorithm": settings["algorithm"],
            "dataset": everyone.data.name,
            "num_clients": everyone.num_clients,
            "steps": steps,
            "seed": settings["seed"],
            "status": "finished",
            "beta_sh": last["beta_sh"],
            "beta_priv": last["beta_priv"],
            **({"validation": last["validation"]} if "validation" in last else {}),
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
            "communication": {
                "bytes_per_step_per_edge": sum(edge_bytes.values()),
                "total_bytes": sum(edge_bytes.values()) * last["edges"],
                "by_type": {kind: size * last["edges"] for kind, size in edge_bytes.items()},
                "edges_used": last["edges"],
            },
            "timing": {
                "compile_seconds": compile_seconds,
                "seconds_per_step": last["seconds"] / steps,
                "steps_per_second": steps / last["seconds"],
                "peak_memory_bytes": _peak_memory(),
            },
            "settings": settings,
        }
    )


def _peak_memory() -> int:
    """The most memory taken so far: the accelerator's where it tells, else this process's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
