"""What a page tells of a run over its steps: class maps, lanes of faults, and the replay."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.runs import class_map, curves, graph, lanes, levels, replay
from mhd_jax.runs.finished import read_run
from mhd_jax.topology import distances
from tests.builders import Linear, simulate_in, tiny_dataset

K = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """MHD among clients of which one joins late, one leaves, and one is slow."""
    folder = tmp_path_factory.mktemp("runs") / "mhd"
    clients = mhd.make_clients(
        tiny_dataset(), K, Linear(), public_fraction=0.3, adversaries={3: "label_flip"}
    )
    faults = mhd.Faults(joins={0: 3}, leaves={1: 4}, stragglers={2: 2})
    settings = {"steps": 6, "eval_every": 2, "batch_size": 4, "public_batch_size": 5}
    algorithm = mhd.algorithms.mhd(num_aux_heads=2)
    simulate_in(folder, "complete", clients, algorithm, faults=faults, **settings)
    return read_run(folder)


def parts(drawing, name):
    return [
        each for each in ElementTree.fromstring(str(drawing)).iter() if each.get("class") == name
    ]


@pytest.mark.slow
def test_lanes_say_who_took_part_in_each_interval(run):
    found = lanes.of_run(run.summary, run.history)
    assert found.steps == [0, 2, 4, 6]
    online = [[0, 1, 0.5, 1], [0.5, 1, 0.5, 1], [1, 0, 0.5, 1]]
    np.testing.assert_allclose(found.shares["online"], online)
    np.testing.assert_allclose(found.shares["slow"], [[0, 0, 0.5, 0]] * 3)
    np.testing.assert_allclose(sum(found.shares.values()), 1)
    assert found.events == {0: [(3, "joins")], 1: [(4, "leaves")]}
    assert found.roles == ["", "", "", "adversary"]
    drawn = lanes.drawing(found)
    boxes = [box for box in ElementTree.fromstring(str(drawn)).iter() if box.tag == "rect"]
    area = sum(float(box.get("width")) * float(box.get("height")) for box in boxes)
    width = float(boxes[0].get("width"))
    assert area == pytest.approx(3 * width * K * 14, rel=0.01)  # lanes are full
    assert [each.text for each in parts(drawn, "event")] == ["joins", "leaves"]


def test_a_run_without_faults_has_no_lanes(run):
    history = [
        {name: record[name] for name in record if name != "faults"} for record in run.history
    ]
    assert lanes.of_run(run.summary, history) is None


def test_a_class_map_tells_held_from_other_classes(run):
    found = class_map.of_run(run.summary)
    held = found.held
    np.testing.assert_array_equal(
        held, distances.holds(np.array(run.summary["data"]["private_samples"]))
    )
    by_hops = {row["hops"]: row for row in run.summary["by_hops"]}
    for head in ("main", "aux_1", "aux_2"):
        mean, others = found.means(head)
        assert mean == pytest.approx(by_hops[0]["accuracy"][head])
        values = [client["per_class_accuracy"][head] for client in run.summary["per_client"]]
        assert others == pytest.approx(np.array(values)[~held].mean())
    firsts = [held[client].argmax() for client in found.order if held[client].any()]
    assert firsts == sorted(firsts) and sorted(found.order) == list(range(K))
    rows = parts(class_map.drawing(found, "aux_2"), "row")
    assert [int(row.get("data-client")) for row in rows] == list(found.order)
    for client, (_, cells, outlines) in zip(found.order, rows, strict=True):
        wanted = [levels.colour(x) for x in found.accuracy["aux_2"][client]]
        assert [cell.get("fill") for cell in cells] == wanted
        assert len(outlines) == held[client].sum()


def test_clients_are_ordered_by_what_they_know_of_others_classes():
    held = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]], bool)
    values = np.array(
        [[1, 0.2, 0.4], [0.5, 0, 0.7], [1, 1, 1], [np.nan, 0.9, 0.4], [np.nan, np.nan, 1]]
    )
    of = {"main": np.zeros((5, 3)), "aux_1": values}
    found = class_map.orders(class_map.ClassMap(held, [2, 0, 1, 3, 4], of, ["a", "b", "c"]))
    # 0.3, 0.6, none, 0.4 and none
    assert [list(order) for order in found.values()] == [
        [2, 0, 1, 3, 4],
        [0, 1, 2, 3, 4],
        [1, 3, 0, 2, 4],
    ]


def test_curves_are_of_all_of_the_honest_and_of_each_models_clients(run):
    models = ["small", "small", "large", "large"]
    found = curves.of(run.history, {"3": "label_flip"}, models)
    groups = {group["name"]: group["panels"] for group in found["groups"]}
    members = {
        "all clients": [0, 1, 2, 3],
        "honest clients": [0, 1, 2],
        "clients with small": [0, 1],
        "clients with large": [2, 3],
    }
    assert list(groups) == list(members)
    for name, who in members.items():
        for panel, metric in zip(groups[name], ("beta_sh", "beta_priv"), strict=False):
            for h, head in enumerate(("main", "aux_1", "aux_2")):
                each = np.array([rec["per_client"][metric][head] for rec in run.history])[:, who]
                np.testing.assert_allclose(panel["lines"][h], each.mean(axis=1), atol=6e-5)
                np.testing.assert_allclose(panel["ranges"][h][1], each.max(axis=1), atol=6e-5)
    last = run.history[-1]
    for name, part in (("all clients", last), ("honest clients", last["honest"])):
        ends = [line[-1] for line in groups[name][0]["lines"]]
        np.testing.assert_allclose(ends, list(part["beta_sh"].values()), atol=6e-5)
    assert [len(panels) for panels in groups.values()] == [3, 2, 2, 2]  # the loss is of all
    assert len(curves.of(run.history, (), ["small"] * K)["groups"]) == 1


def test_many_classes_are_folded_and_too_many_not_drawn(run):
    classes = 21
    names = [str(c) for c in range(classes)]
    of = {"main": np.zeros((2, classes))}
    found = class_map.ClassMap(np.zeros((2, classes), bool), [0, 1], of, names)
    assert found.is_folded and found.is_drawn
    crowd = np.zeros((200, classes), bool)
    assert not class_map.ClassMap(crowd, range(200), of, names).is_drawn


def test_levels_are_one_character_each():
    text = levels.text([[0, 1], [0.5, np.nan]])
    assert text == "A_g." and levels.DIGITS.index("g") == round(0.5 * 63)
    assert levels.colour(0.5) == levels.colours()[32]
    assert levels.text([-1, 2]) == "A_"  # out of range


def test_the_replay_ends_as_the_page_begins(run):
    drawn, classes = graph.of_run(run.summary, run.history), class_map.of_run(run.summary)
    found = replay.of(run.history, drawn, classes)
    assert found["steps"] == [2, 4, 6]
    assert found["learned"][-1] == levels.text(np.round(drawn.over_time[-1], 3))
    np.testing.assert_allclose(drawn.over_time[-1], drawn.learned, atol=5e-3)
    assert found["accuracy"][-1] == levels.text(drawn.accuracy)
    for head in ("main", "aux_2"):
        order = list(classes.order)
        assert found["classes"][head][-1] == levels.text(np.round(classes.accuracy[head][order], 4))
    assert replay.of(run.history[:1], drawn, classes) is None


def test_evaluations_keep_who_was_followed(run):
    last = np.mean(run.summary["diagnostics"]["followed"], axis=0)
    np.testing.assert_allclose(run.history[-1]["followed"], last, atol=5e-4)
    early = np.array(run.history[0]["followed"])
    assert early[0].sum() == 0  # who has not joined has learned from nobody
    np.testing.assert_allclose(early[[1, 2, 3]].sum(axis=1), 1, atol=2e-3)


def test_a_page_holds_few_moments_of_many():
    assert curves.moments(range(1001), 5) == [0, 250, 500, 750, 1000]
    assert curves.moments(range(3), 5) == [0, 1, 2]
