"""`simulate(topology, clients)`: the host's loop around the compiled steps.

One dispatch takes many steps on the device: in each it draws batches, looks up the step's graph and
trains. The host evaluates, logs and saves between dispatches; the length of a dispatch affects only
the running time.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from mhd_jax.clients import Clients
from mhd_jax.core import modes
from mhd_jax.core.errors import ConfigError, DivergedError, InterruptedRun
from mhd_jax.core.types import Algorithm
from mhd_jax.data.augmentation import Augmentation
from mhd_jax.engine.failures import explained
from mhd_jax.engine.faults import Faults
from mhd_jax.engine.host import HostSettings, Watcher
from mhd_jax.engine.joint_runs import of_one_shape, partition
from mhd_jax.engine.lane import Lane
from mhd_jax.engine.loop import CTRL_C, carry_out
from mhd_jax.engine.metrics import Metric
from mhd_jax.engine.prepare import known_arguments, prepare
from mhd_jax.engine.result import Result
from mhd_jax.engine.run import Run
from mhd_jax.engine.schedule import Plan
from mhd_jax.engine.settings import Settings
from mhd_jax.runs.callbacks import Callback
from mhd_jax.runs.folder import RunFolder
from mhd_jax.training import optim


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
    eval_every: int = HostSettings.eval_every,
    eval_batch_size: int = Settings.eval_batch_size,
    augmentation: Augmentation | str | None = Settings.augmentation,
    augment_public: bool = Settings.augment_public,
    compute_dtype: str = Settings.compute_dtype,
    steps_per_dispatch: int | None = HostSettings.steps_per_dispatch,
    data_placement: str = Settings.data_placement,
    client_chunk: int | None = Settings.client_chunk,
    num_devices: int | None = Settings.num_devices,
    faults: Faults | None = Settings.faults,
    on_nonfinite: str = Settings.on_nonfinite,
    init: Any = None,
    workdir: str | pathlib.Path | None = None,
    checkpoint_every: int | None = HostSettings.checkpoint_every,
    keep_checkpoints: int = HostSettings.keep_checkpoints,
    keep_best: bool = HostSettings.keep_best,
    metrics: Mapping[str, Metric] | Sequence[str] | None = HostSettings.metrics,
    fall_back: bool = HostSettings.fall_back,
    callbacks: Watcher | Sequence[Watcher] = HostSettings.callbacks,
    progress: bool | None = HostSettings.progress,
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
      optimizer: an `optim.SGD`, an `optim.AdamW` or any optax transformation, for clients without their own;
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
      init: what a new run starts from, at step 0: the `Result` of another run, its folder, or
        parameters (a tree for all clients, or a list with one for each architecture, with or without
        an axis of clients). What has the same name and shape is taken, of heads rank by rank, and
        the rest is drawn; `summary["init"]` lists both. Optimizers start anew.
      workdir: the run folder, on this machine; ~ is the home folder. A second start resumes an
        interrupted run, only reads a finished one, and is refused while the run is in progress.
      checkpoint_every: steps between checkpoints; None saves at every evaluation.
      keep_checkpoints: how many of the latest checkpoints stay; the last step's always stays.
      keep_best: whether the checkpoint with the highest β_sh of the last head on the validation
        set stays too. An evaluation that finds a better one saves it.
      metrics: names of the library's, or functions by name, `f(logits [N, C], labels [N]) -> float`,
        which are called at each evaluation for each client and head with NumPy arrays; see
        `mhd_jax.engine.metrics`.
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
      DivergedError: a client's loss or parameters are no longer finite, or all clients are in
        quarantine.
      InterruptedRun: Ctrl-C or SIGTERM during a run with a workdir; the run has been saved.
      LostProcessError: another process of a run on several processes has ended.
      StorageError: the workdir cannot be written, for example because the disk is full.
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
        augmentation=augmentation,
        augment_public=augment_public,
        compute_dtype=compute_dtype,
        data_placement=data_placement,
        client_chunk=client_chunk,
        num_devices=num_devices,
        faults=faults,
        on_nonfinite=on_nonfinite,
        init=init,
    )
    host = HostSettings(
        workdirs=None if workdir is None else [workdir],
        eval_every=eval_every,
        steps_per_dispatch=steps_per_dispatch,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        keep_best=keep_best,
        metrics=metrics,
        fall_back=fall_back,
        callbacks=callbacks,
        progress=progress,
    )
    return cast(list[Result], _simulated([run], host))[0]  # a run that diverges has raised


def simulate_seeds(
    topologies: Iterable[Any],
    clients: Iterable[Clients],
    algorithm: Algorithm | str | None = None,
    *,
    seeds: Iterable[int],
    eval_every: int = HostSettings.eval_every,
    steps_per_dispatch: int | None = HostSettings.steps_per_dispatch,
    workdirs: Sequence[str | pathlib.Path] | None = HostSettings.workdirs,
    checkpoint_every: int | None = HostSettings.checkpoint_every,
    keep_checkpoints: int = HostSettings.keep_checkpoints,
    keep_best: bool = HostSettings.keep_best,
    metrics: Mapping[str, Metric] | Sequence[str] | None = HostSettings.metrics,
    fall_back: bool = HostSettings.fall_back,
    callbacks: Watcher | Sequence[Watcher] = HostSettings.callbacks,
    progress: bool | None = HostSettings.progress,
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
      keep_checkpoints, keep_best, metrics, fall_back, callbacks, progress: as for `simulate_many`.
      **settings: the other arguments of `simulate`.

    Returns:
      A `Result` for each seed, whose training time is its share of the joint time.
    """
    if "seed" in settings:
        raise ConfigError("seeds has the seed of each run; leave seed out.")
    seeds, workdirs = _each("seeds", seeds), _each("workdirs", workdirs or ())
    topologies, clients = _each("topologies", topologies), _each("clients", clients)
    lengths = {len(seeds), len(topologies), len(clients), len(workdirs or seeds)}
    if lengths != {len(seeds)} or not seeds:
        raise ConfigError("topologies, clients and workdirs must be one for each seed.")
    runs = [
        prepare(topology, who, algorithm, seed=seed, eval_every=eval_every, **settings)
        for topology, who, seed in zip(topologies, clients, seeds, strict=True)
    ]
    host = HostSettings(
        workdirs=workdirs,
        eval_every=eval_every,
        steps_per_dispatch=steps_per_dispatch,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        keep_best=keep_best,
        metrics=metrics,
        fall_back=fall_back,
        callbacks=callbacks,
        progress=progress,
    )
    return cast(list[Result], _simulated(runs, host))  # a run that diverges has raised


def simulate_many(
    runs: Iterable[Mapping[str, Any]],
    *,
    eval_every: int = HostSettings.eval_every,
    steps_per_dispatch: int | None = HostSettings.steps_per_dispatch,
    workdirs: Sequence[str | pathlib.Path] | None = HostSettings.workdirs,
    checkpoint_every: int | None = HostSettings.checkpoint_every,
    keep_checkpoints: int = HostSettings.keep_checkpoints,
    keep_best: bool = HostSettings.keep_best,
    metrics: Mapping[str, Metric] | Sequence[str] | None = HostSettings.metrics,
    fall_back: bool = HostSettings.fall_back,
    callbacks: Watcher | Sequence[Watcher] = HostSettings.callbacks,
    progress: bool | None = HostSettings.progress,
    keep_going: bool = HostSettings.keep_going,
    write_reports: bool = HostSettings.write_reports,
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
      keep_checkpoints, keep_best, metrics, fall_back: as for `simulate`, for each run.
      workdirs: one for each run.
      callbacks: watchers of all runs; from `on_start` they know which run a record belongs to.
      keep_going: whether the other runs go on after one diverges.
      write_reports: whether run folders get figures and a report page, a second or two each.

    Returns:
      A `Result` for each run, whose training time is its share of the joint time; with
      `keep_going`, the `DivergedError` of a run that diverged.
    """
    runs, workdirs = _each("runs", runs), _each("workdirs", workdirs or ())
    if len(workdirs or runs) != len(runs) or not runs:
        raise ConfigError("runs must be some, and workdirs one for each.")
    for place, settings in enumerate(runs):
        if not isinstance(settings, Mapping):
            raise ConfigError(f"run {place} must be a dict of arguments, not {settings!r}.")
        if "eval_every" in settings:
            raise ConfigError("eval_every is that of all runs; give it once, beside them.")
        if "workdir" in settings:
            raise ConfigError("folders are given by workdirs, one for each run; leave workdir out.")
    for place, settings in enumerate(runs):
        missing = [name for name in ("topology", "clients") if name not in settings]
        if missing:
            raise ConfigError(
                f"run {place} has no {' and no '.join(missing)}; add what is missing."
            )
    host = HostSettings(
        workdirs=workdirs,
        eval_every=eval_every,
        steps_per_dispatch=steps_per_dispatch,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        keep_best=keep_best,
        metrics=metrics,
        fall_back=fall_back,
        callbacks=callbacks,
        progress=progress,
        keep_going=keep_going,
        write_reports=write_reports,
    )
    return _simulated([prepare(**settings, eval_every=eval_every) for settings in runs], host)


def _each(name: str, given: Iterable[Any]) -> list[Any]:
    """Returns what is given one for each run, in any iterable, as a list."""
    if not isinstance(given, Iterable):
        raise ConfigError(
            f"{name} are a list, one for each run, not of type {type(given).__name__}."
        )
    return list(given)


@modes.standard()
def _simulated(runs: Sequence[Run], host: HostSettings) -> list[Result | DivergedError]:
    """Takes prepared runs to their end, jointly if they can share a program."""
    watch, folders = host.watcher(), host.folders(runs)
    lanes = _lanes(runs, host, folders, watch)
    results: dict[int, Result | DivergedError] = {}
    unfinished: list[int] = []
    with explained([folder for folder in folders if folder is not None]):
        for i, lane in enumerate(lanes):
            if lane.folder is not None and not lane.folder.finished:
                lane.folder.claim()  # until it returns, another process may finish the run
            if lane.folder is not None and lane.folder.finished:
                results[i] = lane.read()
            else:
                unfinished.append(i)
        for start, indices in _by_start(lanes, unfinished):
            for part, joined in partition([lanes[i].run for i in indices]):
                who = [indices[i] for i in part]
                found = carry_out([lanes[i] for i in who], joined or runs[who[0]], start, watch)
                results.update(zip(who, found, strict=True))
                for i in who:
                    lanes[i].run.samples.release()
                _require_begun([lanes[i] for i in who], len(results), len(lanes))
    return [results[i] for i in range(len(lanes))]


def require_startable(run: Run, host: HostSettings) -> None:
    """Raises `ConfigError` if a prepared run could not start, whatever its folder holds by now."""
    _lanes([run], host, [None], host.watcher())


def _lanes(
    runs: Sequence[Run], host: HostSettings, folders: Sequence[RunFolder | None], watch: Callback
) -> list[Lane]:
    """Returns the host's side of runs that can start; nothing has been written by then."""
    lanes = [
        Lane(
            run,
            folder,
            Plan.checked(
                run.steps, host.eval_every, host.checkpoint_every, host.steps_per_dispatch
            ),
            host,
        )
        for run, folder in zip(runs, folders, strict=True)
    ]
    host.require_fit(runs)
    watch.check([lane.view for lane in lanes])
    return lanes


def _require_begun(lanes: Sequence[Lane], done: int, count: int) -> None:
    """Raises `InterruptedRun` if Ctrl-C ended runs without folders, and others have not begun."""
    if done < count and any(lane.interrupted for lane in lanes):
        raise InterruptedRun(
            f"stopped by {CTRL_C}, before {count - done} of {count} runs had begun; workdirs keep "
            "what there is"
        )


def _by_start(lanes: Sequence[Lane], unfinished: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Groups runs of one shape by the step at which they start or resume, a common one if possible.

    A process that dies between two saves leaves one run a checkpoint ahead of the next, and only
    that one is given up.
    """
    groups: list[tuple[int, list[int]]] = []
    for mates in of_one_shape([lanes[i].run for i in unfinished]):
        starts = {unfinished[place]: lanes[unfinished[place]].starts for place in mates}
        behind = min(steps[-1] for steps in starts.values())
        if all(behind in steps[-2:] for steps in starts.values()):
            groups.append((behind, list(starts)))
            continue
        for start in sorted({steps[-1] for steps in starts.values()}):
            groups.append((start, [i for i, steps in starts.items() if steps[-1] == start]))
    return groups
