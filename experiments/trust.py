r"""Tells whether clients know which samples they are fit to teach, and what who follows them gets.

  python -m experiments.trust --run=runs/complete/seed_0 --data_dir=DIR

A client that has never seen a class should be less sure on samples of it than one that has. For the
main head and each auxiliary one, as a teacher of the next rank, on test samples, as means over clients:

  auroc      how well a score tells samples with a client's own label frequencies from samples with
             those of the test set, 0.5 where it cannot: "confidence", the probability of the most
             probable class; "density", the head's log density ratio, where it has one; and "labels",
             the ratio of these frequencies for a sample's true class, which no score can surpass
             where samples of a class are alike at all clients
  accuracy   of what a client's neighbours predict: of one drawn at "random"; of the "mean" of their
             probabilities; of the one with the largest "confidence"; of the mean weighted by their
             "density" ratios; and of the one with the largest ratio by "labels"

The run's clients predict the test samples of the data set that it names; one that is prepared needs
--data_dir. --numbers names a file that gets them as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
import scipy.special
from absl import flags

import mhd_jax as mhd
from experiments import measured_run
from mhd_jax.cli import launch
from mhd_jax.data.dataset import take
from mhd_jax.engine.densities import auroc
from mhd_jax.studies import tables
from mhd_jax.training.metrics import head_names

flags.adopt_module_key_flags(measured_run)

_AT_ONCE = 1000  # samples
Numbers = dict[str, dict[str, float]]


def measures(
    logits: np.ndarray,
    density: np.ndarray | None,
    labels: np.ndarray,
    frequencies: np.ndarray,
    edges: np.ndarray,
) -> Numbers:
    """Returns what this program measures of one head, by its name above and that of the score.

    Args:
      logits: of all clients, [K, N, C].
      density: their log density ratios, [K, N]; None without.
      labels: the true classes, int [N].
      frequencies: of each client's labels, [K, C]; zeros for a client without, which is no teacher.
      edges: whether i may learn from j at [i, j], bool [K, K].
    """
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    there = np.bincount(labels, minlength=frequencies.shape[1]) / len(labels)
    ratio = np.divide(frequencies, there, out=np.zeros_like(frequencies), where=there > 0)
    scores = {"confidence": probabilities.max(axis=-1), "labels": ratio[:, labels]}
    if density is not None:
        scores["density"] = density
    own = frequencies.any(axis=1)
    weights = ratio[:, labels]  # of test samples, whose labels then have a client's frequencies
    found: Numbers = {
        "auroc": {
            name: float(
                np.mean(
                    [auroc(score[i], weights[i], np.ones(len(labels))) for i in np.flatnonzero(own)]
                )
            )
            for name, score in scores.items()
        }
    }
    right = probabilities.argmax(axis=-1) == labels  # [K, N]
    each: dict[str, list[float]] = {}
    for heard in (edges & own)[(edges & own).any(axis=1)]:
        of, votes = right[heard], probabilities[heard]
        accuracies = {"random": of.mean(), "mean": (votes.mean(axis=0).argmax(-1) == labels).mean()}
        for name in ("confidence", "labels"):
            best = scores[name][heard].argmax(axis=0)
            accuracies[name] = of[best, np.arange(len(labels))].mean()
        if density is not None:
            shares = scipy.special.softmax(density[heard].astype(np.float64), axis=0)
            mixed = np.einsum("tn,tnc->nc", shares, votes)
            accuracies["density"] = (mixed.argmax(axis=-1) == labels).mean()
        for name, value in accuracies.items():
            each.setdefault(name, []).append(float(value))
    return {**found, "accuracy": {name: float(np.mean(values)) for name, values in each.items()}}


def outputs(result: mhd.Result, inputs: object) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns all clients' logits [K, N, H, C] and log density ratios [K, N, H], None without."""
    logits, density = [], []
    for number in range(result.summary["num_clients"]):
        client = result.client(number)
        samples = client.prepared(inputs)
        apply = jax.jit(lambda x, c=client: c.model.apply(c.params, c.stats, x)[0])
        count = len(jax.tree.leaves(samples)[0])
        parts = [
            apply(take(samples, slice(start, start + _AT_ONCE)))
            for start in range(0, count, _AT_ONCE)
        ]
        logits.append(np.concatenate([part.logits for part in parts]))
        if parts[0].density is not None:
            density.append(np.concatenate([part.density for part in parts]))
    return np.stack(logits), np.stack(density) if density else None


def main() -> None:
    """Prints the measures of a run's heads."""
    measured = measured_run.opened()
    logits, density = outputs(measured.result, measured.data.test_inputs)
    labels, counts = np.asarray(measured.data.test_labels), measured.counts
    frequencies = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    found = {
        name: measures(
            logits[:, :, head],
            None if density is None else density[:, :, head],
            labels,
            frequencies,
            measured.edges,
        )
        for head, name in enumerate(head_names(logits.shape[2]))
    }
    measured_run.keep(heads=found)
    _show(found)


def _show(found: Mapping[str, Numbers]) -> None:
    """Prints a line for each head."""
    columns = [(kind, name) for kind, each in found["main"].items() for name in each]
    lines = [
        [head, *(f"{of_head[kind][name]:.3f}" for kind, name in columns)]
        for head, of_head in found.items()
    ]
    headings = ["head", *(f"{kind} {name}" for kind, name in columns)]
    launch.console().print(tables.rich(headings, lines))


if __name__ == "__main__":
    launch.run(main)
