"""Statistics of a partition: sizes, label entropies, skew."""

from __future__ import annotations

from typing import Any

import numpy as np


def label_entropy(counts: np.ndarray) -> np.ndarray:
    """Returns the entropy of each client's labels in bits [K].

    It is 0 for a single class and log₂ C for equally many samples of all classes. `counts` are
    samples by client and class [K, C].
    """
    shares = _shares(counts)
    logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.abs((shares * logarithms).sum(axis=1))


def mean_total_variation(counts: np.ndarray) -> float:
    """Returns the mean over pairs of clients of their labels' total variation.

    Total variation is ½ Σ_c |p_i(c) − p_j(c)|. The mean is 0 if all clients have the same shares of
    labels, 1 if no two share a class, and 0 for one client. `counts` are samples by client and
    class [K, C].
    """
    num_clients = len(counts)
    if num_clients < 2:
        return 0.0
    # For K ascending values, Σ_{i<j} |x_i − x_j| = Σ_k (2k − (K − 1)) x_k. The mean is over
    # K (K − 1) / 2 pairs, whose ½ cancels that of the total variation.
    times = 2 * np.arange(num_clients) - (num_clients - 1)
    distances = (times[:, None] * np.sort(_shares(counts), axis=0)).sum()
    return float(distances / (num_clients * (num_clients - 1)))


def imbalance(counts: np.ndarray) -> float:
    """Returns the ratio of the largest to the smallest client's size, from `counts` [K, C]."""
    sizes = counts.sum(axis=1)
    return float(sizes.max() / sizes.min())


def describe(counts: np.ndarray) -> dict[str, Any]:
    """Returns all statistics of private samples by client and class [K, C], with no row empty.

    Returns:
      "clients", a record for each client: "client", "samples", "classes" (how many it holds),
      "entropy_bits", "largest_class", "largest_share" and "counts" [C]; and "imbalance" and
      "mean_total_variation".
    """
    sizes, entropies = counts.sum(axis=1), label_entropy(counts)
    return {
        "clients": [
            {
                "client": client,
                "samples": int(sizes[client]),
                "classes": int((own > 0).sum()),
                "entropy_bits": float(entropies[client]),
                "largest_class": int(own.argmax()),
                "largest_share": float(own.max() / sizes[client]),
                "counts": own.tolist(),
            }
            for client, own in enumerate(counts)
        ],
        "imbalance": imbalance(counts),
        "mean_total_variation": mean_total_variation(counts),
    }


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(axis=1, keepdims=True)
