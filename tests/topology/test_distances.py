"""Accuracy by distance from those who hold a class."""

import networkx as nx
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.topology import distances

DISJOINT = np.eye(5, dtype=int) * 7  # client i alone holds class i


@pytest.mark.parametrize("name", ["chain", "ring", "star", "islands", "complete"])
def test_distances_are_the_graphs(name):
    """One class for each client: the hops to it are the shortest path to its holder."""
    topology = mhd.topology.named(name, 5)
    edges = distances.edges_of(topology, 3)
    paths = dict(nx.all_pairs_shortest_path_length(nx.from_numpy_array(edges)))
    expected = [[paths[i][j] for j in range(5)] for i in range(5)]
    np.testing.assert_array_equal(distances.to_classes(edges, DISJOINT), expected)


def test_knowledge_goes_one_way_along_directed_edges():
    edges = distances.edges_of(mhd.topology.ring(5, directed=True), 1)
    (student, teacher), *_ = np.argwhere(edges)
    found = distances.to_classes(edges, DISJOINT)
    assert found[student, teacher] == 1 and found[teacher, student] == 4


def test_graphs_over_steps_are_joined():
    first, second = np.zeros((2, 3, 3))
    first[0, 1], second[1, 2] = 1, 1
    topology = mhd.topology.from_array(np.stack([first, second]))
    counts = np.eye(3, dtype=int)
    assert distances.to_classes(distances.edges_of(topology, 1), counts)[0].tolist() == [0, 1, -1]
    assert distances.to_classes(distances.edges_of(topology, 2), counts)[0].tolist() == [0, 1, 2]


def test_few_samples_of_a_class_do_not_make_a_holder():
    counts = np.array([[50, 1], [2, 60], [0, 0]])
    found = distances.to_classes(distances.edges_of(mhd.topology.chain(3), 1), counts)
    assert found.tolist() == [[0, 1], [1, 0], [2, 1]]


def test_accuracies_are_means_over_clients_and_classes():
    per_class = np.array([[[0.9, 0.5, np.nan]], [[0.1, 0.3, np.nan]]])
    table = distances.accuracies(per_class, np.array([[0, 1, 0], [-1, 0, 1]]), ["main"])
    assert [row["hops"] for row in table] == [0, 1, None]
    assert [row["pairs"] for row in table] == [2, 1, 1]
    found = [row["accuracy"]["main"] for row in table]
    np.testing.assert_allclose(found, [0.6, 0.5, 0.1])
