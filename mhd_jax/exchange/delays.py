"""Neighbours as they were a fixed number of steps ago: for the study of delay alone, without a pool.

Slot s of a client holds it as it was at the last step t with t mod d = s.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.types import GroupState, PyTree, State


def start(state: State, delay: int) -> State:
    """The same clients, all slots holding them as they are: arrays [k, d, ...]."""

    def repeated(group: GroupState) -> GroupState:
        kept = jax.tree.map(
            lambda a: jnp.repeat(a[:, None], delay, axis=1), (group.params, group.stats)
        )
        return dataclasses.replace(group, snapshots=kept)

    return dataclasses.replace(state, groups=tuple(map(repeated, state.groups)))


def before(state: State, delay: int) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Parameters and statistics of `delay` steps ago, or of the start, group by group."""
    slot = state.step % delay
    found = [jax.tree.map(lambda a: a[:, slot], group.snapshots) for group in state.groups]
    params, stats = zip(*found, strict=True)
    return params, stats


def renewed(state: State, delay: int) -> State:
    """The same clients, whose slot of this step holds them as they are now."""
    slot: Array = state.step % delay

    def renew(group: GroupState) -> GroupState:
        kept = jax.tree.map(
            lambda slots, now: slots.at[:, slot].set(now),
            group.snapshots,
            (group.params, group.stats),
        )
        return dataclasses.replace(group, snapshots=kept)

    return dataclasses.replace(state, groups=tuple(map(renew, state.groups)))
