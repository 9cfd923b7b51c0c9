"""Teachers that are d steps old, to study the effect of delay alone, without a pool.

Slot s of a client holds a snapshot of it from the last step t with t mod d = s.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.types import GroupState, PyTree, State


def start(state: State, delay: int) -> State:
    """Returns the state with snapshots [k, d, ...], which all hold the clients' current models."""

    def repeated(group: GroupState) -> GroupState:
        kept = jax.tree.map(
            lambda a: jnp.repeat(a[:, None], delay, axis=1), (group.params, group.stats)
        )
        return dataclasses.replace(group, snapshots=kept)

    return dataclasses.replace(state, groups=tuple(map(repeated, state.groups)))


def before(state: State, delay: int) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Returns each group's parameters and statistics of `delay` steps ago, or of the start."""
    slot = state.step % delay
    found = [jax.tree.map(lambda a: a[:, slot], group.snapshots) for group in state.groups]
    params, stats = zip(*found, strict=True)
    return params, stats


def renewed(state: State, delay: int) -> State:
    """Returns the state in which the slot of this step holds the clients' current models."""
    slot: Array = state.step % delay

    def renew(group: GroupState) -> GroupState:
        kept = jax.tree.map(
            lambda slots, now: slots.at[:, slot].set(now),
            group.snapshots,
            (group.params, group.stats),
        )
        return dataclasses.replace(group, snapshots=kept)

    return dataclasses.replace(state, groups=tuple(map(renew, state.groups)))
