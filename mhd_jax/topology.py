"""Who may learn from whom: graphs over clients, static or changing from step to step.

A[i, j] > 0 means that client i may learn from client j (i receives from j). A graph given as
a networkx DiGraph or a directed edge list with an edge u → v lets v learn from u.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from flax import struct

from mhd_jax.errors import ConfigError

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


TOPOLOGIES: dict[str, Callable[[int], Topology]] = {
    "complete": complete,
    "ring": ring,
    "chain": chain,
    "star": star,
    "empty": empty,
}


def named(name: str, num_clients: int) -> Topology:
    """The topology of that name over `num_clients` clients, or the one in the file of that name."""
    if name in TOPOLOGIES:
        return TOPOLOGIES[name](num_clients)
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


def _listed(ids: np.ndarray, most: int = 10) -> str:
    shown = ", ".join(str(i) for i in ids[:most])
    return shown + (f" and {len(ids) - most} more" if len(ids) > most else "")
