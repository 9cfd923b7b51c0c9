"""One run on several processes: what all must agree on, and what only the first one does."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_main() -> bool:
    """Whether this process writes the run's files and talks to its user."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes have come to it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_each(value: int) -> np.ndarray:
    """What every process says, int [processes], the same everywhere."""
    if jax.process_count() == 1:
        return np.array([value])
    return np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1)


def fetch(tree: Any) -> Any:
    """Arrays as NumPy's, whole, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def lost_another(error: Exception) -> bool:
    """Whether an error of JAX says that another process of this run is gone."""
    signs = ("gloo", "nccl", "unavailable", "deadline", "coordination", "heartbeat", "barrier")
    return jax.process_count() > 1 and any(sign in str(error).lower() for sign in signs)
