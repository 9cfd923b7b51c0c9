"""Where clients stand in drawings of graphs."""

import itertools

import networkx as nx
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.topology import layout


def places(topology):
    graph = nx.from_numpy_array(np.asarray(topology.at(0)))
    return graph, layout.places(graph, topology.name)


def distance(found, pair):
    return np.linalg.norm(found[pair[0]] - found[pair[1]])


@pytest.mark.parametrize("make", [mhd.topology.ring, mhd.topology.complete])
def test_rings_and_complete_graphs_stand_on_a_circle(make):
    _, found = places(make(8))
    np.testing.assert_allclose(np.linalg.norm(found - 0.5, axis=1), 0.5)
    sides = [distance(found, (i, (i + 1) % 8)) for i in range(8)]
    np.testing.assert_allclose(sides, sides[0])


def test_neighbours_on_a_torus_are_near_but_for_those_around_it():
    graph, found = places(mhd.topology.torus(12))  # 3 × 4
    near = [pair for pair in graph.edges if distance(found, pair) < 0.4]
    assert len(near) == 3 * 3 + 4 * 2  # edges inside of the rows, and of the columns


def test_islands_stand_in_clusters():
    graph, found = places(mhd.topology.islands(12, num_islands=3))
    island = np.arange(12) // 4
    inside, across = ([], [])
    for i, j in itertools.combinations(range(12), 2):
        (inside if island[i] == island[j] else across).append(distance(found, (i, j)))
    assert max(inside) < np.median(across)
    assert layout.communities(graph) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(
    "topology",
    [mhd.topology.chain(2), mhd.topology.star(6), mhd.topology.empty(3), mhd.topology.petersen()],
    ids=lambda topology: topology.name,
)
def test_all_others_have_places_of_their_own(topology):
    _, found = places(topology)
    assert found.shape == (topology.num_clients, 2) and found.min() >= 0 and found.max() <= 1
    assert (
        min(distance(found, pair) for pair in itertools.combinations(range(len(found)), 2)) > 0.05
    )


def test_one_client_stands_in_the_middle():
    np.testing.assert_allclose(layout.places(nx.empty_graph(1)), [[0.5, 0.5]])
