"""What a run that is taken step by step, by its user's own loop, needs beside the engine's parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import GroupState, PyTree, State
from mhd_jax.training.groups import start_optimizers


def with_params(state: State, params: Sequence[PyTree], num_active: int) -> State:
    """A new state with the given parameters, and with optimizers that start from them.

    Args:
      state: of step 0.
      params: group by group, arrays [k, ...] of the group's clients, or of those that are real.
      num_active: K without clients that only fill devices.

    Raises:
      ConfigError: parameters of other shapes than the models'.
    """
    if not isinstance(params, Sequence) or len(params) != len(state.groups):
        raise ConfigError(
            f"params must be a list of {len(state.groups)} trees, one for each architecture, in the "
            "order of state.groups."
        )
    groups = [
        _with_params(group, own, sum(i < num_active for i in group.members))
        for group, own in zip(state.groups, params, strict=True)
    ]
    return start_optimizers(dataclasses.replace(state, groups=tuple(groups)))


def require_draws_by_hand(streams: bool, fails: bool) -> None:
    """Raises `ConfigError` where a batch is not a function of the state alone."""
    if streams:
        raise ConfigError(
            "the samples stay on the host, from which simulate streams them; set "
            "data_placement='device', or make a mhd_jax.Batch of your own arrays."
        )
    if fails:
        raise ConfigError(
            "faults and quarantine are simulate's to do; leave them out, and say by "
            "batch.replace(presence=...) which clients are there."
        )


def _with_params(group: GroupState, given: PyTree, real: int) -> GroupState:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (group.params, given)]
    expected, found = structures
    if expected != found:
        raise ConfigError(
            f"the parameters of clients {_listed(group, real)} must be a tree like {expected}, not "
            f"{found}."
        )

    def taken(path: Any, own: Array, new: Any) -> Array:
        new = jnp.asarray(new, own.dtype)
        if new.shape not in (own.shape, (real, *own.shape[1:])):
            raise ConfigError(
                f"the parameters{jax.tree_util.keystr(path)} of clients {_listed(group, real)} must "
                f"have shape {[real, *own.shape[1:]]}, not {list(new.shape)}."
            )
        return new if new.shape == own.shape else own.at[:real].set(new)

    params = jax.tree_util.tree_map_with_path(taken, group.params, given)
    return dataclasses.replace(group, params=params)


def _listed(group: GroupState, real: int) -> str:
    return ", ".join(map(str, group.members[:real]))
