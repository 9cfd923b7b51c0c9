"""The draw of each client's teachers in a step, and the sources of their outputs.

A source gives every client its teachers S_i and their outputs on its public samples. Here are the
neighbours as they are at the step; `teacher_pools` and `delays` have earlier models of neighbours.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax.core import random
from mhd_jax.core.client_axis import first_of, neighbour_slots
from mhd_jax.core.trees import take_rows
from mhd_jax.core.types import Batch, Outputs, State
from mhd_jax.exchange.channel import Channel
from mhd_jax.training.groups import all_params, all_stats, forward_teachers


class Source(Protocol):
    """Where teachers come from.

    Attributes:
      num_snapshots: how many earlier parameters the source keeps of each client.
    """

    @property
    def num_snapshots(self) -> int:
        """See above."""

    def start(self, state: State) -> State:
        """A new state, with room for what the source keeps."""

    def teach(
        self,
        state: State,
        batch: Batch,
        graph: Array,
        available: Array,
        received: Outputs,
        channel: Channel,
    ) -> tuple[State, Teachers, Outputs]:
        """The state with what the source keeps, S_i, and its outputs as received, [K, T, P, …].

        Args:
          state, batch, graph: of this step.
          available: which clients can teach, bool [K]; or by client, [K, K] with rows of students.
          received: what all clients send now about their own public samples, [K, P, …].
          channel: on which other outputs are sent.
        """


@struct.dataclass
class Teachers:
    """The teachers S_i of every client in T slots.

    Attributes:
      positions: positions of the teachers, int32 [K, T].
      valid: which slots hold a teacher, bool [K, T].
    """

    positions: Array
    valid: Array


def draw_teachers(
    state: State, adjacency: Array, available: Array, num_targets: int | str
) -> Teachers:
    """Draws `num_targets` neighbours of every client, without replacement.

    Each client draws anew at each step; a larger weight A[i, j] makes j more probable. It is the
    Gumbel top-k trick: the Δ largest of log A[i, j] + Gumbel noise.

    Args:
      state: gives the step and the clients' keys.
      adjacency: non-negative weights [K, K]; A[i, j] > 0 if i may learn from j.
      available: which clients can teach at this step, bool [K]; or by client, [K, K] with rows of
        students.
      num_targets: Δ, or "all" for the whole neighbourhood.

    Returns:
      Teachers in T slots, filled ones first; T is Δ, or the size of the largest neighbourhood if
      that is smaller.
    """
    num_clients = state.num_clients
    most = neighbour_slots(num_clients)
    slots = most if num_targets == "all" else min(int(num_targets), most)
    keys = random.client_keys(state.key, random.Purpose.TEACHERS, state.client_ids, state.step)
    # The noise depends on the ids of the two clients, not on their positions.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (num_clients,)))(keys)
    may_teach = (adjacency > 0) & available
    weights = jnp.where(may_teach, adjacency, 1)
    scores = jnp.where(may_teach, jnp.log(weights) + noise[:, state.client_ids], -jnp.inf)
    best, positions = jax.lax.top_k(scores, slots)
    return Teachers(positions.astype(jnp.int32), jnp.isfinite(best))


def neighbours(adjacency: Array) -> Teachers:
    """Returns all neighbours of every client in a graph [K, K], in client order."""
    positions, taken = first_of(adjacency > 0, neighbour_slots(len(adjacency)))
    return Teachers(positions, taken)


def gather(outputs: Outputs, positions: Array) -> Outputs:
    """Gathers outputs [K, P, …] of the clients at `positions`, [K, T], into [K, T, P, …]."""
    return take_rows(outputs, positions)


def from_teachers(teachers: Teachers) -> Array:
    """Counts one message to i from each of its teachers j at [i, j], int32 [K, K]."""
    num_clients = teachers.positions.shape[0]
    drawn = jax.nn.one_hot(teachers.positions, num_clients, dtype=jnp.int32)  # [K, T, K]
    return (drawn * teachers.valid[..., None]).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Δ neighbours, as they are at the step.

    On shared public samples their outputs are at hand: they are those of clients as students.
    """

    num_targets: int | str
    num_snapshots: int = 0

    def start(self, state: State) -> State:
        """See `Source`."""
        return state

    def teach(
        self,
        state: State,
        batch: Batch,
        graph: Array,
        available: Array,
        received: Outputs,
        channel: Channel,
    ) -> tuple[State, Teachers, Outputs]:
        """See `Source`."""
        teachers = draw_teachers(state, graph, available, self.num_targets)
        if batch.public_is_shared:
            return state, teachers, channel.gathered(state, received, teachers.positions)
        outputs = forward_teachers(
            state, all_params(state), all_stats(state), teachers.positions, batch.public_inputs
        )
        return state, teachers, channel.received(state, outputs, teachers.positions)
