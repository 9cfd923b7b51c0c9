"""Arrays that stay on the host until they are placed on the devices that use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from mhd_jax.core import modes
from mhd_jax.core.client_axis import Execution
from mhd_jax.core.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Unplaced:
    """An array to be placed. A host reads only the parts of it that its own devices hold.

    Attributes:
      shape, dtype: of the whole array.
      axis: its client axis, along which devices share it; None puts all of it on every device.
      read: returns the part of a slice of clients.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axis: int | None
    read: Callable[[slice], np.ndarray]

    def shape_on(self, execution: Execution) -> jax.ShapeDtypeStruct:
        """Returns shape, type and sharding of the array once it is placed."""
        sharding = execution.sharding_along(self.axis)
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)

    def on(self, execution: Execution) -> Array:
        """Places the array."""
        parts: dict[int | None, np.ndarray] = {}  # devices that share a client hold the same part

        def part(index: Any) -> np.ndarray:
            own = slice(None) if self.axis is None else index[self.axis]
            if own.start not in parts:
                parts[own.start] = self.read(own)
            return parts[own.start]

        sharding = execution.sharding_along(self.axis)
        return jax.make_array_from_callback(self.shape, sharding, part)


def held(array: np.ndarray, axis: int | None) -> Unplaced:
    """Returns an array of the host, yet to be placed."""
    return Unplaced(array.shape, array.dtype, axis, lambda own: _part(array, axis, own))


def rows_of(stored: PyTree, rows: np.ndarray, axis: int | None) -> PyTree:
    """Returns the samples of `rows`, an array of any shape, yet to be read and placed.

    Args:
      stored: arrays [N, ...], or substitutes that read rows from files.
      rows: numbers of samples.
      axis: the client axis of `rows`, if there is one.
    """

    def of(array: Any) -> Unplaced:
        shape = (*rows.shape, *array.shape[1:])
        return Unplaced(shape, array.dtype, axis, lambda own: array[_part(rows, axis, own)])

    return jax.tree.map(of, stored)


def loaded(tree: PyTree) -> Any:
    """Reads all arrays of a tree whole, so that `place` waits for no file."""
    return jax.tree.map(lambda array: held(array.read(slice(None)), array.axis), tree)


@modes.standard()
def place(tree: PyTree, execution: Execution) -> Any:
    """Places all arrays of a tree on the devices."""
    return jax.tree.map(lambda array: array.on(execution), tree)


def shapes(tree: PyTree, execution: Execution) -> Any:
    """Returns shapes, types and shardings of all arrays of a tree, and places nothing."""
    return jax.tree.map(lambda array: array.shape_on(execution), tree)


def _part(array: np.ndarray, axis: int | None, own: slice) -> np.ndarray:
    return array if axis is None else array[(slice(None),) * axis + (own,)]
