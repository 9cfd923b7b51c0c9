"""Who knows what it is fit to teach, against loops over clients and samples, and a run's own summary."""

import json

import numpy as np
import pytest

import mhd_jax as mhd
from experiments import trust

EDGES = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 0]], bool)


def auroc_in_a_loop(scores, weights):
    """How often a sample drawn by weights has a higher score than one drawn uniformly."""
    wins = [[(a > b) + (a == b) / 2 for b in scores] for a in scores]
    return np.average(np.mean(wins, axis=1), weights=weights)


def made(seed=0):
    """Predictions of 3 clients for 40 samples of 4 classes, of which the last client has none."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(4), 10))
    frequencies = np.array([[0.5, 0.3, 0.2, 0], [0, 0.1, 0.3, 0.6], [0, 0, 0, 0]])
    return rng.normal(size=(3, 40, 4)), rng.normal(size=(3, 40)), labels, frequencies


def test_measures_are_those_of_loops():
    logits, density, labels, frequencies = made()
    found = trust.measures(logits, density, labels, frequencies, EDGES)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    weights = [[frequencies[i, c] for c in labels] for i in range(3)]
    scores = {"confidence": p.max(axis=-1), "density": density, "labels": np.array(weights)}
    for name, score in scores.items():
        expected = np.mean([auroc_in_a_loop(score[i], weights[i]) for i in (0, 1)])
        assert found["auroc"][name] == pytest.approx(expected), name

    right = {name: [] for name in ("random", "mean", "confidence", "density", "labels")}
    for i in range(3):
        heard = [j for j in range(2) if EDGES[i, j]]  # the last client has nothing to teach
        for n, label in enumerate(labels):
            ratios = np.exp([density[j, n] for j in heard])
            mixed = sum(r * p[j, n] for r, j in zip(ratios, heard, strict=True))
            said = {j: p[j, n].argmax() == label for j in heard}
            right["random"].append(np.mean(list(said.values())))
            right["mean"].append(np.mean([p[j, n] for j in heard], axis=0).argmax() == label)
            right["density"].append(mixed.argmax() == label)
            right["confidence"].append(said[max(heard, key=lambda j, n=n: p[j, n].max())])
            right["labels"].append(said[max(heard, key=lambda j, c=label: frequencies[j, c])])
    assert found["accuracy"] == pytest.approx({n: np.mean(each) for n, each in right.items()})


def test_a_teacher_that_knows_its_classes_shows():
    _, _, labels, _ = made()
    frequencies = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0]])
    knows = frequencies[:, labels] > 0
    logits = np.where(knows[:, :, None], 5 * np.eye(4)[labels], 0.0)
    logits[..., 3] += 0.1  # what who knows nothing guesses
    found = trust.measures(logits, np.where(knows, 0.7, -3.0), labels, frequencies, EDGES)
    for name in ("confidence", "density", "labels"):
        assert found["auroc"][name] == pytest.approx(0.75)  # half of all samples are its own
    assert found["accuracy"]["confidence"] == found["accuracy"]["labels"]
    assert found["accuracy"]["random"] < found["accuracy"]["density"]


@pytest.mark.slow
def test_a_run_is_measured(output, tmp_path):
    clients = mhd.make_clients("digits", 4, "mlp_small", partition=mhd.partition.primary_labels(2))
    algorithm = mhd.algorithms.mhd(
        num_aux_heads=1, target_selection="density_ratio", num_targets="all"
    )
    result = mhd.simulate(
        "complete", clients, algorithm, steps=20, batch_size=8, eval_every=20,
        workdir=tmp_path / "run", progress=False,
    )  # fmt: skip
    shown = output(trust, f"--run={tmp_path / 'run'}", f"--numbers={tmp_path / 'new/found.json'}")
    assert "aux_1" in shown and "density" in shown
    heads = json.loads((tmp_path / "new/found.json").read_text())["heads"]
    assert list(heads) == ["main", "aux_1"]
    # On a complete graph each client is a neighbour of all others: the mean is that of all clients.
    data = mhd.data.load("digits")
    logits = result.predict(data.test_inputs)
    for head, name in enumerate(heads):
        mean = (logits[:, :, head].argmax(-1) == data.test_labels).mean()
        assert heads[name]["accuracy"]["random"] == pytest.approx(mean, abs=1e-4)
    assert heads["main"]["auroc"]["density"] == pytest.approx(
        result.summary["density"]["auroc"]["main"], abs=0.02
    )  # whose public samples have nearly the test samples' frequencies


def test_who_has_no_neighbours_hears_nobody(output, tmp_path):
    clients = mhd.make_clients("digits", 3, "mlp_small", public_fraction=0.2)
    how = {"steps": 1, "batch_size": 8, "eval_every": 1, "progress": False}
    mhd.simulate("empty", clients, "isolated", workdir=tmp_path / "run", **how)
    numbers = tmp_path / "found.json"
    output(trust, f"--run={tmp_path / 'run'}", f"--numbers={numbers}")
    (head,) = json.loads(numbers.read_text())["heads"].values()
    assert head["accuracy"] == {} and 0.4 < head["auroc"]["confidence"] < 0.6
