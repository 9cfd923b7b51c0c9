"""Accuracies by client, head and class, and their averages β_sh and β_priv.

β_sh is the accuracy on the uniform label distribution, β_priv that on the client's own label
distribution. Both derive from per-class accuracies, computed once on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core.tasks import CLASSES, Task

SYMBOLS = {"beta_sh": "β_sh", "beta_priv": "β_priv"}
OF_OWN_LABELS = ("beta_priv", "beta_own")  # measured on what clients have themselves


def first_and_last(heads: Sequence[str]) -> list[str]:
    """Returns the main head and, if there are auxiliary heads, the last one."""
    return [heads[0]] if len(heads) == 1 else [heads[0], heads[-1]]


def declared_head(metric: str, heads: Sequence[str]) -> str:
    """Returns the head by which a metric judges a run, fixed before the run.

    On a client's own label distribution (β_priv, β_own) it is the main head, which learns from the
    client's own labels; else the last one. Choosing each run's best head on the test set would
    favour those with more heads.
    """
    return heads[0 if metric in OF_OWN_LABELS else -1]


def head_names(num_heads: int) -> list[str]:
    """Returns the names of the heads: "main", "aux_1", …, "aux_m"."""
    return ["main", *(f"aux_{rank}" for rank in range(1, num_heads))]


def correct_by_class(
    logits: Array,
    labels: Array,
    mask: Array,
    num_classes: int,
    task: Task = CLASSES,
    targets: Array | None = None,
) -> Array:
    """Returns the number of correct predictions by client, head and class.

    Args:
      logits: [K, N, H, C].
      labels: int [N].
      mask: bool [N], False for padding.
      num_classes: C.
      task: what clients predict.
      targets: the numbers that a regression predicts, [N, D], whose ranges are the labels; None for
        classes.

    Returns:
      int32 [K, H, C]; the sums of scores of a regression, float32.
    """
    wanted = labels if targets is None else targets
    scores = task.scores(logits, wanted[None, :, None])  # [K, N, H]
    # A padded sample may hold anything, which a product with 0 need not remove.
    scores = jnp.where(mask[None, :, None], scores, 0).astype(jnp.float32)
    classes = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    # Counts stay below 2^24 here, so float32 sums are exact.
    sums = jnp.einsum("knh,nc->khc", scores, classes)
    return sums.astype(jnp.int32) if task.has_classes else sums


def beta_sh(per_class: np.ndarray) -> np.ndarray:
    """Returns β_sh [K, H], the mean of per-class accuracies [K, H, C].

    Classes without test samples, whose accuracies are NaN, are left out.
    """
    return np.nanmean(per_class, axis=-1)


def beta_priv(per_class: np.ndarray, label_distributions: np.ndarray) -> np.ndarray:
    """Returns β_priv [K, H]: per-class accuracies [K, H, C] weighted by label distributions [K, C].

    Classes without test samples are left out; β_priv of a client without labels is NaN.
    """
    known = ~np.isnan(per_class)
    weights = label_distributions[:, None, :] * known
    total = weights.sum(axis=-1)
    weighted = (np.where(known, per_class, 0) * weights).sum(axis=-1)
    return np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)
