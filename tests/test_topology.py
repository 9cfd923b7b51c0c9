"""Graphs: their edges, where they come from, what is refused."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax import topology as topologies


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


def test_numbered_nodes_keep_their_numbers():
    graph = nx.Graph([(0, 2), (2, 1), (1, 3)])
    np.testing.assert_array_equal(
        mhd.topology.from_networkx(graph).at(0),
        [[0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]],
    )
    named = nx.Graph([("ann", "bob"), ("bob", "cem")])
    np.testing.assert_array_equal(
        mhd.topology.from_networkx(named).at(0), nx.to_numpy_array(nx.path_graph(3))
    )


def test_matrices_cycle_over_steps():
    matrices = np.stack([1 - np.eye(3), np.zeros((3, 3))])
    topology = mhd.topology.from_array(matrices)
    traced = jax.jit(topology.at)
    for step in range(4):
        np.testing.assert_array_equal(traced(jnp.asarray(step)), matrices[step % 2])


def test_a_function_of_the_step():
    def alternating(step):
        return jnp.where(step % 2 == 0, jnp.ones((4, 4)), 0)

    topology = topologies.as_topology(alternating, 4)
    np.testing.assert_array_equal(topology.at(0), 1 - np.eye(4))
    np.testing.assert_array_equal(topology.at(1), np.zeros((4, 4)))


def test_files(tmp_path):
    edges = tmp_path / "mine.txt"
    edges.write_text("# a triangle with a tail\n0 1\n1 2 0.5\n\n2 0  # closes it\n2 3\n")
    expected = np.array([[0, 1, 1, 0], [1, 0, 0.5, 0], [1, 0.5, 0, 1], [0, 0, 1, 0]])
    topology = mhd.topology.named(str(edges), 4)
    np.testing.assert_array_equal(topology.at(0), expected)
    assert topology.name == "mine"
    assert not mhd.topology.named(str(edges), 6).at(0)[4:].any()  # clients without edges
    np.save(tmp_path / "m.npy", expected)
    np.testing.assert_array_equal(mhd.topology.named(str(tmp_path / "m.npy"), 4).at(0), expected)


def test_everything_a_user_may_pass():
    ring = nx.to_numpy_array(nx.cycle_graph(5))
    for given in ("ring", ring, ring.tolist(), ring[None], nx.cycle_graph(5), lambda t: ring):
        np.testing.assert_array_equal(topologies.as_topology(given, 5).at(0), ring)


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
        (lambda p: np.zeros((5, 5)), "has 5 clients, but there are 4"),
        (lambda p: nx.Graph(), "no nodes"),
        (lambda p: nx.Graph([(0, 1, {"weight": "far"})]), "weights must be numbers"),
        (lambda p: nx.cycle_graph(3), "has 3 clients, but there are 4"),
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
    ],
)
def test_bad_graphs_are_refused(make, sentence, tmp_path):
    with pytest.raises(mhd.ConfigError, match=sentence):
        topologies.as_topology(make(tmp_path), 4)


def test_rings_and_stars_need_enough_clients():
    for name, size in (("ring", 2), ("star", 1), ("complete", 0)):
        with pytest.raises(mhd.ConfigError, match="needs at least"):
            mhd.topology.named(name, size)
