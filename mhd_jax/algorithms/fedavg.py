"""Federated averaging (McMahan et al., AISTATS 2017).

Every client trains on its own data; every `local_steps` steps all take the average of all,

    θ_i ← Σ_j n_j θ_j / Σ_j n_j,

weighted by the sizes n_j of the labelled private sets, normalisation statistics included. A server
averages, so the graph plays no part. Momentum stays at home.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import factory, require, require_label_smoothing
from mhd_jax.communication import Messages, of_one_client
from mhd_jax.groups import (
    apply_gradients,
    init_state,
    predict,
    private_gradients,
    require_one_architecture,
)
from mhd_jax.types import Algorithm, Batch, GroupState, Metrics, State


@factory
def fedavg(local_steps: int = 10, label_smoothing: float = 0.0) -> Algorithm:
    """Federated averaging.

    Args:
      local_steps: steps between two averages.
      label_smoothing: of the private cross-entropy, in [0, 1).
    """
    require(local_steps >= 1, f"local_steps must be at least 1, not {local_steps}.")
    require_label_smoothing(label_smoothing)

    def init(key: Array, clients: Any, sample_batch: Batch) -> State:
        require_one_architecture(clients, "fedavg averages parameters")
        state = init_state(key, clients, sample_batch, num_heads=1, same_start=True)
        sizes = jnp.asarray(clients.labelled_counts().sum(axis=1), jnp.float32)
        takes_part = jnp.asarray(clients.label_counts().sum(axis=1) > 0, jnp.int32)
        return dataclasses.replace(state, extra={"sizes": sizes, "takes_part": takes_part})

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        del graph
        gradients, stats, losses = private_gradients(state, batch, label_smoothing)
        state = apply_gradients(state, gradients, stats)
        averages = state.step % local_steps == 0
        sizes = state.extra["sizes"]
        # Up from every client that has labels, and down to everyone.
        each = state.extra["takes_part"] + (sizes > 0)
        messages = {"weights": jnp.where(averages, each, 0)}
        metrics = {"loss": losses, "private_loss": losses, "messages": messages}
        return jax.lax.cond(averages, _averaged, lambda state: state, state), metrics

    def message(state: State, batch: Batch, group: GroupState) -> Messages:
        del state, batch
        return {"weights": {"weights": of_one_client((group.params, group.stats))}}

    return Algorithm(init=init, train_step=train_step, predict=predict, message=message)


def _averaged(state: State) -> State:
    (group,) = state.groups
    sizes = state.extra["sizes"]
    weights = jnp.broadcast_to(sizes / sizes.sum(), (state.num_clients,) * 2)
    params, stats = exchange.average((group.params, group.stats), weights)
    group = dataclasses.replace(group, params=params, stats=stats)
    return dataclasses.replace(state, groups=(group,))
