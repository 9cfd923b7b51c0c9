"""Communication between the processes of one run, and the role of its main process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mhd_jax.core.errors import ConfigError


def is_main() -> bool:
    """Returns whether this process is the one that writes the run's files and its output."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_each(value: int) -> np.ndarray:
    """Gathers an integer of every process, int [processes], on all processes."""
    if jax.process_count() == 1:
        return np.array([value])
    return np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1)


def first_does(action: Callable[[], object], otherwise: str) -> None:
    """Lets the first process do something; where it is refused, all processes refuse.

    Args:
      action: what only the first process does.
      otherwise: the sentence of the other processes.

    Raises:
      ConfigError: what `action` raises in the first process, and `otherwise` in the others.
    """
    refusal = None
    if is_main():
        try:
            action()
        except ConfigError as error:
            refusal = error
    if from_each(refusal is not None).any():
        raise refusal or ConfigError(otherwise)


def fetch(tree: Any) -> Any:
    """Returns complete NumPy arrays on every process from arrays that devices may share."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def lost_another(error: Exception) -> bool:
    """Returns whether an error of JAX means that another process of this run has ended."""
    signs = ("gloo", "nccl", "unavailable", "deadline", "coordination", "heartbeat", "barrier")
    return jax.process_count() > 1 and any(sign in str(error).lower() for sign in signs)
