"""The drawn graph of a run: clients, their labels and accuracies, and who learned from whom."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.runs import graph
from mhd_jax.topology import describe

SHARES = {(1, 0): 0.8, (0, 1): 0.4, (2, 1): 0.2, (0, 3): 0.01}  # i learned from j


def summary_of(topology, followed=None, **settings):
    """The parts of a summary that are drawn: each client holds its own class and some of class 0."""
    count = topology.num_clients
    shares = np.zeros((count, count))
    for pair, share in (SHARES if followed is None else followed).items():
        shares[pair] = share
    shares += np.eye(count) * 0.9  # what a client learns from itself is no edge
    counts = 30 * np.eye(count, dtype=int)
    counts[:, 0] += 10
    return {
        "num_clients": count,
        "topology": describe(topology, 1),
        "data": {
            "private_samples": counts.tolist(),
            "class_names": [f"c{i}" for i in range(count)],
        },
        "beta_sh": {"main": 0.3, "aux_1": 0.5},
        "per_client": [{"beta_sh": {"main": 0.0, "aux_1": i / count}} for i in range(count)],
        "diagnostics": {"followed": [shares.tolist()]},
        "communication": {"by_edge": {}},
        "settings": {"clients": {}, **settings},
    }


def drawn(summary):
    return ElementTree.fromstring(str(graph.drawing(graph.of_run(summary))))


def by_class(root, name):
    return [each for each in root.iter() if each.get("class") == name]


def test_curves_are_as_wide_as_what_was_learned():
    curves = by_class(drawn(summary_of(mhd.topology.ring(4))), "learned")
    widths = {
        (int(c.get("data-to")), int(c.get("data-from"))): float(c.get("stroke-width"))
        for c in curves
    }
    assert set(widths) == {(1, 0), (0, 1), (2, 1)}  # a twentieth of the widest is not drawn
    for pair, width in widths.items():
        assert width / widths[1, 0] == pytest.approx(SHARES[pair] / 0.8, rel=0.01)


def test_rings_are_the_mix_of_labels_and_fills_the_accuracies():
    clients = by_class(drawn(summary_of(mhd.topology.ring(4))), "client")
    fills = []
    for number, client in enumerate(clients):
        assert client.get("data-client") == str(number) and client.get("tabindex") == "0"
        arcs = [c for c in client if c.get("stroke-dasharray")]
        shares = [np.divide(*map(float, c.get("stroke-dasharray").split())) for c in arcs]
        assert shares == pytest.approx([1.0] if number == 0 else [0.25, 0.75], abs=0.01)
        fills += [c.get("fill") for c in client if c.get("stroke") == "#fff"]
        assert f"β_sh {number / 4:.3f}" in client.get("aria-label")
    assert len(set(fills)) == 4 and fills[0] == "#440154"  # viridis of 0


def test_badges_name_who_is_not_as_the_others():
    settings = {
        "clients": {
            "adversaries": {"0": "label_flip"},
            "objectives": ["supervised", "supervised", "supervised", "none"],
        },
        "faults": {"joins": [[1, 5]], "leaves": [[2, 9]]},
    }
    root = drawn(summary_of(mhd.topology.ring(4), **settings))
    assert [b.text for b in by_class(root, "badge")] == ["adversary", "late", "left", "unlabelled"]


def test_many_clients_are_a_matrix_with_communities_together():
    groups = np.random.default_rng(0).permutation(48) % 3
    pairs = {(i, j): 1.0 for i in range(48) for j in range(48) if i != j and groups[i] == groups[j]}
    root = drawn(summary_of(mhd.topology.complete(48), pairs))
    cells = by_class(root, "learned")
    places = np.array([[float(c.get("x")), float(c.get("y"))] for c in cells])
    assert len(cells) == 3 * 16 * 15
    # Cells of three blocks on the diagonal are never further from it than a block is wide.
    assert np.abs(places[:, 0] - places[:, 1]).max() < float(cells[0].get("width")) * 16


def test_nothing_is_drawn_where_nobody_may_learn():
    assert graph.of_run(summary_of(mhd.topology.empty(3), {})) is None
    pooled = summary_of(mhd.topology.ring(4))
    pooled["per_client"] = pooled["per_client"][:1]
    assert graph.of_run(pooled) is None


def test_messages_stand_in_where_no_one_recorded_who_was_followed():
    summary = summary_of(mhd.topology.ring(3), {})
    del summary["diagnostics"]
    counts = np.array([[0, 4, 0], [2, 0, 0], [0, 0, 0]])
    summary["communication"]["by_edge"] = {"weights": counts.tolist(), "to_server": [1, 2, 3]}
    found = graph.of_run(summary)
    np.testing.assert_allclose(found.learned, counts / 4)
    assert found.measure == "messages" and found.links.sum() == 6
    summary["topology"].pop("links")  # of a time-varying graph: edges are where messages were
    assert graph.of_run(summary).links.sum() == 2


def test_names_are_escaped():
    summary = summary_of(mhd.topology.ring(4))
    summary["data"]["class_names"][0] = '<script>"x"'
    assert "<script>" not in str(graph.drawing(graph.of_run(summary)))
