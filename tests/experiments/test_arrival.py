"""What a run's heads know of far classes, against a loop over samples and the run's own summary."""

import json

import numpy as np
import pytest

import mhd_jax as mhd
from experiments import arrival

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


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    clients = mhd.make_clients("digits", 4, "mlp_small", partition=mhd.partition.primary_labels(2))
    mhd.simulate(
        "chain", clients, mhd.algorithms.mhd(num_aux_heads=1), steps=20, batch_size=8,
        eval_every=20, workdir=folder, progress=False,
    )  # fmt: skip
    return folder


def test_a_run_is_measured_as_its_summary_is(output, run_folder, tmp_path):
    found = output(arrival, f"--run={run_folder}", f"--numbers={tmp_path / 'new/found.json'}")
    rows = json.loads((tmp_path / "new/found.json").read_text())["by_hops"]
    summary = json.loads((run_folder / "summary.json").read_text())
    assert [row["hops"] for row in rows] == [row["hops"] for row in summary["by_hops"]]
    for row, own in zip(rows, summary["by_hops"], strict=True):
        assert row["pairs"] == own["pairs"]
        assert row["accuracy"] == pytest.approx(own["accuracy"], abs=1e-5)
    assert "aux_1" in found and "balanced" in found


def test_what_has_no_hops_is_refused(refused, run_folder, tmp_path):
    assert "--run=DIR" in refused(arrival)
    assert "does not hold a run" in refused(arrival, f"--run={tmp_path}")
    summary = json.loads((run_folder / "summary.json").read_text())
    del summary["topology"]["links"]
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (other / name).write_bytes((run_folder / name).read_bytes())
    (other / "summary.json").write_text(json.dumps(summary))
    assert "no links between clients" in refused(arrival, f"--run={other}")


def test_a_client_without_labels_holds_no_class(refused, tmp_path):
    clients = mhd.make_clients(
        "digits", 3, "mlp_small", objectives=["supervised"] * 2 + ["unlabelled"]
    )
    how = {"steps": 1, "batch_size": 8, "eval_every": 1, "progress": False}
    mhd.simulate("chain", clients, "mhd", workdir=tmp_path / "run", **how)
    assert "held elsewhere" in refused(arrival, f"--run={tmp_path / 'run'}")
