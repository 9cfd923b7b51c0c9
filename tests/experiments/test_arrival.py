"""What a run's heads know of far classes, against a loop over samples and the run's own summary."""

import json
import shutil

import numpy as np
import pytest

import mhd_jax as mhd
from experiments import arrival, trust

MEASURES = ("accuracy", "among", "expected", "elsewhere", "balanced")


def in_a_loop(logits, labels, hops):
    """The measures of one head, [C] each, sample by sample."""
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    prior = p.mean(axis=0)
    found = {name: np.full(len(hops), np.nan) for name in MEASURES}
    for c in range(len(hops)):
        alike = [d for d in range(len(hops)) if hops[d] == hops[c]]
        own = [n for n in range(len(labels)) if labels[n] == c]
        others = [n for n in range(len(labels)) if hops[labels[n]] != hops[c]]
        if own:
            found["accuracy"][c] = np.mean([np.argmax(p[n]) == c for n in own])
            best = [max(alike, key=lambda d, n=n: p[n, d]) for n in own]
            found["among"][c] = len(alike) * np.mean([d == c for d in best])
            found["expected"][c] = np.mean([p[n, alike].sum() for n in own])
            found["balanced"][c] = np.mean([np.argmax(p[n] / prior) == c for n in own])
        if others:
            found["elsewhere"][c] = np.mean([p[n, alike].sum() for n in others])
    return found


def test_measures_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 2, 6)), rng.integers(0, 5, 60)  # nothing of class 5
    hops = np.array([0, 0, 1, 1, 1, -1])
    found = arrival.measures(logits, labels, hops)
    assert tuple(found) == MEASURES
    for head in range(2):
        for name, expected in in_a_loop(logits[:, head], labels, hops).items():
            np.testing.assert_allclose(found[name][head], expected, atol=1e-12, err_msg=name)


def test_what_a_head_tells_apart_but_never_names_shows():
    labels, hops = np.repeat(np.arange(4), 10), np.array([0, 0, 2, 2])
    logits = 2.0 * np.eye(4)[labels] + np.array([5.0, 5.0, 0.0, 0.0])  # it expects near classes
    (near, far) = arrival.by_hops(logits[None, :, None], labels, hops[None])
    assert (near["hops"], far["hops"], far["pairs"]) == (0, 2, 2)
    assert far["accuracy"]["main"] == 0 and far["balanced"]["main"] == 1
    assert far["among"]["main"] == 2  # of two classes: twice a guess


def test_a_class_outside_the_label_set_is_never_named():
    labels, hops = np.repeat(np.arange(4), 10), np.array([0, 0, 1, 1])
    logits = 3.0 * np.eye(4)[labels]
    logits[:, 0] = -np.inf
    found = arrival.measures(logits[:, None], labels, hops)
    np.testing.assert_array_equal(found["balanced"], [[0, 1, 1, 1]])


def test_where_all_classes_are_at_one_distance_none_is_elsewhere():
    labels, hops = np.repeat(np.arange(4), 10), np.array([[0, 0, 0, 0], [0, 0, 2, 2]])
    logits = np.zeros((2, 40, 1, 4))  # both give all classes a quarter
    (row,) = arrival.by_hops(logits[:1], labels, hops[:1])
    assert row["elsewhere"] == {"main": None} and row["expected"] == {"main": 1}
    near, far = arrival.by_hops(logits, labels, hops)
    assert (near["pairs"], far["pairs"]) == (6, 2)
    assert near["elsewhere"] == far["elsewhere"] == {"main": 0.5}
    # Nor is there a row of distances at which no class has samples.
    (row,) = arrival.by_hops(logits[1:, :20], labels[:20], hops[1:])
    assert (row["hops"], row["elsewhere"]) == (0, {"main": None})


OF_ITS_DATA = "--test_fraction=0.3"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run on another test split than the usual one, whose last client has no labels."""
    folder = tmp_path_factory.mktemp("run") / "run"
    clients = mhd.make_clients(
        mhd.data.load("digits", test_fraction=0.3), 4, "mlp_small",
        partition=mhd.partition.primary_labels(2), objectives={3: "unlabelled"},
    )  # fmt: skip
    mhd.simulate(
        "chain", clients, mhd.algorithms.mhd(num_aux_heads=1), steps=20, batch_size=8,
        eval_every=20, workdir=folder, progress=False,
    )  # fmt: skip
    return folder


def test_a_run_is_measured_as_its_summary_is(output, run_folder, tmp_path):
    numbers = f"--numbers={tmp_path / 'new/found.json'}"
    found = output(arrival, f"--run={run_folder}", OF_ITS_DATA, numbers)
    rows = json.loads((tmp_path / "new/found.json").read_text())["by_hops"]
    summary = json.loads((run_folder / "summary.json").read_text())
    assert [row["hops"] for row in rows] == [row["hops"] for row in summary["by_hops"]]
    for row, own in zip(rows, summary["by_hops"], strict=True):
        assert row["pairs"] == own["pairs"]
        assert row["accuracy"] == pytest.approx(own["accuracy"], abs=1e-5)
    assert "aux_1" in found and "balanced" in found


def changed(run_folder, folder, change):
    """A copy of the run whose summary is another."""
    shutil.copytree(run_folder, folder)
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    return f"--run={folder}"


def test_where_all_hold_all_classes_nothing_is_elsewhere(output, run_folder, tmp_path):
    def all_alike(summary):
        summary["data"]["private_samples"] = [[1] * 10] * 4
        summary["topology"]["links"] = [[3, 2]]

    run = changed(run_folder, tmp_path / "alike", all_alike)
    assert "–" in output(arrival, run, OF_ITS_DATA)


def test_other_samples_than_the_runs_are_refused(refused, run_folder):
    said = refused(arrival, f"--run={run_folder}")
    assert "another test split" in said and "--test_fraction" in said


def test_a_client_without_labels_is_no_teacher(output, run_folder, tmp_path):
    numbers = tmp_path / "found.json"
    output(trust, f"--run={run_folder}", OF_ITS_DATA, f"--numbers={numbers}")
    data = mhd.data.load("digits", test_fraction=0.3)
    logits = mhd.load(run_folder).predict(data.test_inputs)[:, :, 0]
    right = (logits.argmax(axis=-1) == data.test_labels).mean(axis=1)
    # On the chain 0 – 1 – 2 – 3, of whom the last teaches nobody.
    heard = [right[1], (right[0] + right[2]) / 2, right[1], right[2]]
    found = json.loads(numbers.read_text())["heads"]["main"]["accuracy"]["random"]
    assert found == pytest.approx(np.mean(heard), abs=1e-6)


def test_what_has_no_hops_is_refused(refused, run_folder, tmp_path):
    assert "--run=DIR" in refused(arrival)
    said = refused(arrival, f"--run={run_folder}", f"--numbers={tmp_path}")
    assert "is a folder; name a file" in said
    assert "does not hold a run" in refused(arrival, f"--run={tmp_path}")
    run = changed(run_folder, tmp_path / "changing", lambda it: it["topology"].pop("links"))
    assert "no links between clients" in refused(arrival, run)
    run = changed(run_folder, tmp_path / "pooled", lambda it: it["per_client"].pop())
    assert "one model for all of them" in refused(arrival, run)
