"""Graphs: arrays, networkx graphs, files, names with options, and several one after the other."""

import itertools
import math
import numbers
import pathlib

import networkx as nx
import numpy as np
from hypothesis import strategies as st

import mhd_jax as mhd
from mhd_jax.topology.graphs import TOPOLOGIES
from tests.fuzzing.kinds import Trap, attempt, damages, kind, odd_values, one_in, refusal, scratch

FLOAT32 = np.finfo(np.float32)
WEIGHTS = [1, 1, 1, 0.5, 2, 1e-30, 1e30]
ODD_WEIGHTS = [-1, -1e-50, -0.0, 1e-50, 5e-324, 1e300, math.nan, math.inf, -math.inf]
sizes = st.sampled_from([1, 2, 3, 4, 7, 200])


def unsound(weights) -> bool:
    """Whether weights [..., K, K] cannot be a graph's, by the documented rules alone."""
    if weights.dtype.kind not in "biuf" or weights.ndim not in (2, 3) or 0 in weights.shape:
        return True
    weights = weights.astype(float)
    if weights.shape[-1] != weights.shape[-2] or not np.isfinite(weights).all():
        return True
    kept = weights[weights > 0]
    return bool(
        (weights < 0).any()
        or np.einsum("...ii->...i", weights).any()
        or (kept > FLOAT32.max).any()
        or (kept < FLOAT32.tiny).any()
    )


@st.composite
def weights(draw):
    """Weights, mostly a graph's."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(sizes)
    shape = draw(st.sampled_from([(size, size)] * 6 + [(2, size, size)] * 3 + [(3, size, size)]))
    if draw(one_in(10)):
        shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    found = np.where(rng.random(shape) < 0.4, rng.choice(WEIGHTS, shape), 0.0)
    if len(shape) > 1 and not draw(one_in(10)):
        rows = np.arange(min(shape[-2:]))
        found[..., rows, rows] = 0
    if found.size and draw(one_in(4)):
        found.flat[draw(st.integers(0, found.size - 1))] = draw(st.sampled_from(ODD_WEIGHTS))
    dtypes = ["f8"] * 6 + ["f4", "f2", "i8", "u1", "i1", "?", "c8", "O", "U3", "M8[s]"]
    with np.errstate(all="ignore"):
        return found.astype(draw(st.sampled_from(dtypes)))


@kind(weights())
def adjacency_arrays(given):
    as_numbers = given.astype(float) if given.dtype == object else given
    topology, why = attempt(lambda: mhd.topology.from_array(given))
    assert (why is not None) == unsound(as_numbers), (given, why)
    if why:
        return False
    steps = as_numbers.reshape(-1, *given.shape[-2:]).astype(np.float32)
    for step in range(2 * len(steps)):
        np.testing.assert_array_equal(topology.at(step), steps[step % len(steps)])
    assert refusal(lambda: mhd.topology.as_topology(given, given.shape[-1])) is None
    _, why = attempt(lambda: mhd.topology.as_topology(given, given.shape[-1] + 1))
    assert "make the two equal" in why
    return True


NAMED = [("ann", "bob", "cem"), ((0, 0), (0, 1), (1, 0)), (0, "a", (1,)), (True, 0.5, b"1")]
NAMED += [(0, 2, 3), ("1", "3", "4"), (5, 6, 7), (-1, 0, 1), (0, "0", 1), (1.5, 2, 3)]
NAMED += [(0, 1, math.nan), (0, 1, "9" * 5000), (0, 1, "²"), (0, 1, 10**400), ("a\nb", "c", "d")]
SPELLINGS = [int, str, float, np.int64, np.float32]
SPELLINGS += [lambda n: f"{n:03}", lambda n: [n, str(n)][n % 2]]


@st.composite
def networks(draw):
    """Graphs of networkx, the client of each node (none where no one knows), and the order given."""
    graph = draw(st.sampled_from([nx.Graph, nx.DiGraph, nx.MultiGraph, nx.MultiDiGraph]))()
    start, size = draw(st.sampled_from([0, 1])), draw(st.sampled_from([0, 1, 2, 3, 5, 200]))
    spell = draw(st.sampled_from(SPELLINGS))
    nodes = [spell(n) for n in range(start, start + size)]
    client = {node: i for i, node in enumerate(nodes)}
    if draw(one_in(3)):
        nodes, client = list(draw(st.sampled_from(NAMED))), None
    mentioned = draw(st.permutations(nodes)) if size < 200 else nodes[::-1]
    graph.add_nodes_from(mentioned)
    order = None
    if draw(one_in(3)):
        order = draw(st.permutations(nodes)) if size < 200 else nodes
        client = {node: i for i, node in enumerate(order)}
        if draw(one_in(4)):
            order, client = draw(st.sampled_from([order[1:], order * 2, 5, [[0]], "abc"])), None
            if not nodes:
                order = None
    odd = draw(st.sampled_from([[], [], [], ODD_WEIGHTS, [None, "x", "1", 1j, (1,), 10**400]]))
    for _ in range(draw(st.integers(0, 8)) if nodes else 0):
        u, v = (draw(st.sampled_from(nodes)) for _ in range(2))
        if u != v or draw(one_in(6)):
            weight = draw(st.sampled_from(WEIGHTS + odd))
            graph.add_edge(u, v, **({} if weight == 1 else {"weight": weight}))
    return graph, client, order


@kind(networks(), examples=60)
def networkx_graphs(case):
    graph, client, order = case
    topology, why = attempt(lambda: mhd.topology.from_networkx(graph, nodes=order))
    if client is None:
        assert why and "nodes" in why, (list(graph), order)
        return False
    expected = np.zeros((len(graph), len(graph)))
    plain = len(graph) > 0
    for u, v, data in graph.edges(data=True):
        weight = data.get("weight", 1)
        if not isinstance(weight, int | float) or weight == 10**400:
            plain = False
            continue
        expected[client[v], client[u]] += weight
        if not graph.is_directed() and u != v:
            expected[client[u], client[v]] += weight
    if why is None and not plain:  # NumPy makes a number of a text, and of a single one in a tuple
        assert all(
            isinstance(data.get("weight", 1), int | float | str | tuple)
            for *_, data in graph.edges(data=True)
        )
        return True
    assert (why is not None) == (not plain or unsound(expected)), (graph.edges(data=True), why)
    if why is None:
        np.testing.assert_array_equal(topology.at(0), expected.astype(np.float32))
    return why is None


BAD_LINES = ["0", "a b", "0 1 2 3", "-1 0", "0 1 x", "0 ->", "-> 0 1", "0 1 -> 2", "1.5 2", "1 1"]
BAD_LINES += ["0 1 -2", "0 1 nan", "0 1 inf", "0 1 1e300", "0 1 1e-50", "0,1", "²  1"]
BAD_LINES += ["__import__('os')", "9" * 5000 + " 1", "99999999 0", "0 99999999999999999999999"]


@st.composite
def edge_lists(draw):
    """Lines, the edges in them by (u, v) with weights, and whether all lines are good."""
    lines, edges, good = [], {}, True
    for _ in range(draw(st.integers(0, 8))):
        u, v = draw(st.lists(st.integers(0, 6), min_size=2, max_size=2, unique=True))
        weight = draw(st.sampled_from([None, None, 1, 2.5, "1e-3"]))
        arrow = draw(st.sampled_from([" ", "\t", " -> ", "->"]))
        both = [(u, v)] if ">" in arrow else [(u, v), (v, u)]
        value = 1.0 if weight is None else float(weight)
        edges |= dict.fromkeys(both, value)
        tail = draw(st.sampled_from(["", "  ", " # so it is", "\r"]))
        lines.append(f"{u}{arrow}{v}{'' if weight is None else f' {weight}'}{tail}")
    lines += draw(st.lists(st.sampled_from(["", "# a comment", "   "]), max_size=2))
    if draw(one_in(4)):
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(BAD_LINES)))
        good = False
    return lines, edges, good, draw(st.sampled_from([None, 7, 7, 3, 200]))


@kind(edge_lists())
def edge_list_files(case):
    lines, edges, good, num_clients = case
    with scratch():
        pathlib.Path("graph.txt").write_text("\n".join(lines))
        topology, why = attempt(lambda: mhd.topology.from_file("graph.txt", num_clients))
    size = max([max(edge) for edge in edges], default=-1) + 1
    fits = bool(edges) and (num_clients is None or size <= num_clients)
    assert (why is None) == (good and fits), (lines, why)
    if why:
        return False
    expected = np.zeros((num_clients or size,) * 2, np.float32)
    for (u, v), weight in edges.items():
        expected[v, u] = weight
    np.testing.assert_array_equal(topology.at(0), expected)
    return True


@kind(st.one_of(st.text(), st.binary(), st.text("0123456789 ->.#\n"), st.text("01 \n")))
def edge_list_files_of_anything(content):
    with scratch():
        raw = content.encode(errors="surrogatepass") if isinstance(content, str) else content
        pathlib.Path("graph.txt").write_bytes(raw)
        topology, why = attempt(lambda: mhd.topology.from_file("graph.txt"))
    if why is None:
        assert (np.asarray(topology.at(0)) >= 0).all()
    return why is None


@kind(st.tuples(weights(), damages(), one_in(5)))
def matrix_files(case):
    given, damage, pickled = case
    with scratch():
        path = pathlib.Path("graph.npy")
        np.save(path, np.array([Trap()]) if pickled else given)
        before = path.read_bytes()
        path.write_bytes(damage(before))
        topology, why = attempt(lambda: mhd.topology.from_file(path))
        whole = path.read_bytes() == before
    assert Trap.sprung == 0
    if whole:
        assert (why is not None) == (pickled or unsound(given)), why
    if why is None and whole:
        first = given.reshape(-1, *given.shape[-2:])[0]
        np.testing.assert_array_equal(topology.at(0) > 0, first > 0)
    return why is None


def _is_count(value, least=1, end=2**31):
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return integer and least <= int(value) < end


def can_be(name, k, options) -> bool | None:
    """Whether a named graph over k clients can be; None where that is up to chance."""
    seed = options.get("seed", 0)
    if not _is_count(k) or k > 2**14 or name not in TOPOLOGIES:
        return False
    if not _is_count(seed, 0, 2**32):
        return False
    periods = options.get("redraw_every"), options.get("meet_every")
    if not all(period is None or _is_count(period) for period in periods):
        return False
    if name == "islands":
        return _is_count(options.get("num_islands", 2)) and options.get("num_islands", 2) <= k
    if name == "random_regular":
        degree = options.get("degree", 3)
        return _is_count(degree, 2) and degree < k and k * degree % 2 == 0
    if name == "erdos_renyi":
        p = options.get("edge_probability", 0.3)
        number = isinstance(p, numbers.Real) and not isinstance(p, bool | np.bool_)
        return (None if p < 1 else True) if number and 0 < p <= 1 else False
    if name == "circulant":
        offsets = options.get("offsets", (1,))
        several = isinstance(offsets, tuple) and len(offsets) > 0
        return several and all(_is_count(offset) and offset < k for offset in offsets)
    two = ("star", "exponential", "one_peer_exponential", "random_matching")
    return {
        "dyck": k == 32,
        "petersen": k == 10,
        "hypercube": math.log2(k).is_integer(),
        "torus": any(k % a == 0 for a in range(3, k // 3 + 1)),
        "ring": k >= 3,
    }.get(name, k >= 1 + (name in two))


@st.composite
def named_graphs(draw):
    """A name, K, options and a step."""
    name = draw(st.sampled_from([*TOPOLOGIES, "rnig"]))
    k = draw(st.one_of(st.sampled_from([1, 2, 8, 10, 16, 32, 200]), st.integers(1, 40), odd_values))
    own = [key for key in mhd.topology.options(name) if draw(st.booleans())]
    likely = {
        "edge_probability": st.floats(0, 1) | odd_values,
        "offsets": st.lists(st.integers(1, 12) | odd_values, max_size=3).map(tuple) | odd_values,
        "directed": st.booleans(),
    }
    return name, k, {key: draw(likely.get(key, st.integers(1, 12) | odd_values)) for key in own}


@kind(named_graphs())
def graphs_by_name(case):
    name, k, options = case
    topology, why = attempt(lambda: mhd.topology.named(name, k, **options))
    expected = can_be(name, k, options)
    if expected is None:
        assert why is None or "none was connected" in why, (case, why)
    else:
        assert (why is None) == expected, (case, why)
    if why:
        return False
    graph = np.asarray(topology.at(5))
    assert graph.shape == (k, k) and not graph.diagonal().any() and np.isin(graph, [0, 1]).all()
    if name not in ("one_peer_exponential",) and not options.get("directed"):
        np.testing.assert_array_equal(graph, graph.T)
    if name == "random_regular":
        assert (graph.sum(axis=0) == options.get("degree", 3)).all()
    parted = ("empty", "random_matching", "one_peer_exponential", "islands")
    if name not in parted and math.gcd(k, *options.get("offsets", (1,))) == 1:
        assert nx.is_strongly_connected(nx.from_numpy_array(graph, create_using=nx.DiGraph))
    return True


@st.composite
def schedules(draw):
    """Names and the steps from which they are taken, mostly in order, mostly over 6 clients."""
    names = ["ring", "complete", "empty", "chain", "random_matching", "rnig", "dyck"]
    parts = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    starts = [0, *draw(st.lists(st.integers(1, 50), min_size=3, max_size=3))]
    if not draw(one_in(4)):
        starts.sort()
    odd = draw(st.sampled_from([None] * 6 + ["", "x", "-1", "1.5", "²", "9" * 5000, "4294967296"]))
    text = [f"{part}@{start}" for part, start in zip(parts, starts, strict=False)]
    if odd is not None:
        text[draw(st.integers(0, len(text) - 1))] = f"ring@{odd}"
    return ",".join(text), parts, starts[: len(parts)], odd


@kind(schedules(), examples=12)
def graphs_one_after_the_other(case):
    text, parts, starts, odd = case
    topology, why = attempt(lambda: mhd.topology.named(text, 6))
    sound = odd is None and set(parts) <= TOPOLOGIES.keys() - {"dyck"}
    sound &= all(a < b for a, b in itertools.pairwise(starts))
    assert (why is None) == sound, (text, why)
    if why:
        return False
    for step in {*starts, 49}:
        part = [name for name, start in zip(parts, starts, strict=True) if start <= step][-1]
        expected = mhd.topology.named(part, 6).at(step)
        np.testing.assert_array_equal(topology.at(step), expected)
    return True
