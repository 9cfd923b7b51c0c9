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

The run's clients predict the test samples of its data set, which is found by the flags that the run
had for it: --data_dir for one that is prepared, --dataset for a path, and options like --test_fraction.
--numbers names a file that gets the numbers as JSON.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl import flags

import mhd_jax as mhd
from experiments import measured_run
from mhd_jax.cli import launch
from mhd_jax.core.types import PyTree
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
    teachers = frequencies.any(axis=1)
    every = np.ones(len(labels))
    found: dict[str, dict[str, list[float]]] = {"auroc": {}, "accuracy": {}}
    for client in np.flatnonzero(teachers):
        # Weighted by the ratio, the test samples' labels have the client's frequencies.
        for name, score in scores.items():
            told = auroc(score[client], ratio[client, labels], every)
            found["auroc"].setdefault(name, []).append(told)
    for heard in edges & teachers:
        if heard.any():
            of_heard = {name: score[heard] for name, score in scores.items()}
            for name, value in _accuracies(probabilities[heard], of_heard, labels).items():
                found["accuracy"].setdefault(name, []).append(value)
    return {
        kind: {name: float(np.mean(values)) for name, values in each.items()}
        for kind, each in found.items()
    }


def _accuracies(
    votes: np.ndarray, scores: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, float]:
    """Returns the accuracies of the choices among T teachers: votes [T, N, C], scores [T, N]."""
    right = votes.argmax(axis=-1) == labels  # [T, N]

    def of_best(name: str) -> np.ndarray:
        return right[scores[name].argmax(axis=0), np.arange(len(labels))]

    chosen = {
        "random": right,
        "mean": votes.mean(axis=0).argmax(axis=-1) == labels,
        "confidence": of_best("confidence"),
        "labels": of_best("labels"),
    }
    if "density" in scores:
        shares = scipy.special.softmax(scores["density"].astype(np.float64), axis=0)
        chosen["density"] = np.einsum("tn,tnc->nc", shares, votes).argmax(axis=-1) == labels
    return {name: float(each.mean()) for name, each in chosen.items()}


def outputs(result: mhd.Result, inputs: PyTree) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns all clients' logits [K, N, H, C] and log density ratios [K, N, H], None without."""
    logits, density = [], []
    count = len(jax.tree.leaves(inputs)[0])
    for number in range(result.summary["num_clients"]):
        client = result.client(number)
        known = None if client.label_set is None else jnp.asarray(client.label_set)
        apply = jax.jit(functools.partial(client.model.apply, label_set=known))
        parts = [
            apply(client.params, client.stats, client.prepared(samples))[0]
            for samples in (
                take(inputs, slice(at, at + _AT_ONCE)) for at in range(0, count, _AT_ONCE)
            )
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
