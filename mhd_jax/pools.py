"""Delayed teachers: clients as they were some steps ago, kept as snapshots of their parameters.

A slot holds one snapshot of every client, of the step at which the slot was last renewed; whose
snapshot it is to a client is that client's own draw. So each snapshot is kept once, on its own
client's device, however many clients have it in their pools, and runs once however many of them draw it
at a step. A pool as the MHD paper describes it, but that all clients renew the same slot: each client's
pool by itself is distributed as if they did not.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import random
from mhd_jax.exchange import Teachers
from mhd_jax.execution import over_chosen
from mhd_jax.groups import in_client_order, of_one_width
from mhd_jax.label_sets import masked
from mhd_jax.models.client_model import Outputs
from mhd_jax.random import Purpose
from mhd_jax.types import GroupState, PyTree, State


def with_snapshots(state: State, num_slots: int) -> State:
    """The same clients, all slots holding them as they are: arrays [k, num_slots, ...]."""

    def repeated(group: GroupState) -> GroupState:
        def slots(a: Array) -> Array:
            return jnp.repeat(a[:, None], num_slots, axis=1)

        kept = jax.tree.map(slots, (group.params, group.stats))
        return dataclasses.replace(group, snapshots=kept)

    return dataclasses.replace(state, groups=tuple(map(repeated, state.groups)))


def renewed(state: State, slot: Array) -> State:
    """The same clients, `slot` holding them as they are now."""

    def renew(group: GroupState) -> GroupState:
        kept = jax.tree.map(
            lambda slots, now: slots.at[:, slot].set(now),
            group.snapshots,
            (group.params, group.stats),
        )
        return dataclasses.replace(group, snapshots=kept)

    return dataclasses.replace(state, groups=tuple(map(renew, state.groups)))


def next_pool(state: State, pool: Array, neighbours: Teachers, every: int) -> tuple[State, Array]:
    """Snapshots and pools of a step, at which one random slot may be due.

    Every `every` steps the slot holds clients as they are, and each client has a random neighbour's
    there, or nobody's where it has no neighbour then. At the first step all slots are due, with as
    many neighbours as there are.

    Args:
      state: of the step, with snapshots.
      pool: whose snapshot each slot is to each client, int32 [K, N_P]; −1 is nobody's.
      neighbours: all of each client's, in random order.
      every: S_P.
    """
    num_slots = pool.shape[1]

    def renew() -> tuple[State, Array]:
        key = random.purpose_key(state.key, Purpose.POOL, state.step)
        slot = jax.random.randint(key, (), 0, num_slots)
        count = jnp.maximum(neighbours.valid.sum(axis=1), 1)
        turns = jnp.arange(num_slots)[None] % count[:, None]
        found = jnp.where(neighbours.valid, neighbours.positions, -1)
        at_first = jnp.take_along_axis(found, turns, axis=1)
        later = pool.at[:, slot].set(found[:, 0])
        return renewed(state, slot), jnp.where(state.step == 0, at_first, later)

    return jax.lax.cond(state.step % every == 0, renew, lambda: (state, pool))


def draw(state: State, pool: Array, num_targets: int | str) -> tuple[Teachers, Array]:
    """Draws `num_targets` slots of every client's pool, uniformly without replacement.

    Returns:
      Whose snapshots they are, in T = min(Δ, N_P) places, and the slots, int32 [K, T].
    """
    num_slots = pool.shape[1]
    most = num_slots if num_targets == "all" else min(int(num_targets), num_slots)
    keys = random.client_keys(state.key, Purpose.POOL, state.client_ids, state.step)
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys)
    scores, slots = jax.lax.top_k(jnp.where(pool >= 0, noise, -1.0), most)
    positions = jnp.take_along_axis(pool, slots, axis=1)
    return Teachers(jnp.maximum(positions, 0), scores >= 0), slots


def said_before(state: State, teachers: Teachers, slots: Array, inputs: PyTree) -> Outputs:
    """What the drawn snapshots say about a shared public batch, each of them run once.

    Snapshots answer in evaluation mode.

    Args:
      state: with snapshots.
      teachers: whose, [K, T].
      slots: which of theirs, int32 [K, T].
      inputs: [P, ...].

    Returns:
      `Outputs` with logits [K, N_P, P, H, C] and embeddings [K, N_P, P, D] by client and slot, zeros
      where nobody drew that snapshot.
    """
    num_slots = jax.tree.leaves(state.groups[0].snapshots)[0].shape[1]
    drawn = jnp.zeros((state.num_clients, num_slots), bool)
    drawn = drawn.at[teachers.positions, slots].max(teachers.valid)
    outputs = []
    for group in state.groups:

        def one_snapshot(snapshot: PyTree, inputs: PyTree, group: GroupState = group) -> Outputs:
            params, stats = snapshot
            return group.model.apply(params, stats, inputs)[0]

        members = jnp.asarray(group.members)
        outputs.append(over_chosen(one_snapshot, drawn[members], group.snapshots, inputs))
    said = in_client_order(of_one_width(outputs), state.groups)
    known = jax.tree.map(lambda a: a[:, None, None, None], state.label_sets)
    return dataclasses.replace(said, logits=masked(said.logits, known))


def snapshots(state: State) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Parameters and statistics of all slots group by group, arrays [k, slots, ...]."""
    params, stats = zip(*(group.snapshots for group in state.groups), strict=True)
    return params, stats
