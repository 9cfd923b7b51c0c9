"""The two bounds: training each client alone (the MHD paper's "Separate"), and on pooled data.

L_i = CE(z_i(x), y) on the private batch
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.algorithms.base import algorithm_of, factory, require_label_smoothing
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    LocalSteps,
    Metrics,
    Participants,
    State,
)
from mhd_jax.exchange.messages import Messages
from mhd_jax.training.groups import init_state
from mhd_jax.training.passes import private_step


@dataclasses.dataclass(frozen=True, eq=False)
class _PrivateOnly:
    """The functions of both algorithms."""

    label_smoothing: float

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        return init_state(key, clients, sample_batch, num_heads=1)

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        del graph
        return self.local_step(state, batch)

    def local_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        return private_step(state, batch, self.label_smoothing)

    def until_exchange(self, state: State) -> Array:
        del state
        return jnp.int32(np.iinfo(np.int32).max)  # there is none

    def exchange(self, state: State) -> tuple[State, dict[str, Array]]:
        return state, {}

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        del state, batch, group
        return {}


@factory
def isolated(label_smoothing: float = 0.1) -> Algorithm:
    """Returns isolated training, the lower bound: each client learns from its private data alone.

    Args:
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1).
    """
    require_label_smoothing(label_smoothing)
    parts = _PrivateOnly(label_smoothing)
    local = LocalSteps(parts.local_step, parts.until_exchange, parts.exchange)
    return algorithm_of(parts, local=local, falsifiable=True, needs_classes="")


@factory
def supervised(label_smoothing: float = 0.1) -> Algorithm:
    """Returns pooled training, the upper bound: one client learns from all private data.

    It trains on K·B samples per step.

    Args:
      label_smoothing: label smoothing of the cross-entropy, in [0, 1).
    """
    require_label_smoothing(label_smoothing)
    return algorithm_of(
        _PrivateOnly(label_smoothing),
        falsifiable=True,
        pooled=True,
        needs_classes="",
        needs_everyone="one client holds all the data",
    )
