"""How a partition looks in numbers: sizes, label entropies, skew."""

from __future__ import annotations

from typing import Any

import numpy as np


def label_entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of each client's labels in bits [K], of samples by client and class [K, C].

    0 is a single class, log₂ C all classes alike.
    """
    shares = _shares(counts)
    logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.abs((shares * logarithms).sum(axis=1))


def mean_total_variation(counts: np.ndarray) -> float:
    """Total variation ½ Σ_c |p_i(c) − p_j(c)| of two clients' labels, mean over all pairs.

    0 where all have the same labels in the same shares, 1 where no two share a class; 0 for one
    client. `counts` are samples by client and class, [K, C].
    """
    num_clients = len(counts)
    if num_clients < 2:
        return 0.0
    # Of ascending values, the k-th is subtracted from the later ones and from it the earlier ones.
    times = 2 * np.arange(num_clients) - (num_clients - 1)
    distances = (times[:, None] * np.sort(_shares(counts), axis=0)).sum()
    return float(distances / (num_clients * (num_clients - 1)))


def imbalance(counts: np.ndarray) -> float:
    """The largest client's size over the smallest's, of samples by client and class [K, C]."""
    sizes = counts.sum(axis=1)
    return float(sizes.max() / sizes.min())


def describe(counts: np.ndarray) -> dict[str, Any]:
    """All of this for private samples by client and class [K, C], every client having some.

    Returns:
      "clients", one record each: "client", "samples", "classes" (how many it holds),
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
