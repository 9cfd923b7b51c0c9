"""Federated averaging (McMahan et al., AISTATS 2017).

Every client trains on its own data; every `local_steps` steps all take the average of all,

    θ_i ← Σ_j n_j θ_j / Σ_j n_j,

weighted by the sizes n_j of the labelled private sets, normalisation statistics included. A server
averages, so the graph plays no part. Momentum stays at home.

Where clients may be away, the server keeps the last average. A client takes it up with its next
step, and is part of the next average if it has taken a step since and can be reached then; what it
learned towards an average that it missed is lost.
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
    averaged,
    finite_params,
    init_state,
    keep_others,
    predict,
    private_gradients,
    require_one_architecture,
    where_rows,
)
from mhd_jax.types import Algorithm, Batch, GroupState, Metrics, Presence, PyTree, State


@factory
def fedavg(local_steps: int = 10, label_smoothing: float = 0.1) -> Algorithm:
    """Federated averaging.

    Args:
      local_steps: steps between two averages.
      label_smoothing: of the private cross-entropy, in [0, 1); the paper's is 0.
    """
    require(local_steps >= 1, f"local_steps must be at least 1, not {local_steps}.")
    require_label_smoothing(label_smoothing)

    def init(key: Array, clients: Any, sample_batch: Batch) -> State:
        require_one_architecture(clients, "fedavg averages parameters")
        state = init_state(key, clients, sample_batch, num_heads=1, same_start=True)
        sizes = jnp.asarray(clients.labelled_counts().sum(axis=1), jnp.float32)
        takes_part = jnp.asarray(clients.label_counts().sum(axis=1) > 0, jnp.int32)
        extra = {"sizes": sizes, "takes_part": takes_part}
        if sample_batch.presence is not None:
            (group,) = state.groups
            average = jax.tree.map(lambda a: a[0], (group.params, group.stats))
            extra |= {"average": average, "is_current": jnp.zeros(sizes.shape, bool)}
        return dataclasses.replace(state, extra=extra)

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        del graph
        if batch.presence is not None:
            return step_of_some(state, batch, batch.presence)
        gradients, stats, losses = private_gradients(state, batch, label_smoothing)
        state = apply_gradients(state, gradients, stats)
        averages = state.step % local_steps == 0
        sizes = state.extra["sizes"]
        # Up from every client that has labels, and down to everyone.
        each = state.extra["takes_part"] + (sizes > 0)
        messages = {"weights": jnp.where(averages, each, 0)}
        metrics = {"loss": losses, "private_loss": losses, "messages": messages}
        weights = jnp.broadcast_to(sizes / sizes.sum(), (state.num_clients,) * 2)
        return jax.lax.cond(averages, averaged, lambda state, _: state, state, weights), metrics

    def step_of_some(state: State, batch: Batch, presence: Presence) -> tuple[State, Metrics]:
        """A step in which some may be away."""
        sizes, takes_part = state.extra["sizes"], state.extra["takes_part"]
        fetches = presence.trains & ~state.extra["is_current"]
        down = (fetches & (state.step >= local_steps)).astype(jnp.int32)  # all have the first one
        before = _up_to_date(state, fetches)
        gradients, stats, losses = private_gradients(before, batch, label_smoothing)
        state = keep_others(presence.trains, apply_gradients(before, gradients, stats), before)
        averages = state.step % local_steps == 0
        finite = finite_params(state)  # who diverges is averaged with nobody
        sends = presence.reachable & state.extra["is_current"] & finite
        takes = presence.trains & finite
        up = averages & sends & (sizes > 0)
        down = (down + (averages & takes)) * takes_part
        state = jax.lax.cond(
            averages, _averaged_by_some, lambda state, *_: state, state, sends, takes
        )
        return state, {"loss": losses, "private_loss": losses, "messages": {"weights": up + down}}

    def message(state: State, batch: Batch, group: GroupState) -> Messages:
        del state, batch
        return {"weights": {"weights": of_one_client((group.params, group.stats))}}

    return Algorithm(init=init, train_step=train_step, predict=predict, message=message)


def _averaged_by_some(state: State, sends: Array, takes: Array) -> State:
    """The server averages who sends, bool [K]; who takes it has it at once, bool [K]."""
    (group,) = state.groups
    weights = jnp.where(sends, state.extra["sizes"], 0)
    models = group.params, group.stats
    models = where_rows(sends, models, jax.tree.map(jnp.zeros_like, models))
    shares = weights / jnp.maximum(weights.sum(), 1)
    average = jax.tree.map(
        lambda new, old: jnp.where(weights.sum() > 0, new[0], old),
        exchange.average(models, shares[None]),
        state.extra["average"],
    )
    extra = {**state.extra, "average": average, "is_current": jnp.zeros_like(takes)}
    return _up_to_date(dataclasses.replace(state, extra=extra), takes)


def _up_to_date(state: State, who: Array) -> State:
    """The server's average in the place of some clients' own parameters, bool [K]."""
    (group,) = state.groups
    own = (group.params, group.stats)
    average = jax.tree.map(
        lambda a, model: jnp.broadcast_to(a, model.shape), state.extra["average"], own
    )
    extra = {**state.extra, "is_current": state.extra["is_current"] | who}
    return dataclasses.replace(_with_models(state, where_rows(who, average, own)), extra=extra)


def _with_models(state: State, models: PyTree) -> State:
    """The state with other parameters and statistics [K, ...]."""
    (group,) = state.groups
    params, stats = models
    return dataclasses.replace(
        state, groups=(dataclasses.replace(group, params=params, stats=stats),)
    )
