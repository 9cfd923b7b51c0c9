"""Accuracies by head, client and class, and what they sum up to.

β_sh is the accuracy on the uniform label distribution, β_priv that on the client's own.
Both derive from per-class accuracies, computed once on the test set.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def head_names(num_heads: int) -> list[str]:
    """ "main", "aux_1", …, "aux_m"."""
    return ["main", *(f"aux_{rank}" for rank in range(1, num_heads))]


def prediction_entropy(logits: Array, label_set: Array | None = None) -> Array:
    """Entropy of the mean prediction over samples [N, C], over its maximum log C.

    Near 0 a head answers the same whatever it sees: the signature of a collapse. Of a client with a
    label set L, bool [C], the maximum is `log |L|`; one that knows a single class has 1.
    """
    mean = jax.nn.softmax(logits).mean(axis=0)
    entropy = jax.scipy.special.entr(mean).sum()
    if label_set is None:
        return entropy / jnp.log(logits.shape[-1])
    known = label_set.sum()
    return jnp.where(known > 1, entropy / jnp.log(jnp.maximum(known, 2)), 1)


def correct_by_class(logits: Array, labels: Array, mask: Array, num_classes: int) -> Array:
    """Counts of correct answers.

    Args:
      logits: [K, N, H, C].
      labels: int [N].
      mask: bool [N], False for padding.
      num_classes: C.

    Returns:
      int32 [K, H, C].
    """
    correct = (logits.argmax(axis=-1) == labels[None, :, None]) & mask[None, :, None]  # [K, N, H]
    classes = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    # Counts stay below 2^24 here, so float32 sums are exact.
    return jnp.einsum("knh,nc->khc", correct.astype(jnp.float32), classes).astype(jnp.int32)


def beta_sh(per_class: np.ndarray) -> np.ndarray:
    """β_sh [K, H] from per-class accuracies [K, H, C]; classes without test samples are NaN and left out."""
    return np.nanmean(per_class, axis=-1)


def beta_priv(per_class: np.ndarray, label_distributions: np.ndarray) -> np.ndarray:
    """β_priv [K, H]: per-class accuracies [K, H, C] weighted by the clients' own labels [K, C].

    Classes without test samples are left out; a client without labels has NaN.
    """
    known = ~np.isnan(per_class)
    weights = label_distributions[:, None, :] * known
    total = weights.sum(axis=-1)
    weighted = (np.where(known, per_class, 0) * weights).sum(axis=-1)
    return np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)
