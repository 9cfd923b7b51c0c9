"""Trees of arrays whose leading axes are clients or samples."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.types import PyTree


def take_rows(tree: PyTree, rows: Array) -> PyTree:
    """Rows of every array of a tree."""
    return jax.tree.map(lambda a: a[rows], tree)


def where_rows(which: Array, ones: PyTree, others: PyTree) -> PyTree:
    """Rows of arrays [K, ...]: of `ones` where `which` [K] holds, else of `others`."""

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(which.reshape((-1,) + (1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(choose, ones, others)


def all_finite(tree: PyTree, axes: int = 1) -> Array:
    """Whose outputs, or which messages, are all finite; nobody learns from the others.

    Args:
      tree: outputs of clients, arrays [K, ...], or messages, arrays [K, T, ...].
      axes: how many of the leading axes tell them apart: 1 or 2.

    Returns:
      bool [K] or [K, T].
    """
    finite = [jnp.isfinite(a).all(axis=range(axes, a.ndim)) for a in jax.tree.leaves(tree)]
    return jnp.stack(finite).all(axis=0)


def of_one_client(tree: PyTree) -> PyTree:
    """Shapes of one client's part of arrays [K, ...]."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def num_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, which may be shapes only."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(math.prod(leaf.shape) * _itemsize(leaf.dtype) for leaf in leaves)


def _itemsize(dtype: Any) -> int:
    return getattr(dtype, "itemsize", 8)  # keys are two words
