"""What the density outputs of a run's heads have learned, measured on its test samples.

A density output d_i^k(x) (`mhd_jax.exchange.density`) is to be the logarithm of a ratio of densities,
which is not known for real samples. What is known are labels: if the samples of a class are alike
wherever they are, the ratio of client i's samples of class c to the public ones is p_i(c)/p_public(c).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mhd_jax.training.metrics import head_names


def summarized(
    density: np.ndarray,
    labels: np.ndarray,
    private: np.ndarray,
    public: np.ndarray | None,
) -> dict[str, Any]:
    """Returns the entry "density" of a summary.

    Args:
      density: d on test samples, [K, N, H].
      labels: their labels, int [N].
      private: the frequencies of each client's private labels, [K, C]; zeros for a client without.
      public: the frequencies of the public set's labels, [C]; None if they are not known.

    Returns:
      "by_class", the mean of d by head, [K, C], NaN for classes without test samples; and, where the
      public labels are known, "log_ratio", log p_i(c)/p_public(c), [K, C], and means over clients
      with private labels:
      "auroc": how well the main head's d tells samples with the client's label frequencies from
        samples with the public ones, and "best", how well log_ratio does;
      "total_variation": between the client's label frequencies and those that its main head's d
        implies, q(c) ∝ p_public(c) · mean of exp d over samples of the class; and "public", between
        the client's and the public ones.
    """
    num_classes = private.shape[1]
    classes = np.arange(num_classes)
    of_class = (labels == classes[:, None]).astype(float)  # [C, N]
    count = of_class.sum(axis=1)
    weights = np.divide(
        of_class, count[:, None], out=np.zeros_like(of_class), where=count[:, None] > 0
    )

    def by_class(values: np.ndarray) -> np.ndarray:  # [K, N] -> [K, C]
        return np.where(count > 0, values @ weights.T, np.nan)

    names = head_names(density.shape[2])
    found: dict[str, Any] = {
        "by_class": {name: by_class(density[:, :, h]) for h, name in enumerate(names)}
    }
    if public is None:
        return found
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.log(private / public)
    found["log_ratio"] = np.where((public > 0) & np.isfinite(log_ratio), log_ratio, np.nan)
    ratio = np.where(public > 0, private / np.where(public > 0, public, 1), 0)
    seen = (count > 0) & (public > 0)
    each: dict[str, list[float]] = {"auroc": [], "best": [], "total_variation": [], "public": []}
    for i in np.flatnonzero(private.sum(axis=1) > 0):
        own, there = private[i] @ weights, public @ weights  # of each test sample, [N]
        each["auroc"].append(auroc(density[i, :, 0], own, there))
        each["best"].append(auroc(ratio[i][labels], own, there))
        implied = np.where(
            seen, public * np.nan_to_num(by_class(np.exp(density[i, None, :, 0])))[0], 0
        )
        each["total_variation"].append(_total_variation(implied, private[i]))
        each["public"].append(_total_variation(public, private[i]))
    means = {name: float(np.mean(values)) if values else None for name, values in each.items()}
    return {
        **found,
        "auroc": {"main": means["auroc"], "best": means["best"]},
        "total_variation": {"main": means["total_variation"], "public": means["public"]},
    }


def auroc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns how probable it is that a positive sample has a larger score than a negative one.

    Equal scores count half. `positive` and `negative` are weights of samples with `scores`, [N].
    """
    values, where = np.unique(scores, return_inverse=True)
    ones = np.bincount(where, positive, len(values))
    others = np.bincount(where, negative, len(values))
    below = np.cumsum(others) - others
    return float((ones * (below + others / 2)).sum() / (ones.sum() * others.sum()))


def _total_variation(one: np.ndarray, other: np.ndarray) -> float:
    """Returns half the sum of differences of two distributions, which are normalised first."""
    return float(np.abs(one / max(one.sum(), 1e-30) - other / other.sum()).sum() / 2)
