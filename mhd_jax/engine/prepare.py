"""`prepare`: checks a run's settings and resolves every choice; it places no samples."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mhd_jax import topology as topologies
from mhd_jax.algorithms import ALGORITHMS, mhd
from mhd_jax.algorithms.base import hyperparameters
from mhd_jax.clients import Clients, make_clients
from mhd_jax.core import modes, neighbour_devices
from mhd_jax.core.calls import with_known_arguments
from mhd_jax.core.client_axis import Execution, client_mesh, default_platform
from mhd_jax.core.digests import array_digest, program_digest, require_pure
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.machine import machine, require_devices
from mhd_jax.core.types import Algorithm, GroupState
from mhd_jax.core.validation import is_number, require_counts
from mhd_jax.data.augmentation import Augmentation, parse
from mhd_jax.data.batching import BatchSpec
from mhd_jax.data.lazy_images import LazyImages
from mhd_jax.engine import contract, degenerate, memory
from mhd_jax.engine.faults import Faults, require_sound
from mhd_jax.engine.origins import decisive, starting_from
from mhd_jax.engine.run import Run, batch_shapes
from mhd_jax.engine.samples import Samples
from mhd_jax.engine.settings import DEFAULT_STEPS, Settings
from mhd_jax.engine.start import initial_carry
from mhd_jax.engine.steps import Carry
from mhd_jax.topology import distances
from mhd_jax.topology.graphs import Topology
from mhd_jax.topology.schedules import cycle
from mhd_jax.training import optim

_MOST_FOR_DATA = 0.4  # of the memory that steps may take
_FEW_CLIENTS = 64  # up to so many clients, each has slots for all others as neighbours


def of_another(name: str) -> str | None:
    """Says what has an argument of this name: algorithms, the optimizer or the clients, if any."""
    having = [each for each, build in ALGORITHMS.items() if name in hyperparameters(build)]
    if having:
        which = " or ".join(having[:3])
        return f"it belongs to the algorithm {which}: algorithm=mhd.algorithms.{having[0]}({name}=...)."
    for record in optim.OPTIMIZERS.values():
        if name in {field.name for field in dataclasses.fields(record)}:
            return (
                f"it belongs to the optimizer: optimizer=mhd.optim.{record.__name__}({name}=...)."
            )
    if name != "seed" and name in inspect.signature(make_clients).parameters:  # runs have seeds
        return f"it belongs to the clients: mhd.make_clients(..., {name}=...)."
    return None


known_arguments = with_known_arguments(of_another)


@known_arguments
@modes.standard()
def prepare(
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
    data_placement: str = Settings.data_placement,
    client_chunk: int | None = Settings.client_chunk,
    num_devices: int | None = Settings.num_devices,
    faults: Faults | None = Settings.faults,
    on_nonfinite: str = Settings.on_nonfinite,
    init: Any = None,
) -> Run:
    """Checks the settings and returns a run ready to start; arguments as for `mhd_jax.simulate`.

    Raises:
      ConfigError: settings that cannot work.
    """
    require_devices()
    _require_order(topology, clients)
    settings = Settings(
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
    )
    algorithm = resolved_algorithm(algorithm)
    settings = _checked(settings, clients, algorithm)
    topology = _checked_topology(topology, clients, algorithm, settings.steps)  # type: ignore[arg-type]
    return _prepared(topology, clients, algorithm, settings, init)


def _require_order(topology: Any, clients: Any) -> None:
    if isinstance(topology, Clients):
        raise ConfigError('the graph comes first, then the clients: mhd.simulate("ring", clients).')
    if not isinstance(clients, Clients):
        raise ConfigError(
            f"clients are what mhd.make_clients returns, not of type {type(clients).__name__}."
        )


def _checked(given: Settings, clients: Clients, algorithm: Algorithm) -> Settings:
    """Returns the settings with every choice made that does not need the data on a device."""
    optimizer = optim.SGD() if given.optimizer is None else given.optimizer
    optimizer = optim.resolved(optimizer, algorithm.nesterov)
    given.require_sound()
    steps = _steps(given.steps, given.epochs, clients, given.batch_size)
    require_counts(steps=steps)
    if algorithm.public_batch and clients.num_public == 0:
        raise ConfigError(
            f"{algorithm.name} distills on public samples, but there are none; "
            "set public_fraction above 0, high enough for a sample, or give a public data set."
        )
    if algorithm.needs_classes and not clients.task.has_classes:
        raise ConfigError(
            f"{algorithm.name} cannot learn numbers, which {clients.data.name} has as targets: "
            f"{algorithm.needs_classes}."
        )
    if clients.adversaries and not algorithm.falsifiable:
        raise ConfigError(
            f"{algorithm.name} does not know adversaries (client "
            f"{', '.join(map(str, clients.adversaries))}), who falsify predictions; leave them out, "
            "or choose mhd, naive, fedmd, idkd, selective_fd or ds_fl."
        )
    return dataclasses.replace(
        given,
        steps=steps,
        epochs=None,
        optimizer=optimizer,
        seed=int(given.seed),  # which may be one of NumPy's, and is none of JSON's
        augmentation=_augmentation(given.augmentation, given.augment_public, clients, algorithm),
        faults=None if given.faults == Faults() else given.faults,  # where nothing fails
    )


def _checked_topology(
    topology: Any, clients: Clients, algorithm: Algorithm, steps: int
) -> Topology:
    """Returns the graph as a topology, on which the algorithm has a meaning at every step."""
    topology = topologies.as_topology(topology, clients.num_clients)
    topologies.require_sound(topology, steps)
    if algorithm.undirected:
        topologies.require_undirected(topology, algorithm.name, steps)
    if algorithm.strongly_connected:
        distances.require_ways_back(topology, algorithm.name, steps)
    return topology


def _recorded(
    topology: Topology, clients: Clients, algorithm: Algorithm, chosen: Settings
) -> dict[str, Any]:
    """Returns what decides a run's results, for `config.json`, but for its optimizers."""
    augmentation: Any = chosen.augmentation
    settings = {
        "algorithm": algorithm.name,
        "hyperparameters": algorithm.hyperparameters,
        "topology": {"name": topology.name, "digest": _graph_digest(topology)},
        "clients": clients.settings,
        "steps": chosen.steps,
        "batch_size": chosen.batch_size,
        "public_batch_size": chosen.public_batch_size if algorithm.public_batch else None,
        "augmentation": None if augmentation is None else dataclasses.asdict(augmentation),
        "augment_public": chosen.augment_public,
        "eval_every": chosen.eval_every,
        "compute_dtype": chosen.compute_dtype,
        "seed": chosen.seed,
    }
    if chosen.faults is not None:
        settings["faults"] = dataclasses.asdict(chosen.faults)
    if chosen.quarantine:
        settings["on_nonfinite"] = chosen.on_nonfinite
    return settings


def _batch_spec(clients: Clients, algorithm: Algorithm, chosen: Settings) -> BatchSpec:
    """Returns the sizes of a step's batch; one client of all (`pooled`) takes all clients' samples."""
    spec = BatchSpec(
        chosen.batch_size * (clients.num_clients if algorithm.pooled else 1),
        chosen.public_batch_size if algorithm.public_batch else 0,
        algorithm.public_batch == "independent",
        clients.data.preparation,
        chosen.augmentation,  # type: ignore[arg-type]  # which `_checked` has parsed
        chosen.augment_public,
    )
    # Positions in the sample streams are 32-bit.
    samples: int = chosen.steps * max(spec.private, spec.public)  # type: ignore[operator]
    if samples >= 2**32:
        raise ConfigError(
            f"steps × batch size must stay below 2^32, but it is {samples:,}; take fewer steps."
        )
    return spec


def _prepared(
    topology: Topology, everyone: Clients, algorithm: Algorithm, chosen: Settings, init: Any
) -> Run:
    """Returns the run of checked settings."""
    settings = _recorded(topology, everyone, algorithm, chosen)
    spec = _batch_spec(everyone, algorithm, chosen)
    steps: Any = chosen.steps  # a number, since `_checked` has chosen it
    optimizer: Any = chosen.optimizer  # and this
    clients = everyone
    if algorithm.pooled:
        clients, topology = everyone.pooled(), topologies.empty(1)
    owners = [None if group.optimizer is None else group.members for group in clients.groups]
    optimizers = tuple(
        optim.resolved(group.optimizer or optimizer, algorithm.nesterov) for group in clients.groups
    )
    own_type = None if chosen.compute_dtype == "float32" else chosen.compute_dtype
    clients = clients.with_defaults(optimizer, own_type, steps, nesterov=algorithm.nesterov)
    samples = _samples(clients, topology, algorithm, spec, chosen)
    carry = initial_carry(
        *(algorithm, samples.clients, samples.data_shapes, spec, chosen.seed, samples.execution),
        may_fail=chosen.faults is not None,
        quarantine=chosen.quarantine,
        abstract=True,
    )
    starting, origin = starting_from(clients, init, carry.state.groups)
    if starting is not clients:  # what was traced of the others holds for them alone
        padded = starting.padded(samples.execution.num_shards)
        samples = dataclasses.replace(samples, clients=padded)
    _require_own_algorithm(algorithm, samples, carry)
    degenerate.warn_of(algorithm, clients, spec, chosen.batch_size, optimizers, steps, carry.state)
    has_server = any(count.ndim == 1 for count in carry.messages.values())
    require_sound(chosen.faults, chosen.quarantine, algorithm, has_server)
    plan = None
    if chosen.faults is not None:
        plan = chosen.faults.plan(everyone.num_clients, both_ways=algorithm.undirected)
    described = _described_optimizers(optimizer, owners, optimizers, carry.state.groups)
    return Run(
        algorithm=algorithm,
        topology=topology,
        plan=plan,
        quarantine=chosen.quarantine,
        optimizers=optimizers,
        everyone=everyone,
        clients=samples.clients,
        num_active=clients.num_clients,
        spec=spec,
        execution=samples.execution,
        client_chunk=chosen.client_chunk,
        steps=steps,
        seed=chosen.seed,
        samples=samples,
        carry=carry,
        settings=settings | described | ({} if origin is None else {"init": decisive(origin)}),
        origin=origin,
    )


def _samples(
    clients: Clients, topology: Topology, algorithm: Algorithm, spec: BatchSpec, chosen: Settings
) -> Samples:
    """Chooses how clients are computed and where their samples stay; nothing is placed yet."""
    execution = dataclasses.replace(
        _execution(clients, chosen.client_chunk, chosen.num_devices, algorithm, spec),
        most_neighbours=_bound_on_neighbours(topology),
    )
    padded = clients.padded(execution.num_shards)
    if execution.num_shards > 1 and topology.schedule is cycle:
        edges = distances.edges_of(topology, chosen.steps)  # type: ignore[arg-type]
        near = neighbour_devices.distances(edges, padded.num_clients, execution.num_shards)
        execution = dataclasses.replace(execution, near=near)
    on_host = _stays_on_host(chosen.data_placement, padded)
    at_once = min(chosen.eval_batch_size, _most_evaluated(padded, algorithm, spec, execution))
    return Samples(padded, spec, execution, chosen.seed, on_host, at_once)


def _require_own_algorithm(algorithm: Algorithm, samples: Samples, carry: Carry) -> None:
    """Raises `ConfigError` if a user's algorithm predicts wrong shapes or is not pure."""
    if algorithm.factory in ALGORITHMS.values():
        return
    state, clients = carry.state, samples.clients
    contract.require_predictions(algorithm, state, clients.data.samples(2), clients.num_outputs)
    batch = batch_shapes(carry, samples.data_shapes, samples.spec)
    graph = jax.ShapeDtypeStruct((state.num_clients,) * 2, jnp.float32)
    what = f"train_step of {algorithm.name}"
    require_pure(what, algorithm.train_step, state, batch, graph)


def _most_evaluated(
    clients: Clients, algorithm: Algorithm, spec: BatchSpec, execution: Execution
) -> int:
    """Returns how many samples can be evaluated at once in half of the memory."""
    needs = memory.estimate(clients, algorithm, spec)
    at_once = execution.at_once(clients.num_clients)
    return needs.largest_evaluation(spec.private, at_once, memory.capacity_bytes() // 2)


def _bound_on_neighbours(topology: Topology) -> int | None:
    """Returns a bound on a client's number of neighbours; None stands for all other clients.

    The bound saves time and memory. It is rounded up to a power of 2, so that similar graphs share
    one compiled program; graphs of few clients have no bound, and all share one.
    """
    bound = topology.most_neighbours if topology.num_clients > _FEW_CLIENTS else None
    return None if bound is None else 2 ** max(bound - 1, 0).bit_length()


def _stays_on_host(data_placement: str, clients: Clients) -> bool:
    """Returns whether training and test data stream from the host, by choice or by their size."""
    if data_placement == "host":
        return True
    samples = clients.data.inputs, clients.data.test_inputs, clients.public_inputs
    if data_placement == "device":
        if memory.num_bytes(samples) > memory.whole_bytes():
            raise ConfigError("the device cannot hold the data; set data_placement to 'host'.")
        return False
    if any(isinstance(a, LazyImages) for a in jax.tree.leaves(samples)):
        return True
    return memory.num_bytes(samples) > _MOST_FOR_DATA * memory.capacity_bytes()


def resolved_algorithm(algorithm: Any) -> Algorithm:
    """Returns an algorithm that is given by itself, by name, by its factory, or as None for MHD."""
    if algorithm is None:
        return mhd()
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            raise ConfigError(
                f"unknown algorithm {algorithm!r}; choose among {', '.join(ALGORITHMS)}."
            )
        return ALGORITHMS[algorithm]()
    if callable(algorithm) and algorithm in ALGORITHMS.values():
        return algorithm()
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(
            f"an algorithm is one of mhd_jax.algorithms, or its name, not {algorithm!r}."
        )
    return algorithm


def _augmentation(
    given: Augmentation | str | None,
    augment_public: bool,
    clients: Clients,
    algorithm: Algorithm,
) -> Augmentation | None:
    """Returns the parsed augmentation after checking that samples and algorithm allow it."""
    augmentation = parse(given) if isinstance(given, str) else given
    if not isinstance(augmentation, Augmentation | None):
        raise ConfigError(
            f"augmentation must be a text like 'flip,crop:4' or an Augmentation, not {given!r}."
        )
    if augment_public and augmentation is None:
        raise ConfigError("augment_public needs an augmentation; give one, or leave it out.")
    if augment_public and not algorithm.public_batch:
        raise ConfigError(f"augment_public is not used by {algorithm.name}; leave it out.")
    if augmentation is not None and algorithm.density is not None and not augment_public:
        raise ConfigError(
            "density ratios tell private samples from public ones, and would learn which of them are "
            "augmented; set augment_public, or leave the augmentation out."
        )
    if augment_public and algorithm.remembers_public:
        raise ConfigError(
            f"{algorithm.name} remembers what was said about each public sample, which must look "
            "the same every time; leave augment_public out."
        )
    if augmentation is not None:
        clients.data.require_images("augmentation is", "leave it out")
    return augmentation


def _steps(steps: int | None, epochs: float | None, clients: Clients, batch_size: int) -> int:
    if epochs is None:
        return DEFAULT_STEPS if steps is None else steps
    if steps is not None:
        raise ConfigError("give steps or epochs, not both.")
    if not (is_number(epochs) and math.isfinite(epochs) and epochs > 0):
        raise ConfigError(f"epochs must be a positive number, not {epochs!r}.")
    private_samples = int((clients.owner >= 0).sum())
    return max(1, round(float(epochs) * private_samples / (clients.num_clients * batch_size)))


def _described_optimizers(
    common: optim.Optimizer,
    owners: Sequence[tuple[int, ...] | None],
    optimizers: Sequence[optim.Optimizer],
    groups: Sequence[GroupState],
) -> dict[str, Any]:
    """Returns the optimizers as settings: the run's, and groups' own by their clients' numbers.

    Args:
      common: the run's optimizer.
      owners: for each group its clients if it has its own optimizer, else None.
      optimizers: the optimizer of each group.
      groups: shapes of each group's state.
    """
    pairs = list(zip(owners, optimizers, groups, strict=True))
    own = {
        ",".join(map(str, members)): _described(optimizer, [group])
        for members, optimizer, group in pairs
        if members is not None
    }
    takers = [group for members, _, group in pairs if members is None]
    found = {"optimizer": _described(common, takers)}
    return found | ({"optimizers": own} if own else {})


def _described(optimizer: optim.Optimizer, groups: Sequence[GroupState]) -> Any:
    """Returns an optimizer as a setting: a record's fields, or a digest of its update program."""
    if isinstance(optimizer, optim.Recorded):
        return optim.described(optimizer)
    update = optim.build(optimizer, 1)

    def of_one(group: GroupState) -> str:
        params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), group.params)
        return program_digest(lambda g, p: update.update(g, update.init(p), p), params, params)

    return {"optax": "-".join(sorted({of_one(group) for group in groups}))}


def _graph_digest(topology: Topology) -> str:
    if topology.schedule is cycle:
        return array_digest(np.asarray(topology.adjacency))
    return program_digest(topology.at, jax.ShapeDtypeStruct((), jnp.int32))


def _execution(
    clients: Clients,
    client_chunk: int | None,
    num_devices: int | None,
    algorithm: Algorithm,
    spec: BatchSpec,
) -> Execution:
    """Returns how to compute the client axis, following measurements (docs/performance.md).

    CPUs compute clients with convolutions one after the other on each device, which keeps one
    client's activations in the cache, and a few of its samples after the other if these have many.
    In all other cases a device computes all of its clients at once, as long as their activations
    fit in memory.
    """
    available = len(machine().devices)
    if num_devices is not None and num_devices > available:
        raise ConfigError(
            f"num_devices is {num_devices}, but there are {available}; on CPUs set "
            "jax_num_cpu_devices before JAX starts."
        )
    processes = len(machine().processes)
    shards = min(num_devices or available, clients.num_clients) // processes * processes
    if shards == 0:
        raise ConfigError(
            f"{processes} processes need at least as many clients and devices; start fewer."
        )
    # With more devices than clients, several devices share one client's samples.
    sharing = (num_devices or available) // shards
    while any(size % sharing for size in (spec.private, spec.public)):
        sharing -= 1
    mesh = client_mesh(shards * sharing, shards)
    platform = default_platform()
    if client_chunk is not None:
        return Execution(client_chunk, recompute=True, mesh=mesh, platform=platform)
    on_device = -(-clients.num_clients // shards)
    serial = platform == "cpu" and _has_convolutions(clients, algorithm, spec)
    chunk = 1 if serial else on_device
    needs, capacity = memory.estimate(clients, algorithm, spec), memory.capacity_bytes()
    if needs.step(on_device, chunk, recompute=False) <= capacity:
        part = needs.part(spec.private) if serial else None
        return Execution(chunk if serial else None, mesh=mesh, platform=platform, part=part)
    chunk = min(chunk, needs.largest_chunk(on_device, capacity))
    return Execution(chunk, recompute=True, mesh=mesh, platform=platform)


def _has_convolutions(clients: Clients, algorithm: Algorithm, spec: BatchSpec) -> bool:
    shapes = [memory.parameters(group, clients, algorithm, spec) for group in clients.groups]
    return any(leaf.ndim >= 4 for leaf in jax.tree.leaves(shapes))
