"""Teachers that are d steps old, to study the effect of delay alone, without a pool.

Slot s of a client holds a snapshot of it from the last step t with t mod d = s.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.types import Batch, GroupState, Outputs, PyTree, State
from mhd_jax.exchange.channel import Channel, travels_to_all
from mhd_jax.exchange.teachers import Teachers, draw_teachers
from mhd_jax.training.groups import forward, forward_teachers


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


@dataclasses.dataclass(frozen=True)
class Delayed:
    """Δ neighbours as they were `delay` steps ago, a source of teachers (see `mhd_jax.exchange.teachers`)."""

    num_targets: int | str
    delay: int

    @property
    def num_snapshots(self) -> int:
        """One of each step since."""
        return self.delay

    def start(self, state: State) -> State:
        """See `mhd_jax.exchange.teachers.Source`."""
        return start(state, self.delay)

    def teach(
        self,
        state: State,
        batch: Batch,
        graph: Array,
        available: Array,
        received: Outputs,
        channel: Channel,
    ) -> tuple[State, Teachers, Outputs]:
        """See `mhd_jax.exchange.teachers.Source`."""
        del received  # which is of this step
        teachers = draw_teachers(state, graph, available, self.num_targets)
        params, stats = before(state, self.delay)
        state = renewed(state, self.delay)
        positions, inputs = teachers.positions, batch.public_inputs
        if not batch.public_is_shared:
            outputs = forward_teachers(state, params, stats, positions, inputs)
            return state, teachers, channel.received(state, outputs, positions)
        outputs, _ = forward(state, params, stats, inputs, shared_inputs=True)
        sent = channel.received(state, outputs, travels=travels_to_all(batch))
        return state, teachers, channel.gathered(state, sent, positions)
