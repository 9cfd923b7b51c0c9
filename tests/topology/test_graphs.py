"""Graphs: their edges, where they come from, what is refused."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
import scipy.sparse

import mhd_jax as mhd
from mhd_jax import topology as topologies
from tests.builders import thinned


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("complete", nx.complete_graph(6)),
        ("ring", nx.cycle_graph(6)),
        ("chain", nx.path_graph(6)),
        ("star", nx.star_graph(5)),
        ("empty", nx.empty_graph(6)),
    ],
)
def test_named_graphs(name, graph):
    np.testing.assert_array_equal(
        mhd.topology.named(name, 6).at(5), nx.to_numpy_array(graph, nodelist=range(6))
    )


def test_a_directed_edge_teaches_its_target():
    graph = nx.DiGraph()
    graph.add_nodes_from(range(3))
    graph.add_edge(0, 1, weight=2.5)
    matrix = mhd.topology.from_networkx(graph).at(0)
    np.testing.assert_array_equal(matrix, [[0, 0, 0], [2.5, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    "spelt", [int, str, float, np.int64, lambda n: n + 1, lambda n: f"{n + 1:02}"]
)
def test_nodes_that_are_numbers_are_the_clients_of_that_number(spelt):
    """However a reader spells them, in whatever order it mentions them, from 0 on or from 1 on."""
    graph = nx.Graph([(spelt(u), spelt(v)) for u, v in [(2, 0), (0, 3), (3, 1)]])
    np.testing.assert_array_equal(
        topologies.as_topology(graph, 4).at(0),
        [[0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0]],
    )


def test_an_order_makes_clients_of_nodes_with_names():
    graph = nx.DiGraph([("bob", "ann", {"weight": 2.0}), ("cem", "bob")])
    expected = [[0, 2, 0], [0, 0, 1], [0, 0, 0]]
    found = mhd.topology.from_networkx(graph, nodes=["ann", "bob", "cem"])
    np.testing.assert_array_equal(found.at(0), expected)
    numbered = nx.Graph([(0, 1), (1, 2)])
    found = mhd.topology.from_networkx(numbered, nodes=[1, 0, 2])
    np.testing.assert_array_equal(found.at(0), [[0, 1, 1], [1, 0, 0], [1, 0, 0]])


def test_a_function_of_the_step():
    topology = topologies.as_topology(lambda step: (1 - jnp.eye(4)) * (step % 2), 4)
    lists = topologies.from_function(lambda step: [[0, step], [1.0, 0]], 2)
    for step in (0, 1, 3):
        np.testing.assert_array_equal(topology.at(step), (1 - np.eye(4)) * (step % 2))
        np.testing.assert_array_equal(lists.at(step), [[0, step], [1, 0]])


def matching(step):
    """Pairs of four clients, drawn by the step."""
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), step), 4)
    pairs = jnp.zeros((4, 4)).at[order[::2], order[1::2]].set(1)
    return pairs + pairs.T


def test_a_function_that_draws_from_the_step_goes_on():
    own = topologies.as_topology(matching, 4)
    topologies.require_sound(own, 1000)
    graphs = {np.asarray(own.at(step)).tobytes() for step in range(30)}
    assert len(graphs) == 3  # all that there are


def drawn_with_numpy(step):
    return np.triu(np.random.default_rng().random((4, 4)), 1)


_CALLS = itertools.count()


def counted(step):
    return np.eye(4)[[next(_CALLS) % 3 + 1, 0, 0, 0]] * (1 - np.eye(4))


def seldom_another(step):
    """One in five draws is another, so that two would mostly agree."""
    return (1 + (next(_CALLS) % 5 == 0)) * (1 - np.eye(4))


@pytest.mark.parametrize(
    "function", [drawn_with_numpy, jax.jit(drawn_with_numpy), counted, seldom_another]
)
def test_a_function_that_would_be_frozen_is_refused(function):
    with pytest.raises(mhd.ConfigError, match=r"frozen into one graph .* draw with jax\.random"):
        topologies.as_topology(function, 4)


@pytest.mark.parametrize("when", thinned([0, 17, 1999], 3))
@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ((1, 1, 1.0), r"at step \d+ must have an empty diagonal, but clients 1 have"),
        ((1, 2, -1.0), r"at step \d+ must not be negative"),
        ((1, 2, np.nan), r"at step \d+ must be finite"),
    ],
)
def test_every_step_of_a_function_is_looked_at(entry, sentence, when):
    *place, weight = entry
    usual = 1 - jnp.eye(4)
    unsound = usual.at[*place].set(weight)
    own = topologies.as_topology(lambda step: jnp.where(step == when, unsound, usual), 4)
    if when:
        topologies.require_sound(own, when)  # a run that ends before
    for topology in (own, mhd.topology.switch([(0, own), (5000, mhd.topology.ring(4))])):
        with pytest.raises(mhd.ConfigError, match=sentence) as refusal:
            topologies.require_sound(topology, 2000)
        assert f"at step {when} " in str(refusal.value)


def test_matrices_of_a_topology_made_by_hand_are_looked_at():
    for matrices in (jnp.eye(4)[None], -jnp.ones((1, 4, 4))):
        with pytest.raises(mhd.ConfigError, match="the topology custom must"):
            mhd.simulate(mhd.Topology(matrices), mhd.make_clients("digits", 4), steps=1)


def test_files(tmp_path):
    edges = tmp_path / "mine.txt"
    edges.write_text("# a triangle with a tail\n0 1\n1 2 0.5\n\n2 0  # closes it\n2 3\n")
    expected = np.array([[0, 1, 1, 0], [1, 0, 0.5, 0], [1, 0.5, 0, 1], [0, 0, 1, 0]])
    topology = mhd.topology.named(str(edges), 4)
    np.testing.assert_array_equal(topology.at(0), expected)
    assert topology.name == "mine"
    assert not mhd.topology.named(str(edges), 6).at(0)[4:].any()  # clients without edges
    edges.write_text("\ufeff0 1\n", encoding="utf-8")  # as editors on Windows begin files
    np.testing.assert_array_equal(mhd.topology.named(str(edges), 2).at(0), [[0, 1], [1, 0]])
    np.save(tmp_path / "m.npy", expected)
    np.testing.assert_array_equal(mhd.topology.named(str(tmp_path / "m.npy"), 4).at(0), expected)


def test_files_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "m.npy", 1 - np.eye(3))
    (tmp_path / "edges").write_text("0 1\n1 2\n")
    for path in ("~/m.npy", pathlib.Path("~/m.npy"), "~/edges", tmp_path / "edges"):
        assert topologies.as_topology(path, 3).at(0)[0, 1] == 1
    with pytest.raises(mhd.ConfigError, match=r"no topology file '.*/none.npy'"):
        topologies.as_topology("~/none.npy", 3)


def test_everything_a_user_may_pass():
    ring = nx.to_numpy_array(nx.cycle_graph(5))
    arrays = (ring, ring.tolist(), ring[None], scipy.sparse.csr_array(ring))
    by_hand = (mhd.Topology(ring[None]), mhd.Topology(jnp.asarray(ring[None])))
    for given in ("ring", *arrays, *by_hand, nx.cycle_graph(5), lambda t: ring):
        np.testing.assert_array_equal(topologies.as_topology(given, 5).at(0), ring)


def _raising(step):
    raise RuntimeError


def _write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: np.ones((2, 3)), r"shape \[K, K\] or \[T, K, K\], not \[2, 3\]"),
        (lambda p: np.eye(4), "clients 0, 1, 2, 3 have self-loops"),
        (lambda p: -np.ones((4, 4)), "must not be negative"),
        (lambda p: np.full((4, 4), np.nan), "must be finite"),
        (lambda p: [["a"]], "array of numbers"),
        (lambda p: [(0, 1), (1, 2), (2, 3)], r"not \[3, 2\]\. Pairs .* like nx\.Graph\(pairs\)"),
        (lambda p: {0: [1], 1: [2, 3]}, r"like nx\.Graph\(pairs\)"),
        (lambda p: np.zeros((5, 5)), "has 5 clients, but there are 4"),
        (lambda p: nx.Graph(), "no nodes"),
        (lambda p: nx.Graph([(0, 1, {"weight": "far"})]), "weights must be numbers"),
        (lambda p: nx.cycle_graph(3), "has 3 clients, but there are 4"),
        (lambda p: nx.Graph([("ann", "bob")]), r"are 'ann', 'bob'; give .*, nodes=\[\.\.\.\]\)"),
        (lambda p: nx.grid_2d_graph(2, 2), r"4 nodes are \(0, 0\), .*; give them in the order"),
        (lambda p: nx.Graph([(3, 0), (0, 2)]), r"are 3, 0, 2, of which graph.add_node\(1\)"),
        (lambda p: nx.Graph([("1", "4"), ("4", "3")]), r"of which graph.add_node\(2\) would"),
        (lambda p: nx.Graph([(1, "1")]), "2 nodes are 1, '1'; give"),
        (lambda p: nx.Graph([(7, 8)]), "2 nodes are 7, 8; give"),
        (
            lambda p: mhd.Topology(1 - jnp.eye(4)),
            r"graph \[K, K\] at each step, not \[4\]: .*\[T, K",
        ),
        (
            lambda p: mhd.Topology(1 - np.eye(4)),
            r"graph \[K, K\] at each step, not \[4\]: .*\[T, K",
        ),
        (lambda p: mhd.Topology(jnp.zeros((0, 4, 4))), r"no graph at step 0 .*from_array makes"),
        (lambda p: mhd.Topology("ring"), r"no graph at step 0 .*from_array makes"),
        (lambda p: "rign", "unknown topology 'rign'; choose one of complete"),
        (lambda p: str(p / "none.txt"), "no topology file"),
        (lambda p: _write(p / "a.txt", "0 1\n1 x\n"), "line 2: expected two clients"),
        (lambda p: _write(p / "b.txt", "0 -1\n"), "line 1: expected two clients"),
        (lambda p: _write(p / "c.txt", "0 1 2 3\n"), "line 1: expected two clients"),
        (lambda p: _write(p / "d.txt", "# none\n"), "holds no edges"),
        (lambda p: _write(p / "e.txt", "0 0\n0 3\n"), "self-loops"),
        (lambda p: _write(p / "g.txt", "0 1\n0 7\n"), "has 8 clients, but there are 4"),
        (lambda p: _write(p / "f.npy", "not numpy"), "not a readable .npy"),
        (lambda p: lambda t: np.zeros((3, 3)), r"returns shape \[3, 3\], but 4 clients"),
        (lambda p: lambda t: [1] if t else [2], "cannot be traced"),
        (lambda p: mhd.topology.ring, r"ring makes a graph when it is called: ring\(4\)"),
        (lambda p: mhd.topology.ring(4, directed="no"), "directed must be True or False"),
        (lambda p: mhd.topology.named(4, 4), "a topology's name is a text, like 'ring', not 4"),
        (lambda p: topologies.spectral_gap(mhd.topology.ring(4)), r"give topology\.at\(0\)"),
        (lambda p: mhd.topology.metropolis_hastings(mhd.topology.ring(4)), r"give topology\.at"),
        (lambda p: _raising, r"_raising cannot be traced by JAX \(RuntimeError\); compute"),
    ],
)
def test_bad_graphs_are_refused(make, sentence, tmp_path):
    with pytest.raises(mhd.ConfigError, match=sentence):
        topologies.as_topology(make(tmp_path), 4)


def test_a_graph_of_a_function_is_shown():
    topology = mhd.topology.from_function(lambda step: jnp.ones((4, 4)) - jnp.eye(4), 4)
    assert "4 clients, 12 directed edges" in repr(topology)
    assert "12 directed edges" in topology._repr_html_()


def test_rings_and_stars_need_enough_clients():
    for name, size in (("ring", 2), ("star", 1), ("complete", 0)):
        with pytest.raises(mhd.ConfigError, match="needs at least"):
            mhd.topology.named(name, size)


@pytest.mark.parametrize(
    ("name", "num_clients", "expected"),
    [
        ("torus", 12, nx.grid_2d_graph(3, 4, periodic=True)),
        ("torus", 16, nx.grid_2d_graph(4, 4, periodic=True)),
        ("dyck", 32, nx.LCF_graph(32, [5, -5, 13, -13], 8)),  # of girth 6 and diameter 5
        ("petersen", 10, nx.petersen_graph()),
        ("hypercube", 8, nx.hypercube_graph(3)),
        ("exponential", 8, nx.circulant_graph(8, [1, 2, 4])),
        ("exponential", 6, nx.circulant_graph(6, [1, 2, 4])),
        ("circulant", 7, nx.cycle_graph(7)),
    ],
)
def test_graphs_with_a_name_of_their_own(name, num_clients, expected):
    found = nx.from_numpy_array(np.asarray(mhd.topology.named(name, num_clients).at(0)))
    assert nx.is_isomorphic(found, nx.convert_node_labels_to_integers(expected))


def test_circulant_graphs_by_name():
    both = mhd.topology.named("circulant", 16, offsets=(1, 4)).at(0)
    np.testing.assert_array_equal(both, nx.to_numpy_array(nx.circulant_graph(16, [1, 4])))
    one_way = mhd.topology.named("circulant", 16, offsets=(1, 4), directed=True).at(0)
    assert [set(np.flatnonzero(row)) for row in one_way] == [
        {(i + 1) % 16, (i + 4) % 16} for i in range(16)
    ]


@pytest.mark.parametrize(("parts", "bridges"), [([3, 2], [(2, 3)]), ([4] * 3, [(3, 4), (7, 8)])])
def test_islands_are_complete_differ_by_one_and_are_joined_in_a_row(parts, bridges):
    graph = np.asarray(mhd.topology.islands(sum(parts), num_islands=len(parts)).at(0))
    expected = nx.disjoint_union_all(map(nx.complete_graph, parts))
    expected.add_edges_from(bridges)
    np.testing.assert_array_equal(graph, nx.to_numpy_array(expected))


@pytest.mark.parametrize(
    ("name", "options"), [("random_regular", {"degree": 4}), ("erdos_renyi", {})]
)
def test_random_graphs_are_connected_and_repeat(name, options):
    one, same, other = (
        np.asarray(mhd.topology.named(name, 12, **options, seed=seed).at(0)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any() and (one == one.T).all()
    assert nx.is_connected(nx.from_numpy_array(one))
    if name == "random_regular":
        assert (one.sum(axis=1) == 4).all()


@pytest.mark.parametrize(
    ("name", "num_clients", "options", "sentence"),
    [
        ("torus", 10, {}, "needs a × b clients"),
        ("dyck", 8, {}, "has 32 clients, not 8"),
        ("petersen", 8, {}, "has 10 clients, not 8"),
        ("hypercube", 12, {}, "needs 2, 4, 8, … clients, not 12"),
        ("islands", 8, {"num_islands": 9}, "8 clients cannot form 9 islands"),
        ("random_regular", 5, {"degree": 3}, "even product"),
        ("random_regular", 4, {"degree": 4}, "2 ≤ degree < clients"),
        ("erdos_renyi", 8, {"edge_probability": 0.0}, "must be in"),
        ("erdos_renyi", 40, {"edge_probability": 0.001}, "none was connected"),
        ("exponential", 1, {}, "at least 2"),
        ("circulant", 1, {}, "at least 2"),
        ("circulant", 8, {"offsets": (1, 8)}, "needs offsets in 1 … 7, not 8"),
        ("circulant", 8, {"offsets": (1, 0)}, "needs offsets in 1 … 7, not 0"),
        ("circulant", 8, {"offsets": (1.0,)}, "needs offsets in 1 … 7, not 1.0"),
        ("circulant", 8, {"offsets": "14"}, "needs offsets in 1 … 7, not '1'"),
        ("circulant", 8, {"offsets": ()}, r"a sequence of integers, like \(1, 4\), not \(\)"),
        ("circulant", 8, {"offsets": 4}, r"a sequence of integers, like \(1, 4\), not 4"),
        ("ring", 8, {"degree": 3}, "ring does not use degree"),
    ],
)
def test_graphs_that_cannot_be_are_refused(name, num_clients, options, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.topology.named(name, num_clients, **options)


@pytest.mark.parametrize("name", ["ring", "star", "chain", "erdos_renyi", "empty"])
def test_mixing_matrices(name):
    adjacency = mhd.topology.named(name, 7).at(0)
    neighbours = [np.flatnonzero(row) for row in np.asarray(adjacency)]
    uniform, weighted = np.zeros((7, 7)), np.zeros((7, 7))
    for i, mine in enumerate(neighbours):
        uniform[i, [i, *mine]] = 1 / (len(mine) + 1)
        for j in mine:
            weighted[i, j] = 1 / (1 + max(len(mine), len(neighbours[j])))
        weighted[i, i] = 1 - weighted[i].sum()
    np.testing.assert_allclose(topologies.uniform_weights(adjacency), uniform, rtol=1e-6)
    found = np.asarray(topologies.metropolis_hastings(adjacency))
    np.testing.assert_allclose(found, weighted, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(found, found.T)


def test_spectral_gaps():
    complete = topologies.uniform_weights(mhd.topology.complete(5).at(0))
    assert topologies.spectral_gap(complete) == pytest.approx(1, abs=1e-6)
    ring = topologies.uniform_weights(mhd.topology.ring(9).at(0))
    second = (1 + 2 * np.cos(2 * np.pi / 9)) / 3
    assert topologies.spectral_gap(ring) == pytest.approx(1 - second, abs=1e-6)
    assert topologies.spectral_gap(np.eye(4)) == 0
