"""Counting of samples that two sets share, for sets that should be disjoint."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mhd_jax.data.lazy_images import LazyImages

PyTree = Any


def sample_keys(inputs: PyTree) -> np.ndarray:
    """Returns a key for each sample, int64 [N]; equal samples have equal keys in this process.

    The keys of lazy images derive from their places on the disk: two sets of lazy images can be
    compared with each other, but not with arrays.
    """
    keys = np.zeros(1, np.int64)
    with np.errstate(over="ignore"):
        for leaf in jax.tree.leaves(inputs):
            own = leaf.keys[leaf.numbers] if isinstance(leaf, LazyImages) else _of_rows(leaf)
            keys = keys * 1_000_003 + own
    return keys


def num_common(some: np.ndarray, others: np.ndarray) -> int:
    """Returns how many of the keys `some` are among the keys `others`."""
    return int(np.isin(some, others).sum())


def _of_rows(array: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(array).reshape(len(array), -1)
    return np.fromiter((hash(row.tobytes()) for row in rows), np.int64, len(rows))
