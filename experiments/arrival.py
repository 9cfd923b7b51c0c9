r"""Tells what a run's heads know of classes that are some hops away, beside what their accuracy shows.

  python -m experiments.arrival --run=runs/ring/seed_0 --data_dir=DIR

A head may tell apart the classes that are held far away, and yet never name one, where it expects the
nearer ones much more often. For each head, and for each number of hops to the clients that hold a class:

  accuracy   of test samples, as in the run's summary
  among      the same where the head chooses among the classes at the sample's distance alone, as a
             multiple of a guess among these
  expected   the probability that it gives to the classes of this distance, on samples of them
  elsewhere  the same on all other samples; nothing where all classes are at one distance
  balanced   accuracy of predictions that are divided by their mean over the test samples, so that all
             classes are expected alike; this needs no labels

The run's clients predict the test samples of its data set, which is found by the flags that the run
had for it: --data_dir for one that is prepared, --dataset for a path, and options like --test_fraction.
--numbers names a file that gets the numbers as JSON.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
from absl import flags

from experiments import measured_run
from mhd_jax.cli import launch
from mhd_jax.studies import tables
from mhd_jax.topology import distances
from mhd_jax.training.metrics import head_names

flags.adopt_module_key_flags(measured_run)


def measures(logits: np.ndarray, labels: np.ndarray, hops: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what this program measures of one client, by its name above, each [H, C].

    Args:
      logits: of all heads, [N, H, C].
      labels: the true classes, int [N].
      hops: the distance of each class, int [C].

    Returns:
      Means over the samples of a class, or, of "elsewhere", over all samples of classes at other
      distances; NaN where there are none.
    """
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    prior = probabilities.mean(axis=0)
    # A class outside the label set, which has probability 0 throughout, is never named.
    balanced = np.divide(probabilities, prior, out=np.zeros_like(probabilities), where=prior > 0)
    at_distance = hops[:, None] == hops  # [C, C]
    of_distance = probabilities @ at_distance  # [N, H, C]: of all classes as far as this one
    alike = np.where(at_distance[labels][:, None], probabilities, -1)
    is_class = labels[:, None] == np.arange(len(hops))  # [N, C]
    is_elsewhere = ~at_distance[labels]

    def share(predicted: np.ndarray) -> np.ndarray:
        right = (predicted.argmax(axis=-1) == labels[:, None]).astype(np.float64)
        return _means(np.broadcast_to(right[:, :, None], logits.shape), is_class)

    return {
        "accuracy": share(probabilities),
        "among": share(alike) * at_distance.sum(axis=1),
        "expected": _means(of_distance, is_class),
        "elsewhere": _means(of_distance, is_elsewhere),
        "balanced": share(balanced),
    }


def _means(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Returns the means of values [N, H, C] over the samples that count for a class, bool [N, C]."""
    with np.errstate(invalid="ignore"):
        return np.einsum("nhc,nc->hc", values, counted) / counted.sum(axis=0)


def by_hops(logits: np.ndarray, labels: np.ndarray, hops: np.ndarray) -> list[dict[str, Any]]:
    """Returns the measures by distance, as means over pairs of a client and a class.

    Args:
      logits: of all clients, [K, N, H, C].
      labels: the true classes, int [N].
      hops: the distances of classes, int [K, C]; −1 where no path leads to.

    Returns:
      Rows as those of `distances.accuracies`, with the means of all measures over their pairs;
      "elsewhere" is over those of clients that have classes at other distances, and None without.
    """
    each = [measures(*one) for one in zip(logits, [labels] * len(logits), hops, strict=True)]
    heads = head_names(logits.shape[2])
    of_all = {name: np.stack([one[name] for one in each]) for name in each[0]}  # [K, H, C]
    tested = np.isin(np.arange(hops.shape[1]), labels)
    rows = distances.accuracies(of_all["accuracy"], hops, heads)
    for row in rows:
        counted = tested & (hops == (-1 if row["hops"] is None else row["hops"]))
        for name, values in of_all.items():
            row[name] = _mean_by_head(values.transpose(0, 2, 1)[counted], heads)
    return rows


def _mean_by_head(values: np.ndarray, heads: list[str]) -> dict[str, float | None]:
    """Returns the means of values [P, H] by head, without those that are NaN; None of nothing."""
    known = values[~np.isnan(values).any(axis=1)]
    means = known.mean(axis=0).tolist() if len(known) else [None] * len(heads)
    return dict(zip(heads, means, strict=True))


def main() -> None:
    """Prints the measures of a run's heads by distance."""
    measured = measured_run.opened()
    logits = measured.result.predict(measured.data.test_inputs)
    hops = distances.to_classes(measured.edges, measured.counts)
    found = by_hops(logits, np.asarray(measured.data.test_labels), hops)
    measured_run.keep(by_hops=found)
    _show(found)


def _show(found: list[dict[str, Any]]) -> None:
    """Prints a line for each head and distance."""
    columns = [name for name in found[0] if name not in ("hops", "pairs")]
    lines = []
    for head in found[0][columns[0]]:
        for row in found:
            far = "none" if row["hops"] is None else str(row["hops"])
            lines.append([head, far, *(_cell(name, row[name][head]) for name in columns)])
    launch.console().print(tables.rich(["head", "hops", *columns], lines))


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if name == "among" else f"{value:.3f}"


if __name__ == "__main__":
    launch.run(main)
