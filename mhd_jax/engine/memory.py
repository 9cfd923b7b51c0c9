"""Estimates a run's memory and checks that it fits on the device.

The memory of a step is estimated from shapes before anything is compiled. A run that cannot fit is
refused before its first step, with an error that names the settings to lower.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import psutil
from rich.filesize import decimal

from mhd_jax.clients import ClientGroup, Clients
from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.machine import machine
from mhd_jax.core.trees import num_bytes
from mhd_jax.core.types import Algorithm, PyTree
from mhd_jax.data.batching import BatchSpec
from mhd_jax.models.client_model import ClientModel
from mhd_jax.training import optim

if TYPE_CHECKING:
    from mhd_jax.engine.run import Run
    from mhd_jax.engine.steps import Carry

_USABLE = 0.8  # of the memory; the rest is a margin for what the estimate leaves out
_CONTAINER = pathlib.Path("/sys/fs/cgroup/memory.max")  # a number, or "max" for no limit
_PART = 8  # samples
_LEAVES_THE_CACHE = 2**25  # bytes
_WORTH_NAMING = 0.05  # of the run's total
_OF_THE_STATE = "num_clients, pool_size, teacher_delay or a smaller model"
_STATE = "state and data (num_clients, or a smaller model)"
STEP = "a step (batch_size, public_batch_size or client_chunk)"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The memory of one client in bytes, each entry the largest over the clients.

    Attributes:
      model: parameters and statistics.
      state: parameters, statistics, their snapshots, and the optimizer state.
      gradients: the gradient of one pass, as large as the parameters.
      batch: the client's own samples in a step.
      private, public: the activations that a forward pass over the private or the public batch
        keeps for its gradient.
    """

    model: int
    state: int
    gradients: int
    batch: int
    private: int
    public: int

    def step(self, num_clients: int, chunk: int, recompute: bool) -> int:
        """Returns the bytes of a step of `num_clients` clients on a device, `chunk` at once."""
        return num_clients * self.state + self.temporary(num_clients, chunk, recompute)

    def temporary(self, num_clients: int, chunk: int, recompute: bool) -> int:
        """Returns the bytes of `step` without the clients' state, which stays from step to step."""
        kept = chunk if recompute else num_clients
        everyone = 2 * self.gradients + self.batch
        if chunk == num_clients and not recompute:  # private and public pass may be one
            return num_clients * (everyone + self.private + self.public)
        return num_clients * everyone + max(chunk * self.private, kept * self.public)

    def largest_chunk(self, num_clients: int, capacity: int) -> int:
        """Returns how many clients fit at once if activations are recomputed; at least 1."""
        left = capacity - self.step(num_clients, 0, recompute=True)
        return max(1, min(num_clients, left // max(self.private, self.public, 1)))

    def part(self, num_private: int) -> int | None:
        """Returns how many private samples a CPU computes at once; None is the whole batch.

        By measurement, parts pay where a batch leaves the cache by far, and where their gradients,
        which are added up, are small beside their activations.
        """
        of_a_part = self.private // max(num_private, 1) * _PART
        leaves = self.private > _LEAVES_THE_CACHE and of_a_part > 2 * self.gradients
        return _PART if leaves else None

    def largest_evaluation(self, num_private: int, at_once: int, capacity: int) -> int:
        """Returns how many samples `at_once` clients can evaluate at once within `capacity`.

        `num_private` is the size of the private batch for which `private` was estimated.
        """
        each = -(-self.private // max(num_private, 1))
        return max(1, capacity // max(each * at_once, 1))


def estimate(clients: Clients, algorithm: Algorithm, spec: BatchSpec) -> Estimate:
    """Estimates the memory of one client; each group of `clients` must have its optimizer."""
    each = [_of_group(group, clients, algorithm, spec) for group in clients.groups]
    # Each slot of a pool has room for one model of every architecture.
    kept = sum(part.model for part in each)
    each = [dataclasses.replace(p, state=p.state + algorithm.num_snapshots * kept) for p in each]
    fields = [field.name for field in dataclasses.fields(Estimate)]
    return Estimate(**{name: max(getattr(part, name) for part in each) for name in fields})


def parameters(
    group: ClientGroup, clients: Clients, algorithm: Algorithm, spec: BatchSpec
) -> PyTree:
    """Returns shapes and types of the parameters of one client of `group`."""
    return _traced(group, clients, algorithm, spec)[0][0]


def capacity_bytes() -> int:
    """Returns the bytes that steps may take on one device, a constant of the machine."""
    return int(_USABLE * whole_bytes())


def whole_bytes(num_devices: int | None = None) -> int:
    """Returns the bytes of one device's memory.

    CPU devices, `num_devices` of them or all, divide the machine's memory among themselves.
    """
    available = machine()
    if available.bytes_each is not None:
        return available.bytes_each
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    sharing = max(1, (num_devices or len(available.devices)) // len(available.processes))
    return _machine_bytes() // sharing


@functools.cache
def _machine_bytes() -> int:
    """Returns the machine's memory in bytes, or the container's limit if that is lower."""
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
        group.client_model(algorithm.num_heads, clients.num_outputs),
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
    """Traces a model's shapes and the memory of its passes.

    The result is cached, as tracing takes a tenth of a second or more and compared runs often have
    the same models.

    Returns:
      Shapes of (parameters, statistics); bytes of the optimizer state; bytes of activations kept by
      a private and by a public pass.
    """

    def samples(count: int) -> PyTree:
        leaves = [jax.ShapeDtypeStruct((count, *shape), dtype) for shape, dtype in sample]
        return jax.tree.unflatten(structure, leaves)

    def kept(params: PyTree, stats: PyTree, inputs: PyTree, key: Any) -> PyTree:
        return jax.vjp(lambda p: model.apply(p, stats, inputs, key)[0], params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    params, stats = jax.eval_shape(model.init, key, samples(max(num_private, 1)))
    opt_state = _optimizer_state(optimizer, params)
    known = num_bytes((params, stats))  # residuals hold these by reference, without a copy

    def activations(count: int) -> int:
        if count == 0:
            return 0
        residuals = jax.eval_shape(kept, params, stats, samples(count), key)
        return max(num_bytes(residuals) - known, 0)

    return (params, stats), num_bytes(opt_state), activations(num_private), activations(num_public)


def _optimizer_state(optimizer: Any, params: PyTree) -> PyTree:
    """Returns the shapes of the optimizer state, or of two moments if they cannot be traced."""
    if optimizer is None:
        return ()
    try:
        return jax.eval_shape(optim.build(optimizer, 1).init, params)
    except ConfigError:  # it may need parameters that the algorithm adds; checked at the start
        return params, params


def require_state_fits(run: Run, *, saves: bool) -> None:
    """Raises `ConfigError` if the run's state and data exceed a device's memory."""
    _require_fits(state_parts(run, saves=saves), run)


def state_parts(run: Run, *, saves: bool) -> dict[str, int]:
    """Returns the bytes of a run's state and data on each device, by purpose.

    On a CPU a run that saves checkpoints also holds a copy of its state for the writing threads.
    """
    state = run.carry.state
    copied = saves and run.execution.platform == "cpu"
    snapshots = [group.snapshots for group in state.groups]
    own = [(group.params, group.stats, group.opt_state) for group in state.groups]
    parts = {
        "parameters, statistics and optimizer state (num_clients, or a smaller model)": own,
        "snapshots of clients (pool_size or teacher_delay)": snapshots,
        "what the algorithm remembers (num_clients or the public set)": state.extra,
        "data (data_placement='host')": run.samples.shapes(),
        "counts of edges (num_clients)": (run.carry.messages, run.carry.diagnostics),
        f"a copy of the state while it is saved ({_OF_THE_STATE})": run.carry if copied else (),
    }
    return {what: on_each_device(tree) for what, tree in parts.items()}


def fitted(run: Run, carry: Carry) -> Run:
    """Returns the run, with smaller chunks of clients if its compiled step would not fit.

    Raises:
      ConfigError: the step does not fit, with the user's `client_chunk` or in chunks of one client.
    """
    run, _, needed = most_at_once(run, carry)
    _require_fits(needed, run)
    return run


def most_at_once(run: Run, carry: Carry) -> tuple[Run, jax.stages.Compiled | None, dict[str, int]]:
    """Compiles a run's step, in smaller and smaller chunks of clients until it fits.

    Returns:
      The run with its chunk; its compiled step, None if the compiler gave up for want of memory;
      the bytes that the step needs on each device, by purpose. They may exceed the device's, where
      the user has set `client_chunk`, or in chunks of one client.
    """
    while True:
        compiled, needed = _compiled(run.lower(carry), run)
        smaller = _smaller_chunk(run, needed)
        if smaller is None:
            return run, compiled, needed
        execution = dataclasses.replace(run.execution, chunk=smaller, recompute=True)
        run = dataclasses.replace(run, execution=execution)


def require_step_fits(lowered: jax.stages.Lowered, run: Run) -> None:
    """Raises `ConfigError` if the joint step of several runs exceeds a device's memory."""
    _require_fits(_compiled(lowered, run)[1], run)


def _compiled(
    lowered: jax.stages.Lowered, run: Run
) -> tuple[jax.stages.Compiled | None, dict[str, int]]:
    """Compiles a step; returns it, and the bytes that it needs on each device, by purpose.

    Compilers that place arrays in memory, as those of TPUs, give up where these do not fit.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        held = on_each_device((run.carry, run.samples.data_shapes))
        wanted = _wanted_bytes(str(error)) or 2 * _least_whole_bytes(run)
        return None, {_STATE: held, STEP: max(wanted - held, 1)}
    found: Any = compiled.memory_analysis()
    if found is None:  # a backend without this analysis
        return compiled, {}
    return compiled, {_STATE: found.argument_size_in_bytes, STEP: found.temp_size_in_bytes}


def _wanted_bytes(refusal: str) -> int | None:
    """Returns the bytes that a TPU's compiler says it would have used; None if it does not say."""
    said = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])", refusal)
    return None if said is None else int(float(said[1]) * 1024 ** (1 + "KMGT".index(said[2])))


def _smaller_chunk(run: Run, needed: Mapping[str, int]) -> int | None:
    """Returns a smaller chunk with which the step may fit; None if it fits or cannot shrink."""
    execution, whole = run.execution, _least_whole_bytes(run)
    chunk = execution.at_once(run.clients.num_clients)
    if sum(needed.values()) <= whole or run.client_chunk is not None or chunk == 1:
        return None
    left = max(whole - sum(needed.values()) + needed[STEP], 0)
    return max(1, min(int(chunk * left / needed[STEP]), chunk // 2))


def on_each_device(tree: PyTree) -> int:
    """Returns the bytes of a tree's arrays, or shapes with shardings, on one of their devices."""
    return sum(
        num_bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype))
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    )


def _least_whole_bytes(run: Run) -> int:
    """Returns a device's bytes of memory, the least over processes, so that all decide alike."""
    own = whole_bytes(run.execution.num_devices)
    if jax.process_count() == 1:
        return own
    return int(multihost.from_each(own >> 20).min()) << 20  # processes exchange 32-bit numbers


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
