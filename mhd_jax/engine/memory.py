"""What a run needs of memory, and whether it fits.

A step's needs are estimated from shapes before anything is compiled. What cannot fit is refused
before its first step, with what to lower.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import psutil
from rich.filesize import decimal

from mhd_jax.clients import ClientGroup, Clients
from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import num_bytes
from mhd_jax.core.types import Algorithm, PyTree
from mhd_jax.data.batching import BatchSpec
from mhd_jax.engine.run import Run
from mhd_jax.models.client_model import ClientModel
from mhd_jax.training import optim

_USABLE = 0.8  # of the memory: the rest is for what an estimate does not see
_CONTAINER = pathlib.Path("/sys/fs/cgroup/memory.max")  # "max" where it has no limit
_WORTH_NAMING = 0.05  # of the whole
_OF_THE_STATE = "num_clients, pool_size, teacher_delay or a smaller model"
_STEP = "a step (batch_size, public_batch_size or client_chunk)"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one client, the largest of its kind.

    Attributes:
      model: parameters and statistics.
      state: these, snapshots of such, and optimizer state.
      gradients: of one pass, as large as the parameters.
      batch: its own samples in a step.
      private, public: what a pass over its private or public batch keeps for its gradient.
    """

    model: int
    state: int
    gradients: int
    batch: int
    private: int
    public: int

    def step(self, num_clients: int, chunk: int, recompute: bool) -> int:
        """Bytes of one step of `num_clients` clients on one device, `chunk` of them at once."""
        kept = chunk if recompute else num_clients
        everyone = self.state + 2 * self.gradients + self.batch
        if chunk == num_clients and not recompute:  # both passes may be one
            return num_clients * (everyone + self.private + self.public)
        return num_clients * everyone + max(chunk * self.private, kept * self.public)

    def largest_chunk(self, num_clients: int, capacity: int) -> int:
        """How many clients at once fit, activations being computed anew; at least 1."""
        left = capacity - self.step(num_clients, 0, recompute=True)
        return max(1, min(num_clients, left // max(self.private, self.public, 1)))

    def largest_evaluation(self, num_private: int, at_once: int, capacity: int) -> int:
        """Of how many samples the answers of `at_once` clients fit, when a batch has `num_private`."""
        each = -(-self.private // max(num_private, 1))
        return max(1, capacity // max(each * at_once, 1))


def estimate(clients: Clients, algorithm: Algorithm, spec: BatchSpec) -> Estimate:
    """The estimate for clients that have their optimizers."""
    each = [_of_group(group, clients, algorithm, spec) for group in clients.groups]
    # A pool has room for each architecture in every slot.
    kept = sum(part.model for part in each)
    each = [dataclasses.replace(p, state=p.state + algorithm.num_snapshots * kept) for p in each]
    fields = [field.name for field in dataclasses.fields(Estimate)]
    return Estimate(**{name: max(getattr(part, name) for part in each) for name in fields})


def parameters(
    group: ClientGroup, clients: Clients, algorithm: Algorithm, spec: BatchSpec
) -> PyTree:
    """Shapes and types of one client's parameters."""
    return _traced(group, clients, algorithm, spec)[0][0]


def capacity_bytes() -> int:
    """Memory that the steps may take on one device; always the same on one machine."""
    return int(_USABLE * whole_bytes())


def whole_bytes(num_devices: int | None = None) -> int:
    """All memory of one device; devices of a CPU, all or so many, share the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    sharing = max(1, (num_devices or jax.device_count()) // jax.process_count())
    return _machine_bytes() // sharing


@functools.cache
def _machine_bytes() -> int:
    """The machine's memory, or its container's share of it."""
    whole = psutil.virtual_memory().total
    try:
        limit = _CONTAINER.read_text().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdecimal() else whole


def _of_group(
    group: ClientGroup, clients: Clients, algorithm: Algorithm, spec: BatchSpec
) -> Estimate:
    known, opt_state, private, public = _traced(group, clients, algorithm, spec)
    params, stats = (num_bytes(tree) for tree in known)
    return Estimate(
        model=params + stats,
        state=params + stats + opt_state,
        gradients=params,
        batch=num_bytes(clients.data.samples(spec.private + spec.public * spec.independent_public)),
        private=private,
        public=public,
    )


def _traced(
    group: ClientGroup, clients: Clients, algorithm: Algorithm, spec: BatchSpec
) -> tuple[tuple[PyTree, PyTree], int, int, int]:
    leaves, structure = jax.tree.flatten(clients.data.samples(1))
    return _of_model(
        group.client_model(algorithm.num_heads, clients.num_classes),
        group.optimizer,
        structure,
        tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves),
        spec.private * (group.pretext.views if group.pretext else 1),
        spec.public,
    )


@functools.lru_cache(maxsize=64)
def _of_model(
    model: ClientModel,
    optimizer: Any,
    structure: Any,
    sample: tuple[tuple[tuple[int, ...], Any], ...],
    num_private: int,
    num_public: int,
) -> tuple[tuple[PyTree, PyTree], int, int, int]:
    """Shapes of parameters and statistics, and bytes: of the optimizer's state, and of what passes keep.

    Tracing a model takes a tenth of a second or more, and runs that are compared share theirs.
    """

    def samples(count: int) -> PyTree:
        leaves = [jax.ShapeDtypeStruct((count, *shape), dtype) for shape, dtype in sample]
        return jax.tree.unflatten(structure, leaves)

    def kept(params: PyTree, stats: PyTree, inputs: PyTree, key: Any) -> PyTree:
        return jax.vjp(lambda p: model.apply(p, stats, inputs, key)[0], params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    params, stats = jax.eval_shape(model.init, key, samples(max(num_private, 1)))
    opt_state = _optimizer_state(optimizer, params)
    known = num_bytes((params, stats))  # a pass keeps these by reference

    def activations(count: int) -> int:
        if count == 0:
            return 0
        residuals = jax.eval_shape(kept, params, stats, samples(count), key)
        return max(num_bytes(residuals) - known, 0)

    return (params, stats), num_bytes(opt_state), activations(num_private), activations(num_public)


def _optimizer_state(optimizer: Any, params: PyTree) -> PyTree:
    """Shapes of it; of one that does not fit a model's parameters alone, those of two moments."""
    if optimizer is None:
        return ()
    try:
        return jax.eval_shape(optim.build(optimizer, 1).init, params)
    except ConfigError:  # the algorithm may have more parameters; the run's start tells
        return params, params


def require_state_fits(run: Run, *, saves: bool) -> None:
    """Raises `ConfigError` where what stays in memory from step to step is more than a device has.

    On a CPU a run that saves keeps a copy of its state for the threads that write it.
    """
    state = run.carry.state
    copied = saves and run.execution.platform == "cpu"
    snapshots = [group.snapshots for group in state.groups]
    own = [(group.params, group.stats, group.opt_state) for group in state.groups]
    parts = {
        "parameters, statistics and optimizer state (num_clients, or a smaller model)": own,
        "snapshots of clients (pool_size or teacher_delay)": snapshots,
        "what the algorithm remembers (num_clients or the public set)": state.extra,
        "data (data_placement='host')": (run.data, run.test, run.validation),
        "counts of edges (num_clients)": (run.carry.messages, run.carry.diagnostics),
        f"a copy of the state while it is saved ({_OF_THE_STATE})": run.carry if copied else (),
    }
    _require_fits({what: on_each_device(tree) for what, tree in parts.items()}, run)


def fitted(run: Run) -> Run:
    """The run, computed in chunks of clients where its compiled step would not fit otherwise.

    Raises:
      ConfigError: it does not fit in chunks as given by the user, or of one client.
    """
    while True:
        needed = _step_bytes(run.lower(run.carry))
        smaller = _smaller_chunk(run, needed)
        if smaller is None:
            _require_fits(needed, run)
            return run
        execution = dataclasses.replace(run.execution, chunk=smaller, recompute=True)
        run = dataclasses.replace(run, execution=execution)


def require_step_fits(lowered: jax.stages.Lowered, run: Run) -> None:
    """Raises `ConfigError` where the step of several runs in one program needs more than a device has."""
    _require_fits(_step_bytes(lowered), run)


def _step_bytes(lowered: jax.stages.Lowered) -> dict[str, int]:
    """What the program needs on each device, as its compiler says, by what it is for."""
    found: Any = lowered.compile().memory_analysis()
    if found is None:  # a backend that does not tell
        return {}
    return {
        "state and data (num_clients, or a smaller model)": found.argument_size_in_bytes,
        _STEP: found.temp_size_in_bytes,
    }


def _smaller_chunk(run: Run, needed: Mapping[str, int]) -> int | None:
    """A chunk with which the step may fit where it does not; None where there is none."""
    execution, whole = run.execution, _least_whole_bytes(run)
    chunk = execution.at_once(run.clients.num_clients)
    if sum(needed.values()) <= whole or run.client_chunk is not None or chunk == 1:
        return None
    left = max(whole - sum(needed.values()) + needed[_STEP], 0)
    return max(1, min(int(chunk * left / needed[_STEP]), chunk // 2))


def on_each_device(tree: PyTree) -> int:
    """Bytes of arrays, or of shapes with places, on one of their devices."""
    return sum(
        num_bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype))
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    )


def _least_whole_bytes(run: Run) -> int:
    """The memory of a device, of the process that has least: all must decide alike."""
    own = whole_bytes(run.execution.num_devices)
    if jax.process_count() == 1:
        return own
    return int(multihost.from_each(own >> 20).min()) << 20  # they tell each other 32 bits


def _require_fits(parts: Mapping[str, int], run: Run) -> None:
    total, whole = sum(parts.values()), _least_whole_bytes(run)
    if total <= whole:
        return
    largest = sorted(parts.items(), key=lambda part: -part[1])
    named = [
        f"{decimal(size)} for {what}" for what, size in largest if size > _WORTH_NAMING * total
    ]
    raise ConfigError(
        f"the run does not fit: it needs {decimal(total)} on each device, which has {decimal(whole)}. "
        f"Of these are {'; '.join(named)}. Lower what is named in parentheses, or take more devices."
    )
