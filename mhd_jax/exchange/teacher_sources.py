"""Sources of teachers: neighbours as they are, as they were, or checkpoints of them in pools."""

from __future__ import annotations

from typing import Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import is_integer
from mhd_jax.exchange.delays import Delayed
from mhd_jax.exchange.teacher_pools import Pool
from mhd_jax.exchange.teachers import Neighbours, Source


def named(num_targets: Any, pool_size: int, pool_refresh: int, teacher_delay: int) -> Source:
    """The source that these options describe.

    Args:
      num_targets: Δ, or "all".
      pool_size: N_P; 0 keeps no pools.
      pool_refresh: S_P, steps between two renewals of a slot.
      teacher_delay: how many steps old teachers are, without a pool.

    Raises:
      ConfigError: options that cannot be, or contradict each other.
    """
    if num_targets != "all" and not (is_integer(num_targets) and int(num_targets) >= 1):
        raise ConfigError(f"num_targets must be a positive integer or 'all', not {num_targets!r}.")
    for name, value, least in (
        ("pool_size", pool_size, 0),
        ("pool_refresh", pool_refresh, 1),
        ("teacher_delay", teacher_delay, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}.")
    if pool_size > 0 and teacher_delay > 0:
        raise ConfigError(
            "pool_size and teacher_delay both say how old teachers are; leave one of them out."
        )
    if pool_size > 0:
        return Pool(num_targets, pool_size, pool_refresh)
    return Delayed(num_targets, teacher_delay) if teacher_delay > 0 else Neighbours(num_targets)
