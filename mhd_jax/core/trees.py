"""Operations on trees of arrays whose leading axes are clients or samples."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.types import PyTree


def take_rows(tree: PyTree, rows: Array) -> PyTree:
    """Takes the same rows of every array of a tree."""
    return jax.tree.map(lambda a: a[rows], tree)


def where_rows(which: Array, ones: PyTree, others: PyTree) -> PyTree:
    """Returns rows of arrays [K, ...] of `ones` where `which`, bool [K], else of `others`."""

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(which.reshape((-1,) + (1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(choose, ones, others)


def scaled(tree: PyTree, by: Array) -> PyTree:
    """Multiplies arrays [K, …] by a number for each client, [K]."""
    return jax.tree.map(lambda a: a * by.reshape((-1,) + (1,) * (a.ndim - 1)).astype(a.dtype), tree)


_taken_for_finite = contextvars.ContextVar("taken for finite", default=False)


@contextlib.contextmanager
def taken_for_finite() -> Iterator[None]:
    """Within it, code is traced as if all numbers were finite: `all_finite` looks at none."""
    token = _taken_for_finite.set(True)
    try:
        yield
    finally:
        _taken_for_finite.reset(token)


def all_finite(tree: PyTree, axes: int = 1) -> Array:
    """Returns which clients' outputs, or which messages, contain finite numbers only.

    Args:
      tree: outputs of clients, arrays [K, ...], or messages, arrays [K, T, ...].
      axes: the number of leading axes that index clients or messages, 1 or 2.

    Returns:
      bool [K] or [K, T]; clients learn from messages that are finite only.
    """
    if _taken_for_finite.get():
        return jnp.ones(jax.tree.leaves(tree)[0].shape[:axes], bool)
    finite = [jnp.isfinite(a).all(axis=range(axes, a.ndim)) for a in jax.tree.leaves(tree)]
    return jnp.stack(finite).all(axis=0)


def of_one_client(tree: PyTree) -> PyTree:
    """Shapes of one client's part of arrays [K, ...]."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def num_bytes(tree: PyTree) -> int:
    """Returns the number of bytes of all arrays, or shapes of arrays, of a tree."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(math.prod(leaf.shape) * _itemsize(leaf.dtype) for leaf in leaves)


def _itemsize(dtype: Any) -> int:
    return getattr(dtype, "itemsize", 8)  # a random key has two words of 32 bits
