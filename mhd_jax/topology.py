"""Who may learn from whom: graphs over clients, static or changing from step to step.

A[i, j] > 0 means that client i may learn from client j (i receives from j). A graph given as
a networkx DiGraph or a directed edge list with an edge u → v lets v learn from u.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from flax import struct

from mhd_jax.errors import ConfigError

_CHECKED_STEPS = 16  # of a function of the step

Schedule = Callable[[jax.Array, jax.Array], jax.Array]


def cycle(adjacency: jax.Array, step: jax.Array) -> jax.Array:
    """The schedule of matrices [T, K, K] that repeat every T steps."""
    return adjacency[step % adjacency.shape[0]]


@struct.dataclass
class Topology:
    """A graph over K clients for every step.

    Attributes:
      adjacency: non-negative weights [T, K, K] with an empty diagonal; what the schedule
        chooses from.
      schedule: `(adjacency, step) -> [K, K]`, pure and traceable.
      name: for reports.
    """

    adjacency: jax.Array
    schedule: Schedule = struct.field(pytree_node=False, default=cycle)
    name: str = struct.field(pytree_node=False, default="custom")

    @property
    def num_clients(self) -> int:
        """K."""
        return self.adjacency.shape[-1]

    def at(self, step: jax.Array | int) -> jax.Array:
        """The adjacency matrix [K, K] of one step."""
        return self.schedule(self.adjacency, jnp.asarray(step))


def uniform_weights(adjacency: jax.Array) -> jax.Array:
    """The mixing matrix W [K, K] that gives neighbours and oneself equal weight, 1 / (degree + 1)."""
    linked = _links(adjacency) + jnp.eye(len(adjacency))
    return linked / linked.sum(axis=1, keepdims=True)


def metropolis_hastings(adjacency: jax.Array) -> jax.Array:
    """The mixing matrix W [K, K] with W[i, j] = 1 / (1 + max(degree i, degree j)) for neighbours.

    Symmetric and doubly stochastic where the graph is undirected (Xiao and Boyd, 2004).
    """
    linked = _links(adjacency)
    degree = linked.sum(axis=1)
    weights = linked / (1 + jnp.maximum(degree[:, None], degree[None, :]))
    return weights + jnp.diag(1 - weights.sum(axis=1))


MIXINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "uniform": uniform_weights,
    "metropolis_hastings": metropolis_hastings,
}


def _links(adjacency: jax.Array) -> jax.Array:
    return (jnp.asarray(adjacency) > 0).astype(jnp.float32)


def spectral_gap(mixing: Any) -> float:
    """1 − |λ₂| of a mixing matrix [K, K]: how much of a disagreement one round of gossip takes away."""
    sizes = np.sort(np.abs(np.linalg.eigvals(np.asarray(mixing, np.float64))))
    return float(1 - sizes[-2]) if len(sizes) > 1 else 1.0


def describe(topology: Topology) -> dict[str, Any]:
    """A graph in numbers, for a run's summary.

    Returns:
      "name", and for a graph that stays "edges", each direction counted, and "spectral_gap"
      of each mixing matrix on it.
    """
    if topology.schedule is not cycle or len(topology.adjacency) > 1:
        return {"name": topology.name}
    graph = topology.at(0)
    return {
        "name": topology.name,
        "edges": int((graph > 0).sum()),
        "spectral_gap": {name: spectral_gap(weights(graph)) for name, weights in MIXINGS.items()},
    }


def from_array(adjacency: Any, name: str = "custom") -> Topology:
    """A topology from weights [K, K], or [T, K, K] that repeat every T steps.

    Raises:
      ConfigError: not square, negative or non-finite weights, or self-loops.
    """
    try:
        matrices = np.asarray(adjacency, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"an adjacency matrix must be an array of numbers: {error}.") from error
    shape = matrices.shape
    if len(shape) not in (2, 3) or shape[-1] != shape[-2] or 0 in shape:
        raise ConfigError(
            f"an adjacency matrix must have shape [K, K] or [T, K, K], not {list(shape)}."
        )
    matrices = matrices.reshape((-1, *shape[-2:]))
    if not np.isfinite(matrices).all():
        raise ConfigError("an adjacency matrix must be finite, but this one has NaN or infinity.")
    if (matrices < 0).any():
        raise ConfigError("an adjacency matrix must not be negative: A[i, j] is a weight.")
    loops = np.flatnonzero(np.diagonal(matrices, axis1=1, axis2=2).any(axis=0))
    if loops.size:
        raise ConfigError(
            f"an adjacency matrix must have an empty diagonal, but clients "
            f"{_listed(loops)} have self-loops; a client's own head takes part through include_self."
        )
    return Topology(jnp.asarray(matrices), cycle, name)


def from_networkx(graph: nx.Graph, name: str | None = None) -> Topology:
    """A topology from a networkx graph; edge weights are kept.

    Nodes 0 … K − 1 are the clients of that number; other nodes are numbered in their order.

    An edge u → v of a DiGraph lets v learn from u.
    """
    if graph.number_of_nodes() == 0:
        raise ConfigError("the graph has no nodes; it needs one for each client.")
    # networkx has the row as an edge's source; a receiver is our row.
    numbered = set(graph) == set(range(len(graph)))
    nodes = range(len(graph)) if numbered else None
    try:
        matrix = nx.to_numpy_array(graph, nodelist=nodes, weight="weight").T
    except ValueError as error:
        raise ConfigError(f"the graph's edge weights must be numbers: {error}.") from error
    return from_array(matrix, name or graph.name or type(graph).__name__.lower())


@functools.lru_cache(maxsize=64)  # the same function is the same schedule, and compiles once
def from_function(function: Callable[[jax.Array], jax.Array], num_clients: int) -> Topology:
    """A topology from a traceable function of the step (int32 []) to weights [K, K]."""

    def schedule(adjacency: jax.Array, step: jax.Array) -> jax.Array:
        del adjacency
        matrix = jnp.asarray(function(step), jnp.float32)
        return jnp.where(jnp.eye(num_clients, dtype=bool), 0, matrix)

    name = getattr(function, "__name__", "function")
    try:
        shape = jax.eval_shape(function, jax.ShapeDtypeStruct((), jnp.int32)).shape
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(
            f"the topology function {name} cannot be traced by JAX ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); compute with jax.numpy, without branching on the step, "
            "or give an array [T, K, K]."
        ) from error
    if shape != (num_clients, num_clients):
        raise ConfigError(
            f"the topology function {name} returns shape {list(shape)}, "
            f"but {num_clients} clients need [{num_clients}, {num_clients}]."
        )
    return Topology(jnp.zeros((1, num_clients, num_clients)), schedule, name)


def from_file(path: str | os.PathLike, num_clients: int | None = None) -> Topology:
    """A topology from a file: `.npy` ([K, K] or [T, K, K]), or else an undirected edge list.

    An edge list has one edge a line, `i j` or `i j weight`, clients counted from 0; `#`
    starts a comment. `num_clients` is K; without it the highest client that occurs sets K.

    Raises:
      ConfigError: no such file, or a line that is not an edge, named by its number.
    """
    path = os.fspath(path)
    name = os.path.splitext(os.path.basename(path))[0]
    if not os.path.isfile(path):
        raise ConfigError(f"no topology file {path!r}.")
    if path.endswith(".npy"):
        try:
            return from_array(np.load(path, allow_pickle=False), name)
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path} is not a readable .npy array: {error}.") from error
    graph = nx.Graph(name=name)
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.split("#")[0].split()
            if not fields:
                continue
            try:
                i, j = int(fields[0]), int(fields[1])
                weight = float(fields[2]) if len(fields) == 3 else 1.0
                if len(fields) > 3 or min(i, j) < 0:
                    raise ValueError
            except (ValueError, IndexError):
                raise ConfigError(
                    f"{path}, line {number}: expected two clients counted from 0 and an "
                    f"optional weight, found {line.strip()!r}."
                ) from None
            graph.add_edge(i, j, weight=weight)
    if graph.number_of_nodes() == 0:
        raise ConfigError(f"{path} holds no edges.")
    if max(graph) > 100_000:
        raise ConfigError(f"{path} names client {max(graph)}: more clients than can be simulated.")
    ordered = nx.Graph(name=name)
    ordered.add_nodes_from(range(max(max(graph) + 1, num_clients or 0)))
    ordered.add_edges_from(graph.edges(data=True))
    return from_networkx(ordered, name)


def empty(num_clients: int) -> Topology:
    """No edges: everyone is alone."""
    return from_networkx(nx.empty_graph(_at_least(num_clients, 1, "empty")), "empty")


def complete(num_clients: int) -> Topology:
    """Everyone is everyone's neighbour."""
    return from_networkx(nx.complete_graph(_at_least(num_clients, 1, "complete")), "complete")


def ring(num_clients: int) -> Topology:
    """Client i neighbours i − 1 and i + 1, modulo K."""
    return from_networkx(nx.cycle_graph(_at_least(num_clients, 3, "ring")), "ring")


def chain(num_clients: int) -> Topology:
    """Client i neighbours i − 1 and i + 1, without closing the ring."""
    return from_networkx(nx.path_graph(_at_least(num_clients, 1, "chain")), "chain")


def star(num_clients: int) -> Topology:
    """Client 0 neighbours all others, and they only it."""
    return from_networkx(nx.star_graph(_at_least(num_clients, 2, "star") - 1), "star")


def circulant(num_clients: int, offsets: Sequence[int]) -> Topology:
    """Client i neighbours i ± o for each offset o, modulo K."""
    if not offsets or not all(0 < offset < num_clients for offset in offsets):
        raise ConfigError(
            f"a circulant topology needs offsets in 1 … {num_clients - 1}, not {list(offsets)}."
        )
    graph = nx.circulant_graph(num_clients, list(offsets))
    return from_networkx(graph, f"circulant({', '.join(map(str, offsets))})")


def exponential(num_clients: int) -> Topology:
    """Client i neighbours i ± 2^n for n = 0, 1, …, modulo K (Ying et al., NeurIPS 2021, undirected)."""
    _at_least(num_clients, 2, "exponential")
    offsets = [2**n for n in range((num_clients - 1).bit_length()) if 2**n < num_clients]
    return dataclasses.replace(circulant(num_clients, offsets), name="exponential")


def torus(num_clients: int) -> Topology:
    """A grid closed in both directions, as near to a square as K allows, sides of at least 3."""
    sides = [
        a for a in range(3, math.isqrt(num_clients) + 1) if num_clients % a == 0
    ]  # the other side is no shorter
    if not sides:
        raise ConfigError(
            f"a torus topology needs a × b clients with a, b ≥ 3 (9, 12, 15, 16 …), "
            f"not {num_clients}."
        )
    grid = nx.grid_2d_graph(sides[-1], num_clients // sides[-1], periodic=True)
    return from_networkx(nx.convert_node_labels_to_integers(grid), "torus")


def dyck(num_clients: int = 32) -> Topology:
    """The Dyck graph: 32 clients with three neighbours each."""
    _exactly(num_clients, 32, "dyck")
    return from_networkx(nx.LCF_graph(32, [5, -5, 13, -13], 8), "dyck")


def petersen(num_clients: int = 10) -> Topology:
    """The Petersen graph: 10 clients with three neighbours each."""
    _exactly(num_clients, 10, "petersen")
    return from_networkx(nx.petersen_graph(), "petersen")


def hypercube(num_clients: int) -> Topology:
    """Clients whose numbers differ in one binary digit are neighbours; K is a power of two."""
    dimension = num_clients.bit_length() - 1
    if num_clients != 2**dimension:
        raise ConfigError(f"a hypercube topology needs 2, 4, 8, … clients, not {num_clients}.")
    clients = np.arange(num_clients)
    differing = clients[:, None] ^ clients[None, :]
    return from_array(np.isin(differing, 2 ** np.arange(dimension)), "hypercube")


def islands(num_clients: int, num_islands: int = 2) -> Topology:
    """Complete graphs of K / `num_islands` clients, each joined to the next by one edge."""
    if num_islands < 1 or num_clients % num_islands:
        raise ConfigError(
            f"an islands topology needs equal islands, but {num_clients} clients cannot form "
            f"{num_islands}; change num_islands or the number of clients."
        )
    size = num_clients // num_islands
    graph = nx.disjoint_union_all([nx.complete_graph(size)] * num_islands)
    graph.add_edges_from((size * i - 1, size * i) for i in range(1, num_islands))
    return from_networkx(graph, "islands")


def random_regular(num_clients: int, degree: int = 3, seed: int = 0) -> Topology:
    """A connected graph drawn uniformly, in which everyone has `degree` neighbours."""
    if not 2 <= degree < num_clients or num_clients * degree % 2:
        raise ConfigError(
            f"a random_regular topology needs 2 ≤ degree < clients and an even product of the "
            f"two, not degree {degree} and {num_clients} clients."
        )
    return from_networkx(
        _connected(lambda rng: nx.random_regular_graph(degree, num_clients, rng), seed),
        "random_regular",
    )


def erdos_renyi(num_clients: int, edge_probability: float = 0.3, seed: int = 0) -> Topology:
    """A connected graph in which each pair is joined with probability `edge_probability`."""
    if not 0 < edge_probability <= 1:
        raise ConfigError(f"edge_probability must be in (0, 1], not {edge_probability}.")
    return from_networkx(
        _connected(lambda rng: nx.gnp_random_graph(num_clients, edge_probability, rng), seed),
        "erdos_renyi",
    )


def _connected(draw: Callable[[np.random.Generator], nx.Graph], seed: int) -> nx.Graph:
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        graph = draw(rng)
        if nx.is_connected(graph):
            return graph
    raise ConfigError(
        "1,000 random graphs were drawn and none was connected; raise edge_probability or degree."
    )


TOPOLOGIES: dict[str, Callable[..., Topology]] = {
    "complete": complete,
    "ring": ring,
    "chain": chain,
    "star": star,
    "torus": torus,
    "dyck": dyck,
    "petersen": petersen,
    "hypercube": hypercube,
    "exponential": exponential,
    "islands": islands,
    "random_regular": random_regular,
    "erdos_renyi": erdos_renyi,
    "empty": empty,
}


def options(name: str) -> dict[str, Any]:
    """What a named topology can be given beside the number of clients, with defaults."""
    if name not in TOPOLOGIES:
        return {}
    parameters = inspect.signature(TOPOLOGIES[name]).parameters
    return {key: p.default for key, p in parameters.items() if key != "num_clients"}


def named(name: str, num_clients: int, **given: Any) -> Topology:
    """The topology of that name over `num_clients` clients, or the one in the file of that name.

    Args:
      name: a key of `TOPOLOGIES`, or a path.
      num_clients: K.
      given: some of the topology's `options`.
    """
    if unknown := given.keys() - options(name).keys():
        raise ConfigError(f"the topology {name} does not use {', '.join(sorted(unknown))}.")
    if name in TOPOLOGIES:
        return TOPOLOGIES[name](num_clients, **given)
    if os.path.isfile(name) or os.path.splitext(name)[1]:
        return check_size(from_file(name, num_clients), num_clients)
    raise ConfigError(
        f"unknown topology {name!r}; choose one of {', '.join(TOPOLOGIES)}, or give the path of "
        "an edge list or a .npy file."
    )


def as_topology(topology: Any, num_clients: int) -> Topology:
    """What users may pass as a graph, as a `Topology` over `num_clients` clients.

    Args:
      topology: a Topology, weights [K, K] or [T, K, K], a networkx graph, a traceable
        function of the step, or a name.
      num_clients: K.

    Raises:
      ConfigError: it is none of these, or has another number of clients.
    """
    if isinstance(topology, str):
        topology = named(topology, num_clients)
    elif isinstance(topology, nx.Graph):
        topology = from_networkx(topology)
    elif callable(topology):
        topology = from_function(topology, num_clients)
    elif not isinstance(topology, Topology):
        topology = from_array(topology)
    return check_size(topology, num_clients)


def check_size(topology: Topology, num_clients: int) -> Topology:
    """The topology itself; raises `ConfigError` unless it has `num_clients` clients."""
    if topology.num_clients != num_clients:
        raise ConfigError(
            f"the topology {topology.name} has {topology.num_clients} clients, "
            f"but there are {num_clients}; make the two equal."
        )
    return topology


def _at_least(num_clients: int, least: int, name: str) -> int:
    if num_clients < least:
        raise ConfigError(f"a {name} topology needs at least {least} clients, not {num_clients}.")
    return num_clients


def require_undirected(topology: Topology, why: str) -> None:
    """Raises `ConfigError` where an edge goes one way only (for functions: in the first steps)."""
    matrices = (
        np.asarray(topology.adjacency)
        if topology.schedule is cycle
        else np.stack([np.asarray(topology.at(step)) for step in range(_CHECKED_STEPS)])
    )
    one_way = np.argwhere((matrices > 0) != (matrices > 0).swapaxes(1, 2))
    if one_way.size:
        _, i, j = one_way[0]
        raise ConfigError(
            f"{why} averages over the graph, whose edges must go both ways, but clients {i} and {j} "
            f"of {topology.name} are joined one way only; make the adjacency matrix symmetric."
        )


def _exactly(num_clients: int, needed: int, name: str) -> None:
    if num_clients != needed:
        raise ConfigError(f"a {name} topology has {needed} clients, not {num_clients}.")


def _listed(ids: np.ndarray, most: int = 10) -> str:
    shown = ", ".join(str(i) for i in ids[:most])
    return shown + (f" and {len(ids) - most} more" if len(ids) > most else "")
