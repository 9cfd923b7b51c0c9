"""Teacher pools: earlier models (checkpoints) of neighbours that each client stores as teachers.

Every S_P steps each client copies the current model of a random neighbour into a random one of the
N_P slots of its pool; the other slots do not change, nor does the pool of a client that is away or
has no neighbour at that step. An empty pool is filled at the first step at which its client is
present and has neighbours, with different neighbours as far as there are enough. The models of a
client that has left the run can remain teachers in the pools of others.

The pool of a client is stored on its own device: a group of the state holds K · N_P models of its
architecture, and a slot uses the one in the group of its teacher. For each slot and architecture
this takes as much memory as one model of every client.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core import random
from mhd_jax.core.client_axis import in_any_run, over_clients
from mhd_jax.core.random import Purpose
from mhd_jax.core.trees import take_rows
from mhd_jax.core.types import Batch, GroupState, Outputs, PyTree, State
from mhd_jax.exchange.channel import Channel
from mhd_jax.exchange.teachers import Teachers, draw_teachers
from mhd_jax.training.groups import outputs_of_models

EMPTY = -1


def start(state: State, num_slots: int) -> tuple[State, Array]:
    """Returns the state with empty pools, and the client in each slot: `EMPTY`, int32 [K, N_P]."""

    def with_room(group: GroupState) -> GroupState:
        def slots(a: Array) -> Array:
            return jnp.zeros((state.num_clients, num_slots, *a.shape[1:]), a.dtype)

        return dataclasses.replace(
            group, snapshots=jax.tree.map(slots, (group.params, group.stats))
        )

    groups = tuple(map(with_room, state.groups))
    pool = jnp.full((state.num_clients, num_slots), EMPTY, jnp.int32)
    return dataclasses.replace(state, groups=groups), pool


def renewed(
    state: State, pool: Array, neighbours: Teachers, there: Array, every: int
) -> tuple[State, Array]:
    """Returns the state and the pools of a step, after slots that are due have been renewed.

    Args:
      state: the state of the step.
      pool: the client whose checkpoint each slot holds, int32 [K, N_P].
      neighbours: all neighbours that each client can receive from, in random order.
      there: which clients can receive messages, bool [K].
      every: S_P, the number of steps between two renewals.
    """
    num_slots = pool.shape[1]
    keys = random.client_keys(state.key, Purpose.POOL_SLOT, state.client_ids, state.step)
    slot = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_slots))(keys)
    empty = (pool == EMPTY).all(axis=1)
    due = there & neighbours.valid.any(axis=1) & (empty | (state.step % every == 0))
    changes = due[:, None] & (empty[:, None] | (jnp.arange(num_slots) == slot[:, None]))
    count = jnp.maximum(neighbours.valid.sum(axis=1), 1)
    turns = jnp.arange(num_slots)[None] % count[:, None]
    at_first = jnp.take_along_axis(neighbours.positions, turns, axis=1)
    teachers = jnp.where(empty[:, None], at_first, neighbours.positions[:, :1])

    def renew() -> tuple[State, Array]:
        groups = tuple(_with_checkpoints(group, changes, teachers) for group in state.groups)
        return dataclasses.replace(state, groups=groups), jnp.where(changes, teachers, pool)

    return jax.lax.cond(in_any_run(changes.any()), renew, lambda: (state, pool))


def _with_checkpoints(group: GroupState, changes: Array, teachers: Array) -> GroupState:
    """Returns a group in which renewed slots hold copies of the teachers' current models.

    Slots whose teacher has another architecture get an arbitrary model, which is not used.

    Args:
      group: the group that stores the checkpoints.
      changes: which slots are renewed, bool [K, N_P].
      teachers: positions of the clients that are copied, int32 [K, N_P].
    """
    row_of = np.zeros(teachers.shape[0], np.int32)
    row_of[list(group.members)] = np.arange(len(group.members))
    rows, now = jnp.asarray(row_of)[teachers], (group.params, group.stats)

    def one_slot(s: Array, kept: PyTree) -> PyTree:
        def put(kept: Array, new: Array) -> Array:
            which = changes[:, s].reshape((-1,) + (1,) * (new.ndim - 1))
            return kept.at[:, s].set(jnp.where(which, new, kept[:, s]))

        return jax.tree.map(put, kept, take_rows(now, rows[:, s]))

    kept = jax.lax.fori_loop(0, teachers.shape[1], one_slot, group.snapshots)
    return dataclasses.replace(group, snapshots=kept)


def draw(state: State, pool: Array, there: Array, num_targets: int | str) -> tuple[Teachers, Array]:
    """Draws `num_targets` slots of every client's pool, uniformly without replacement.

    Args:
      state: the state of the step.
      pool: the client whose checkpoint each slot holds, int32 [K, N_P].
      there: which clients learn from others at this step, bool [K].
      num_targets: Δ, or "all".

    Returns:
      The teachers whose checkpoints are drawn, T = min(Δ, N_P) of each client, and their slots,
      int32 [K, T].
    """
    num_slots = pool.shape[1]
    most = num_slots if num_targets == "all" else min(int(num_targets), num_slots)
    keys = random.client_keys(state.key, Purpose.POOL, state.client_ids, state.step)
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys)
    scores, slots = jax.lax.top_k(jnp.where(pool >= 0, noise, -1.0), most)
    positions = jnp.take_along_axis(pool, slots, axis=1)
    return Teachers(jnp.maximum(positions, 0), (scores >= 0) & there[:, None]), slots


def outputs(
    state: State, teachers: Teachers, slots: Array, inputs: PyTree, *, shared_inputs: bool
) -> Outputs:
    """Returns outputs of the drawn checkpoints on each client's public batch, in evaluation mode.

    Args:
      state: a state with checkpoints.
      teachers: the clients whose checkpoints are drawn, [K, T].
      slots: the slots of the checkpoints in the client's pool, int32 [K, T].
      inputs: [P, ...] with `shared_inputs`, or [K, P, ...].
      shared_inputs: whether all clients have the same samples.

    Returns:
      `Outputs` with logits [K, T, P, H, C] and embeddings [K, T, P, D].
    """

    def one_of_each(place: tuple[Array, Array]) -> Outputs:  # one checkpoint of each client
        who, slot = place
        chosen = over_clients(lambda kept, slot: jax.tree.map(lambda a: a[slot], kept))
        models = [chosen(group.snapshots, slot) for group in state.groups]
        return outputs_of_models(state, who, models, inputs, shared_inputs=shared_inputs)

    found = jax.lax.map(one_of_each, (teachers.positions.T, slots.T))
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), found)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Δ checkpoints of a client's own pool, a source of teachers (see `mhd_jax.exchange.teachers`)."""

    num_targets: int | str
    size: int
    refresh: int

    @property
    def num_snapshots(self) -> int:
        """N_P."""
        return self.size

    def start(self, state: State) -> State:
        """See `mhd_jax.exchange.teachers.Source`."""
        state, pool = start(state, self.size)
        return dataclasses.replace(state, extra={**state.extra, "pool": pool})

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
        there = jnp.ones(state.num_clients, bool)
        if batch.presence is not None:  # who is away receives nothing, not even from its pool
            there = batch.presence.trains & batch.presence.reachable
        neighbours = draw_teachers(state, graph, available, "all")
        state, pool = renewed(state, state.extra["pool"], neighbours, there, self.refresh)
        state = dataclasses.replace(state, extra={**state.extra, "pool": pool})
        teachers, slots = draw(state, pool, there, self.num_targets)
        found = outputs(
            state, teachers, slots, batch.public_inputs, shared_inputs=batch.public_is_shared
        )
        return state, teachers, channel.received(state, found, teachers.positions)
