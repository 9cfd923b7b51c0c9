"""Short digests that tell data, graphs and programs apart, for a run's recorded settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mhd_jax.data.lazy import LazyImages


def array_digest(*arrays: Any) -> str:
    """Tells arrays apart by their shapes, types and values, or files that are not read yet."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype}{array.shape}".encode())
        if isinstance(array, LazyImages):
            sha.update(f"{array.identity}{array_digest(array.numbers)}".encode())
        else:
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def program_digest(function: Callable[..., Any], *arguments: Any) -> str:
    """Tells pure functions apart by what they compute: their jaxpr and its constants.

    Args:
      function: traceable.
      *arguments: arrays, or their shapes.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))  # addresses differ between processes
    constants = [np.asarray(c) for c in closed.consts]
    return hashlib.sha256((text + array_digest(*constants)).encode()).hexdigest()[:16]
