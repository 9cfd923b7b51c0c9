"""Topologies: static or time-varying graphs that determine which clients learn from which.

A[i, j] > 0 means that client i may learn from client j (i receives from j). An edge u → v of a
networkx DiGraph or of an edge list has the direction in which knowledge flows: v may learn from u.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from flax import struct

from mhd_jax.core import modes
from mhd_jax.core.client_axis import is_traced
from mhd_jax.core.digests import pure_program
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.files import expanded
from mhd_jax.core.shown import html_block
from mhd_jax.core.types import PyTree
from mhd_jax.core.validation import is_integer, require_hashable, require_kind, require_seed
from mhd_jax.topology import drawn, schedules
from mhd_jax.topology.mixing import MIXINGS, links, spectral_gap
from mhd_jax.topology.schedules import Schedule, cycle

_TRACED = 10  # traces of a user's function: two random matchings of 4 clients agree in 1/3 of cases
_DRAWN = 16  # random graphs that are drawn for a time-varying random graph
_MOST_CLIENTS = 2**14  # whose adjacency matrix takes a GiB
_MOST_LINKS = 4096  # edges up to which a summary lists them
_MOST_LOOKED_AT = 10**8  # entries of a user's graphs that are checked, in about 0.1 seconds
_MOST_DIGITS = 9  # of the number of a node
_AS_GRAPH = "Pairs of clients, or a dictionary of neighbours, are given as a networkx graph, like nx.Graph(pairs)."


@struct.dataclass
class Topology:
    """A graph over K clients for every step.

    Attributes:
      adjacency: the arrays of the schedule, a tree: for `cycle`, non-negative weights [T, K, K]
        with zero diagonals.
      schedule: `(adjacency, step) -> [K, K]`, a pure and traceable function, see
        `mhd_jax.topology.schedules`.
      name: the name in reports.
    """

    adjacency: PyTree
    schedule: Schedule = struct.field(pytree_node=False, default=cycle)
    name: str = struct.field(pytree_node=False, default="custom")

    @property
    def num_clients(self) -> int:
        """K, the number of clients."""
        return jax.eval_shape(self.at, 0).shape[-1]

    @property
    @modes.standard()
    def most_neighbours(self) -> int | None:
        """The largest neighbourhood of a client at any step; None for a user's function."""
        return schedules.most_neighbours(self.schedule, self.adjacency)

    @modes.standard()
    def at(self, step: jax.Array | int) -> jax.Array:
        """Returns the adjacency matrix [K, K] of one step."""
        return self.schedule(self.adjacency, jnp.asarray(step))

    def __repr__(self) -> str:
        if is_traced(self.adjacency):
            return f"Topology {self.name}"
        edges = int((self.at(0) > 0).sum())
        static = self.schedule is cycle and len(self.adjacency) == 1
        when = "" if static else " at step 0, and others later"
        return f"Topology {self.name}: {self.num_clients} clients, {edges} directed edges{when}"

    def _repr_html_(self) -> str:
        return html_block(repr(self), drawn.svg(np.asarray(self.at(0)), self.name) or "")


@modes.standard()
def describe(topology: Topology, steps: int) -> dict[str, Any]:
    """Returns statistics of a topology, for the summary of a run.

    Args:
      topology: the topology of the run.
      steps: the number of steps of the run.

    Returns:
      "name"; for a static graph, "edges", with each direction counted, "links", where there are at
      most 4,096: pairs [receiver, sender], and "spectral_gap" for each kind of mixing matrix; for a
      time-varying graph, "edges_per_step", the mean over the steps of the run, and
      "spectral_gap_of_mean", the gap of the mean mixing matrix over them.
    """
    static = topology.schedule is cycle and len(topology.adjacency) == 1
    edges, mixing = _means(topology.adjacency, 1 if static else steps, schedule=topology.schedule)
    gaps = {name: spectral_gap(mixing[name]) for name in MIXINGS}
    if static:
        pairs = np.argwhere(np.asarray(links(topology.adjacency[0])))
        few = {"links": pairs.tolist()} if len(pairs) <= _MOST_LINKS else {}
        return {"name": topology.name, "edges": int(edges), **few, "spectral_gap": gaps}
    return {
        "name": topology.name,
        "edges_per_step": round(float(edges), 3),
        "spectral_gap_of_mean": gaps,
    }


def linked(pairs: Sequence[Sequence[int]], num_clients: int) -> np.ndarray:
    """Returns whether i may learn from j at [i, j], bool [K, K], of the links that `describe` lists."""
    found = np.zeros((num_clients, num_clients), bool)
    found[tuple(np.array(pairs, int).reshape(-1, 2).T)] = True
    return found


@functools.partial(jax.jit, static_argnames="schedule")
def _means(
    adjacency: PyTree, steps: jax.Array, *, schedule: Schedule
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns means over the steps of the number of edges and of each mixing matrix [K, K]."""

    def at(step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        graph = schedule(adjacency, step)
        return links(graph).sum(), {name: of(graph) for name, of in MIXINGS.items()}

    def add(step: jax.Array, means: PyTree) -> PyTree:
        return jax.tree.map(lambda mean, a: mean + (a - mean) / (step + 1), means, at(step))

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(at, jnp.int32(0)))
    return jax.lax.fori_loop(0, steps, add, zeros)


@modes.standard()
def from_array(adjacency: Any, name: str = "custom") -> Topology:
    """Returns a topology from weights [K, K], or from [T, K, K], which repeat every T steps.

    Args:
      adjacency: an array or lists of numbers, or a sparse matrix of SciPy.
      name: the name in reports.

    Raises:
      ConfigError: matrices are not square, weights are negative, not finite or outside the normal
        range of float32, or there are self-loops.
    """
    try:
        given = np.asarray(adjacency.toarray() if hasattr(adjacency, "toarray") else adjacency)
        if given.dtype.kind in "cSUmM":  # which NumPy would convert to numbers
            raise TypeError(f"it holds {given.dtype}")
        matrices = given.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"an adjacency matrix must be an array of numbers: {error}. {_AS_GRAPH}"
        ) from error
    shape = matrices.shape
    if len(shape) not in (2, 3) or shape[-1] != shape[-2] or 0 in shape:
        raise ConfigError(
            f"an adjacency matrix must have shape [K, K] or [T, K, K], not {list(shape)}. {_AS_GRAPH}"
        )
    matrices = matrices.reshape((-1, *shape[-2:]))
    _require_weights(matrices, "an adjacency matrix")
    return Topology(jnp.asarray(matrices, jnp.float32), cycle, name)


def _require_weights(matrices: np.ndarray, what: str) -> None:
    """Raises `ConfigError` unless matrices [..., K, K] are weights without self-loops."""
    if not np.isfinite(matrices).all():
        raise ConfigError(f"{what} must be finite, but it has NaN or infinity.")
    if (matrices < 0).any():
        raise ConfigError(f"{what} must not be negative: A[i, j] is a weight.")
    diagonals = np.diagonal(matrices, axis1=-2, axis2=-1).reshape(-1, matrices.shape[-1])
    loops = np.flatnonzero(diagonals.any(axis=0))
    if loops.size:
        raise ConfigError(
            f"{what} must have an empty diagonal, but clients "
            f"{_listed(loops)} have self-loops; a client's own head takes part through include_self."
        )
    least, most = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    positive = matrices[matrices > 0]
    if ((positive < least) | (positive > most)).any():
        raise ConfigError(
            f"weights of {what} must lie in {least:.2g} … {most:.2g}, or be 0, but they "
            f"span {positive.min():.2g} … {positive.max():.2g}; scale them."
        )


def from_networkx(
    graph: nx.Graph, name: str | None = None, *, nodes: Sequence[Any] | None = None
) -> Topology:
    """Returns a topology from a networkx graph, with its edge weights.

    An edge u → v of a DiGraph lets v learn from u.

    Args:
      graph: a graph with one node for each client.
      name: the name in reports; by default the graph's own name.
      nodes: the nodes in the order of the clients. Without it, nodes must be numbers, or numbers
        as text: either 0 … K − 1, where node n is client n, or 1 … K, where it is client n − 1.

    Raises:
      ConfigError: the nodes do not determine the clients, or `from_array` refuses the weights.
    """
    if graph.number_of_nodes() == 0:
        raise ConfigError("the graph has no nodes; it needs one for each client.")
    order = _by_number(graph) if nodes is None else _given_order(graph, nodes)
    try:
        # In networkx a row is the source of an edge; here it is the receiver.
        matrix = nx.to_numpy_array(graph, nodelist=order, weight="weight").T
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"the graph's edge weights must be numbers: {error}.") from error
    return from_array(matrix, name or str(graph.name) or type(graph).__name__.lower())


def _by_number(graph: nx.Graph) -> list[Any]:
    """Returns the nodes, which must be 0 … K − 1 or 1 … K, in ascending order."""
    size, missing = len(graph), ""
    node_of = {number: node for node in graph if (number := _as_integer(node)) is not None}
    if len(node_of) == size and (start := min(node_of)) in (0, 1):
        absent = [number for number in range(start, start + size) if number not in node_of]
        if not absent:
            return [node_of[number] for number in sorted(node_of)]
        missing = f", of which graph.add_node({absent[0]}) would add the first that is missing"
    raise ConfigError(
        f"nodes 0 … K − 1 or 1 … K say which client each is, but the graph's {size} nodes are "
        f"{_shown_nodes(graph)}{missing}; give them in the order of the clients, as "
        "mhd.topology.from_networkx(graph, nodes=[...])."
    )


def _as_integer(node: Any) -> int | None:
    """Returns the integer that a node is, or is the text of; None for other nodes."""
    if isinstance(node, str):
        return int(node) if node.isdecimal() and len(node) <= _MOST_DIGITS else None
    if isinstance(node, float | np.floating):
        return int(node) if float(node).is_integer() else None
    return int(node) if isinstance(node, numbers.Integral) else None


def _given_order(graph: nx.Graph, nodes: Sequence[Any]) -> list[Any]:
    try:
        order = list(nodes)
        exact = len(order) == len(graph) and set(order) == set(graph)
    except TypeError:  # nodes are not a sequence, or one cannot be hashed
        exact = False
    if not exact:
        raise ConfigError(
            f"nodes must hold each of the graph's {len(graph)} nodes once, in the order of the "
            f"clients; they are {_shown_nodes(graph)}."
        )
    return order


def _shown_nodes(graph: nx.Graph, most: int = 5) -> str:
    shown = ", ".join(repr(node) for node in itertools.islice(graph, most))
    return " ".join(shown.split())[:200] + (" …" if len(graph) > most else "")


@modes.standard()
def from_function(function: Callable[[jax.Array], jax.Array], num_clients: int) -> Topology:
    """Returns a topology from a function of the step, int32 [], to weights [K, K].

    The function is traced, not called at every step: its result must depend on the step alone, so
    that random graphs must be drawn by `jax.random` from the step, not by NumPy. The diagonal must
    be 0. `require_sound` checks the values.

    Raises:
      ConfigError: the function cannot be traced or hashed, gives another program at each trace, or
        returns a wrong shape.
    """
    name = _name_of(function)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    try:
        digest, returned = pure_program(function, step, times=_TRACED)
        graph = jax.eval_shape(jnp.asarray, returned)
    except Exception as error:  # users' functions may raise any exception
        raise ConfigError(
            f"the topology function {name} cannot be traced by JAX ({in_a_line(error)}); "
            "compute with jax.numpy, without branching on the step, "
            "or give an array [T, K, K]."
        ) from error
    if graph.shape != (num_clients, num_clients):
        raise ConfigError(
            f"the topology function {name} returns shape {list(graph.shape)}, "
            f"but {num_clients} clients need [{num_clients}, {num_clients}]."
        )
    if jnp.issubdtype(graph.dtype, jnp.complexfloating):
        raise ConfigError(f"the topology function {name} must return numbers, not {graph.dtype}.")
    if digest is None:
        raise ConfigError(
            f"the topology function {name} is another one each time it is called, and would be "
            "frozen into one graph for the whole run: draw with jax.random from the step, as in "
            "jax.random.permutation(jax.random.fold_in(key, step), K), not with NumPy or Python."
        )
    require_hashable(f"the topology function {name}", function)
    return Topology((), _schedule_of(function, digest), name)


@functools.lru_cache(maxsize=64)  # one schedule per function, so that programs compile once
def _schedule_of(function: Callable[[jax.Array], jax.Array], digest: str) -> Schedule:
    """Returns a function of the step as a schedule, a new one if the function's digest changes."""
    del digest

    def schedule(adjacency: PyTree, step: jax.Array) -> jax.Array:
        del adjacency
        return jnp.asarray(function(step), jnp.float32)

    return schedule


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def require_sound(topology: Topology, steps: int) -> None:
    """Raises `ConfigError` if a graph of a run has weights that `from_array` refuses.

    Of a user's function all steps are checked, or evenly spaced ones if there are too many.
    """
    if schedules.is_known(topology.schedule):
        for matrices in jax.tree.leaves(topology.adjacency):
            if np.ndim(matrices) >= 2:
                _require_weights(np.asarray(matrices), f"the topology {topology.name}")
        return
    count = max(1, min(steps, _MOST_LOOKED_AT // topology.num_clients**2))
    looked_at = np.unique(np.linspace(0, steps - 1, count).astype(np.int32))
    first = int(_first_unsound(topology.adjacency, looked_at, schedule=topology.schedule))
    if first < len(looked_at):
        step = int(looked_at[first])
        what = f"the topology {topology.name} at step {step}"
        _require_weights(np.asarray(topology.at(step), np.float64), what)


@functools.partial(jax.jit, static_argnames="schedule")
def _first_unsound(adjacency: PyTree, steps: jax.Array, *, schedule: Schedule) -> jax.Array:
    """Returns the index in `steps` of the first invalid graph; the length of `steps` if none is."""

    def is_sound(place: jax.Array) -> jax.Array:
        graph = schedule(adjacency, steps[place])
        tiny = jnp.finfo(jnp.float32).tiny
        weights = jnp.isfinite(graph) & ((graph == 0) | (graph >= tiny))
        return weights.all() & ~jnp.diagonal(graph).any()

    return jax.lax.while_loop(
        lambda place: (place < len(steps)) & is_sound(jnp.minimum(place, len(steps) - 1)),
        lambda place: place + 1,
        jnp.int32(0),
    )


def from_file(path: str | os.PathLike, num_clients: int | None = None) -> Topology:
    """Returns a topology from a file: a ``.npy`` array ([K, K] or [T, K, K]), or else an edge list.

    An edge list has one edge per line, `i j` or `i j weight`, with clients counted from 0. With an
    arrow, `i -> j` or `i -> j weight`, the edge has one direction only and lets j learn from i. `#`
    starts a comment. A weight of 0 is no edge; if an edge occurs several times, its last weight
    counts. `num_clients` is K; without it, K is the highest client that occurs plus 1.

    Raises:
      ConfigError: there is no such file, a line is not an edge (the message gives its number), or
        there are more clients than `num_clients`.
    """
    path = str(expanded(path))
    name = os.path.splitext(os.path.basename(path))[0]
    if not os.path.isfile(path):
        raise ConfigError(f"no topology file {path!r}.")
    if path.endswith(".npy"):
        try:
            return from_array(np.load(path, allow_pickle=False), name)
        except ConfigError:
            raise
        except Exception as error:  # NumPy and zipfile raise exceptions of many types
            raise ConfigError(f"{path} is not a readable .npy array: {error}.") from error
    graph = nx.DiGraph(name=name)
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.split("#")[0].replace("->", " -> ").split()
            if not fields:
                continue
            try:
                if one_way := fields[1:2] == ["->"]:
                    del fields[1]
                i, j = int(fields[0]), int(fields[1])
                weight = float(fields[2]) if len(fields) == 3 else 1.0
                if len(fields) > 3 or min(i, j) < 0 or not 0 <= weight < math.inf:
                    raise ValueError
            except (ValueError, IndexError):
                raise ConfigError(
                    f"{path}, line {number}: expected two clients counted from 0 and an "
                    f"optional weight, found {line.strip()!r}."
                ) from None
            graph.add_edge(i, j, weight=weight)
            if not one_way:
                graph.add_edge(j, i, weight=weight)
    if graph.number_of_nodes() == 0:
        raise ConfigError(f"{path} holds no edges.")
    size = max(max(graph) + 1, num_clients or 0)
    if num_clients is not None:
        _require_equal(name, size, num_clients)
    ordered = nx.DiGraph(name=name)
    ordered.add_nodes_from(range(_at_least(size, 1, name)))
    ordered.add_edges_from(graph.edges(data=True))
    return from_networkx(ordered, name)


def empty(num_clients: int) -> Topology:
    """A graph without edges, in which each client is alone."""
    return from_networkx(nx.empty_graph(_at_least(num_clients, 1, "empty")), "empty")


def complete(num_clients: int) -> Topology:
    """The complete graph, in which all clients are neighbours."""
    return from_array(~np.eye(_at_least(num_clients, 1, "complete"), dtype=bool), "complete")


def ring(num_clients: int, directed: bool = False) -> Topology:
    """A ring: client i neighbours i ± 1, modulo K; if `directed`, it learns from i + 1 alone."""
    return _ring_of_offsets("ring", _at_least(num_clients, 3, "ring"), [1], directed)


def chain(num_clients: int) -> Topology:
    """A chain: client i neighbours i − 1 and i + 1, without closing the ring."""
    return from_networkx(nx.path_graph(_at_least(num_clients, 1, "chain")), "chain")


def star(num_clients: int) -> Topology:
    """A star: client 0 neighbours all others, which have no other neighbour."""
    return from_networkx(nx.star_graph(_at_least(num_clients, 2, "star") - 1), "star")


def circulant(num_clients: int, offsets: Sequence[int] = (1,), directed: bool = False) -> Topology:
    """A circulant graph: client i neighbours i ± o, modulo K, for each offset o.

    If `directed`, client i learns from i + o alone.
    """
    num_clients = _at_least(num_clients, 2, "circulant")
    if not isinstance(offsets, Sequence | np.ndarray) or not np.size(offsets):
        raise ConfigError(f"offsets must be a sequence of integers, like (1, 4), not {offsets!r}.")
    for offset in offsets:
        if not is_integer(offset) or not 0 < offset < num_clients:
            raise ConfigError(
                f"a circulant topology needs offsets in 1 … {num_clients - 1}, not {offset!r}."
            )
    name = f"circulant({', '.join(map(str, offsets))})"
    return _ring_of_offsets(name, num_clients, offsets, directed)


def exponential(num_clients: int, directed: bool = False) -> Topology:
    """An exponential graph: client i neighbours i ± 2^n, modulo K, for n = 0, 1, …

    If `directed`, client i learns from i + 2^n alone: the static exponential graph of Ying et al.
    (NeurIPS 2021).
    """
    return _ring_of_offsets("exponential", num_clients, _powers_of_two(num_clients), directed)


def one_peer_exponential(num_clients: int) -> Topology:
    """The one-peer exponential graph, time-varying and directed (Ying et al., NeurIPS 2021).

    At step t client i learns from i + 2^(t mod ⌈log₂ K⌉), modulo K. Knowledge of any client
    reaches all others in ⌈log₂ K⌉ steps.
    """
    peers = [[power] for power in _powers_of_two(num_clients)]
    matrices = [_offset_matrix(num_clients, offsets, directed=True) for offsets in peers]
    return from_array(matrices, "one_peer_exponential")


def _powers_of_two(num_clients: int) -> list[int]:
    """Returns the powers of two below K: 1, 2, 4, …"""
    return [2**n for n in range((_at_least(num_clients, 2, "exponential") - 1).bit_length())]


def _ring_of_offsets(
    name: str, num_clients: int, offsets: Sequence[int], directed: bool
) -> Topology:
    require_kind("directed", "bool", directed)
    matrix = _offset_matrix(num_clients, offsets, directed=directed)
    return from_array(matrix, f"directed {name}" if directed else name)


def _offset_matrix(num_clients: int, offsets: Sequence[int], *, directed: bool) -> np.ndarray:
    """Returns the matrix [K, K] of edges i ← i + o, modulo K, and unless `directed` i ← i − o."""
    matrix = np.zeros((num_clients, num_clients), bool)
    for offset in offsets:
        matrix |= np.roll(np.eye(num_clients, dtype=bool), offset, axis=1)
    return matrix if directed else matrix | matrix.T


def torus(num_clients: int) -> Topology:
    """A torus: a grid closed in both directions, as square as possible, with sides of 3 or more."""
    num_clients = _at_least(num_clients, 1, "torus")
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
    """A hypercube: clients whose numbers differ in one binary digit are neighbours; K is 2^n."""
    num_clients = _at_least(num_clients, 1, "hypercube")
    dimension = num_clients.bit_length() - 1
    if num_clients != 2**dimension:
        raise ConfigError(f"a hypercube topology needs 2, 4, 8, … clients, not {num_clients}.")
    clients = np.arange(num_clients)
    differing = clients[:, None] ^ clients[None, :]
    return from_array(np.isin(differing, 2 ** np.arange(dimension)), "hypercube")


def islands(num_clients: int, num_islands: int = 2, meet_every: int | None = None) -> Topology:
    """A chain of complete graphs (islands) of equal size ± 1, each joined to the next by one edge.

    With `meet_every` = n the edges between islands exist at the steps 0, n, 2n, … only.
    """
    num_clients = _at_least(num_clients, 1, "islands")
    require_kind("num_islands", "int", num_islands)
    if not 1 <= num_islands <= num_clients:
        raise ConfigError(
            f"{num_clients} clients cannot form {num_islands} islands; change num_islands or the "
            "number of clients."
        )
    parts = np.array_split(np.arange(num_clients), num_islands)
    graph = nx.disjoint_union_all([nx.complete_graph(len(part)) for part in parts])
    apart = from_networkx(graph).at(0)
    graph.add_edges_from((int(part[0]) - 1, int(part[0])) for part in parts[1:])
    joined = from_networkx(graph, "islands")
    if meet_every is None:
        return joined
    arrays = (joined.at(0), apart, _interval("meet_every", meet_every))
    return Topology(arrays, schedules.meeting, "islands")


@modes.standard()
def random_matching(num_clients: int, seed: int = 0) -> Topology:
    """A uniformly random matching of the clients into pairs, drawn anew at every step.

    If K is odd, one client is alone.
    """
    matrix = np.zeros((_at_least(num_clients, 2, "random_matching"), num_clients))
    require_seed(seed)
    first = np.arange(0, num_clients - 1, 2)
    matrix[first, first + 1] = matrix[first + 1, first] = 1
    arrays = (from_array(matrix).adjacency, jnp.int32(1), jnp.uint32(seed))
    return Topology(arrays, schedules.redrawn, "random_matching")


def random_regular(
    num_clients: int, degree: int = 3, redraw_every: int | None = None, seed: int = 0
) -> Topology:
    """A random connected graph in which each client has `degree` neighbours.

    With `redraw_every` = n there is another graph every n steps, see `_drawn`.
    """
    num_clients = _at_least(num_clients, 1, "random_regular")
    require_kind("degree", "int", degree)
    if not 2 <= degree < num_clients or num_clients * degree % 2:
        raise ConfigError(
            f"a random_regular topology needs 2 ≤ degree < clients and an even product of the "
            f"two, not degree {degree} and {num_clients} clients."
        )

    def draw(rng: np.random.Generator) -> nx.Graph:
        others = num_clients - 1 - degree
        if degree <= others:
            return nx.random_regular_graph(degree, num_clients, rng)
        # networkx draws dense graphs far too slowly; the complement is equally distributed.
        return nx.complement(nx.random_regular_graph(others, num_clients, rng))

    return _drawn(draw, "random_regular", redraw_every, seed)


def erdos_renyi(
    num_clients: int,
    edge_probability: float = 0.3,
    redraw_every: int | None = None,
    seed: int = 0,
) -> Topology:
    """A random connected graph with an edge between each pair with probability `edge_probability`.

    With `redraw_every` = n there is another graph every n steps, see `_drawn`.
    """
    num_clients = _at_least(num_clients, 1, "erdos_renyi")
    require_kind("edge_probability", "float", edge_probability)
    if not 0 < edge_probability <= 1:
        raise ConfigError(f"edge_probability must be in (0, 1], not {edge_probability}.")
    return _drawn(
        lambda rng: nx.gnp_random_graph(num_clients, edge_probability, rng),
        "erdos_renyi",
        redraw_every,
        seed,
    )


@modes.standard()
def _drawn(
    draw: Callable[[np.random.Generator], nx.Graph],
    name: str,
    redraw_every: int | None,
    seed: int,
) -> Topology:
    """Returns a topology with one random graph for all steps, or one for each `redraw_every` steps.

    For a time-varying topology 16 graphs are drawn in advance (64 · K² bytes), and used in turn
    with the clients permuted uniformly each time. As `draw` treats all clients alike, each graph
    has the distribution of the first, and any 16 in a row are independent; later graphs are
    isomorphic to earlier ones.
    """
    require_seed(seed)
    rng = np.random.default_rng(seed)
    if redraw_every is None:
        return from_networkx(_connected(draw, rng), name)
    matrices = [from_networkx(_connected(draw, rng)).adjacency for _ in range(_DRAWN)]
    interval = _interval("redraw_every", redraw_every)
    arrays = (jnp.concatenate(matrices), interval, jnp.uint32(seed))
    return Topology(arrays, schedules.redrawn, name)


def _connected(
    draw: Callable[[np.random.Generator], nx.Graph], rng: np.random.Generator
) -> nx.Graph:
    for _ in range(1000):
        graph = draw(rng)
        if nx.is_connected(graph):
            return graph
    raise ConfigError(
        "1,000 random graphs were drawn and none was connected; raise edge_probability or degree."
    )


@modes.standard()
def switch(parts: Sequence[tuple[int, Topology]]) -> Topology:
    """A topology that changes at given steps, such as `[(0, ring(8)), (1000, complete(8))]`.

    A part that is itself time-varying depends on the step of the run, not on its own start.

    Args:
      parts: the first step of each topology, in ascending order from 0, and the topology.

    Raises:
      ConfigError: parts that are no such pairs, or topologies of unlike numbers of clients.
    """
    parts = list(parts) if isinstance(parts, Iterable) else [parts]  # which is no pair either
    for part in parts:
        if not (
            isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[1], Topology)
        ):
            raise ConfigError(
                f"graphs that follow each other are pairs of a step and a Topology, like (0, ring(8)), "
                f"not {part!r}."
            )
    starts = [start for start, _ in parts]
    if not (
        starts
        and all(map(is_integer, starts))
        and starts[0] == 0
        and all(one < next_one for one, next_one in itertools.pairwise(starts))
    ):
        raise ConfigError(
            f"graphs that follow each other start at step 0 and at ever later steps, not at "
            f"{', '.join(map(str, starts))}."
        )
    num_clients = _with_matrices(parts[0][1]).num_clients
    graphs = [check_size(graph, num_clients) for _, graph in parts]
    return Topology(
        (jnp.asarray(starts, jnp.int32), tuple(graph.adjacency for graph in graphs)),
        schedules.Switch(tuple(graph.schedule for graph in graphs)),
        ",".join(f"{graph.name}@{start}" for start, graph in parts),
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
    "circulant": circulant,
    "exponential": exponential,
    "one_peer_exponential": one_peer_exponential,
    "islands": islands,
    "random_matching": random_matching,
    "random_regular": random_regular,
    "erdos_renyi": erdos_renyi,
    "empty": empty,
}


def options(name: str) -> dict[str, Any]:
    """Returns the names and default values of a named topology's options, without `num_clients`."""
    if parts := _parts(name):
        return {key: default for _, part in parts for key, default in options(part).items()}
    if name not in TOPOLOGIES:
        return {}
    parameters = inspect.signature(TOPOLOGIES[name]).parameters
    return {key: p.default for key, p in parameters.items() if key != "num_clients"}


def named(name: str, num_clients: int, **given: Any) -> Topology:
    """Returns the topology of a name, or from the file of this path, over `num_clients` clients.

    Args:
      name: a key of `TOPOLOGIES`, or a path; or several of these for a `switch`, each with its
        first step: "ring@0,complete@1000".
      num_clients: K, the number of clients.
      given: values for `options` of the topology; each graph of a switch takes the options that
        it has.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a topology's name is a text, like 'ring', not {name!r}.")
    if unknown := given.keys() - options(name).keys():
        raise ConfigError(f"the topology {name} does not use {', '.join(sorted(unknown))}.")
    if parts := _parts(name):
        own = [{key: given[key] for key in options(part) if key in given} for _, part in parts]
        return switch(
            [
                (start, named(part, num_clients, **mine))
                for (start, part), mine in zip(parts, own, strict=True)
            ]
        )
    if name in TOPOLOGIES:
        return TOPOLOGIES[name](num_clients, **given)
    if os.path.isfile(expanded(name)) or os.path.splitext(name)[1]:
        return check_size(from_file(name, num_clients), num_clients)
    raise ConfigError(
        f"unknown topology {name!r}; choose one of {', '.join(TOPOLOGIES)}, or give the path of "
        "an edge list or a .npy file."
    )


def _parts(name: str) -> list[tuple[int, str]]:
    """Returns the first steps and names in "ring@0,complete@1000"; none for a single name."""
    if "@" not in name or os.path.isfile(expanded(name)):
        return []
    parts = [part.rpartition("@") for part in name.split(",")]
    if not all(part and start.isdecimal() and len(start) <= 10 for part, _, start in parts):
        raise ConfigError(
            f"graphs that follow each other are written with the steps at which they start, like "
            f"ring@0,complete@1000, not {name!r}."
        )
    return [(int(start), part) for part, _, start in parts]


def as_topology(topology: Any, num_clients: int) -> Topology:
    """Converts anything that users may pass as a graph to a `Topology` over `num_clients` clients.

    Args:
      topology: a Topology, weights [K, K] or [T, K, K], a networkx graph, a traceable
        function of the step, a name, or the path of a file.
      num_clients: K, the number of clients.

    Raises:
      ConfigError: the topology is none of these, or has another number of clients.
    """
    if any(topology is make for make in TOPOLOGIES.values()):
        name = topology.__name__
        raise ConfigError(f"{name} makes a graph when it is called: {name}({num_clients}).")
    if isinstance(topology, str):
        topology = named(topology, num_clients)
    elif isinstance(topology, os.PathLike):
        topology = from_file(topology, num_clients)
    elif isinstance(topology, nx.Graph):
        topology = from_networkx(topology)
    elif callable(topology):
        topology = from_function(topology, num_clients)
    elif not isinstance(topology, Topology):
        topology = from_array(topology)
    return check_size(topology, num_clients)


def check_size(topology: Topology, num_clients: int) -> Topology:
    """Returns the topology; raises `ConfigError` unless it has `num_clients` clients."""
    topology = _with_matrices(topology)
    _require_equal(topology.name, topology.num_clients, num_clients)
    return topology


@modes.standard()
def _with_matrices(topology: Topology) -> Topology:
    """Returns a topology, which may be made by hand, with JAX's arrays.

    Raises:
      ConfigError: its schedule does not return a matrix [K, K].
    """
    remedy = (
        "adjacency holds the arrays of the schedule, for cycle an array [T, K, K]; "
        "mhd.topology.from_array makes a Topology of weights [K, K], too."
    )
    try:
        arrays = jax.tree.map(jnp.asarray, topology.adjacency)
        topology = topology.replace(adjacency=arrays)  # type: ignore[attr-defined]
        shape = jax.eval_shape(topology.at, 0).shape
    except Exception as error:  # users' schedules may raise any exception
        raise ConfigError(
            f"the topology {topology.name} has no graph at step 0 ({in_a_line(error)}): {remedy}"
        ) from error
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ConfigError(
            f"the topology {topology.name} must have a graph [K, K] at each step, not "
            f"{list(shape)}: {remedy}"
        )
    return topology


def _require_equal(name: str, found: int, num_clients: int) -> None:
    if found != num_clients:
        raise ConfigError(
            f"the topology {name} has {found} clients, but there are {num_clients}; make the two "
            "equal."
        )


def _at_least(num_clients: Any, least: int, name: str) -> int:
    if not is_integer(num_clients) or num_clients < least:
        raise ConfigError(f"a {name} topology needs at least {least} clients, not {num_clients!r}.")
    if num_clients > _MOST_CLIENTS:
        raise ConfigError(
            f"a {name} topology has at most {_MOST_CLIENTS:,} clients, not {num_clients:,}: its "
            "matrix would not fit in memory; take fewer clients."
        )
    return int(num_clients)


def require_undirected(topology: Topology, why: str, steps: int) -> None:
    """Raises `ConfigError` if an edge has one direction only at any of a run's `steps` steps."""
    if topology.schedule is cycle:
        steps = min(steps, len(topology.adjacency))
    step = int(_first_one_way(topology.adjacency, steps, schedule=topology.schedule))
    if step < steps:
        links = np.asarray(topology.at(step)) > 0
        i, j = np.argwhere(links != links.T)[0]
        raise ConfigError(
            f"{why} averages over the graph, whose edges must go both ways, but clients {i} and {j} "
            f"of {topology.name} are joined one way only at step {step}; choose an undirected graph, "
            "or an algorithm that does not average, like mhd, or dsgd with push_sum."
        )


@functools.partial(jax.jit, static_argnames="schedule")
def _first_one_way(adjacency: PyTree, steps: jax.Array, *, schedule: Schedule) -> jax.Array:
    """Returns the first step whose graph has an edge in one direction only; `steps` if none has."""

    def both_ways(step: jax.Array) -> jax.Array:
        links = schedule(adjacency, step) > 0
        return (links == links.T).all()

    return jax.lax.while_loop(
        lambda step: (step < steps) & both_ways(step), lambda step: step + 1, jnp.int32(0)
    )


@modes.standard()
def _interval(name: str, steps: Any) -> jax.Array:
    if not is_integer(steps) or steps < 1:
        raise ConfigError(f"{name} must be a number of steps, at least 1, not {steps!r}.")
    return jnp.int32(steps)


def _exactly(num_clients: Any, needed: int, name: str) -> None:
    if num_clients != needed:
        raise ConfigError(f"a {name} topology has {needed} clients, not {num_clients}.")


def _listed(ids: np.ndarray, most: int = 10) -> str:
    shown = ", ".join(str(i) for i in ids[:most])
    return shown + (f" and {len(ids) - most} more" if len(ids) > most else "")
