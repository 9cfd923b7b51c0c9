"""Rounds of distillation between neighbours, which `ds_fl` and `selective_fd` share.

A round begins with steps on private samples and ends with steps on public samples, in which each
client learns what a rule of the algorithm makes of its neighbours' predictions and its own:

    θ_i ← θ_i − η ∇CE_i                                              `private_steps` steps
    θ_i ← θ_i − η ∇ mean_x CE(softmax z_i(x), sg t_i(x))             `distill_steps` steps

The predictions p_j(x) = softmax z_j(x) from which the targets t_i(x) are made come from a copy of the
parameters, taken when the public steps of a round begin. The mean is over the samples x of the
public batch for which client i has a target. Predictions and distillation use evaluation mode, as
in `fedmd`, so that a client without neighbours learns nothing from public samples, whatever its
normalisation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import require_at_least, require_label_smoothing
from mhd_jax.core.client_axis import over_clients
from mhd_jax.core.trees import where_rows
from mhd_jax.core.types import Batch, GroupState, Metrics, Participants, PyTree, State
from mhd_jax.exchange import adversaries
from mhd_jax.exchange import compression as compressions
from mhd_jax.exchange.channel import Channel
from mhd_jax.exchange.messages import Message
from mhd_jax.training.groups import (
    all_params,
    all_stats,
    apply_gradients,
    forward,
    init_state,
    models,
    output_shapes,
    private_gradients,
    with_start,
)
from mhd_jax.training.losses import distillation


@struct.dataclass
class Predictions:
    """What clients predict on the public batch of a step, as their receivers have it.

    Attributes:
      probabilities: p_j(x), [K, P, C]; 0 for classes outside j's label set, and for clients whose
        predictions are not finite.
      asked: whether i receives predictions from j, bool [K, K]: along all edges from clients that
        learn from private labels.
      heard: the same without predictions that are not finite, which receivers ignore.
      averaged: the same with i itself, if it learns from private labels.
    """

    probabilities: Array
    asked: Array
    heard: Array
    averaged: Array


@struct.dataclass
class Targets:
    """What clients learn from the public batch of a step.

    Attributes:
      probabilities: t_i(x), [K, P, C]; zeros where there is no target.
      exist: for which samples a client has a target, bool [K, P].
      messages: the number of samples whose predictions i receives from j, int32 [K, K].
    """

    probabilities: Array
    exist: Array
    messages: Array


@dataclasses.dataclass(frozen=True, eq=False)
class DistillationRounds:
    """The functions of an algorithm of such rounds; a subclass adds the rule that makes targets.

    Attributes:
      private_steps, distill_steps: the numbers of steps of the two parts of a round.
      label_smoothing: of the private cross-entropy.
      channel: on which predictions cross an edge.
    """

    private_steps: int
    distill_steps: int
    label_smoothing: float
    channel: Channel

    def targets(
        self, state: State, batch: Batch, predictions: Predictions
    ) -> tuple[PyTree, Targets]:
        """Returns the state's `extra` after the step, and what clients learn in it."""
        raise NotImplementedError

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        """See `Algorithm.init`."""
        state = init_state(key, clients, sample_batch, num_heads=1)
        extra = {
            "start": models(state),
            "teaches": jnp.asarray(clients.labelled_counts().sum(axis=1) > 0),
        }
        extra |= adversaries.start(clients, output_shapes(state.groups[0], sample_batch))
        return dataclasses.replace(state, extra=extra)

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        """See `Algorithm.train_step`."""
        phase = state.step % (self.private_steps + self.distill_steps)
        state = with_start(state, phase == self.private_steps)
        gradients, stats, extra, metrics = jax.lax.cond(
            phase < self.private_steps,
            lambda: self.on_private_samples(state, batch),
            lambda: self.on_public_samples(state, batch, graph),
        )
        state = dataclasses.replace(state, extra=extra)
        return apply_gradients(state, gradients, stats), metrics

    def on_private_samples(
        self, state: State, batch: Batch
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...], PyTree, Metrics]:
        """Returns gradients, statistics, `extra` and metrics of a step on private samples."""
        gradients, stats, losses = private_gradients(state, batch, self.label_smoothing)
        nothing = jnp.zeros((state.num_clients,) * 2, jnp.int32)
        metrics = Metrics(losses, {"predictions": nothing}, non_finite=nothing[:, 0])
        return gradients, stats, state.extra, metrics

    def on_public_samples(
        self, state: State, batch: Batch, graph: Array
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...], PyTree, Metrics]:
        """Returns gradients, statistics, `extra` and metrics of a step on public samples."""
        state, predictions = self.exchanged(state, batch, graph)
        extra, targets = self.targets(state, batch, predictions)

        def loss(params: tuple[PyTree, ...]) -> tuple[Array, Array]:
            outputs, _ = forward(
                state, params, all_stats(state), batch.public_inputs, shared_inputs=True
            )
            each = over_clients(_towards)(
                outputs.logits, targets.probabilities, targets.exist, state.label_sets
            )
            return each.sum(), each  # a client's loss depends on its own parameters alone

        gradients, losses = jax.grad(loss, has_aux=True)(all_params(state))
        ignored = (predictions.asked & ~predictions.heard).sum(axis=1, dtype=jnp.int32)
        metrics = Metrics(losses, {"predictions": targets.messages}, non_finite=ignored)
        return gradients, all_stats(state), extra, metrics

    def exchanged(self, state: State, batch: Batch, graph: Array) -> tuple[State, Predictions]:
        """Returns the state once predictions have been sent, and these as they are received."""
        start = state.extra["start"]
        outputs, _ = forward(
            state, start["params"], start["stats"], batch.public_inputs, shared_inputs=True
        )
        received = self.channel.received(state, outputs, travels=True)
        finite = exchange.all_finite(received)
        logits = received.logits[:, :, 0]
        teaches = state.extra["teaches"]
        asked = (graph > 0) & teaches
        heard = asked & finite
        predictions = Predictions(
            probabilities=where_rows(finite, jax.nn.softmax(logits), jnp.zeros_like(logits)),
            asked=asked,
            heard=heard,
            averaged=heard | jnp.diag(teaches & finite),
        )
        return self.channel.after(state, outputs, batch.presence), predictions

    def message_of_a_sample(self, state: State, batch: Batch, group: GroupState) -> Message:
        """Shapes of what one client of a group sends of one public sample."""
        one: Any = jax.ShapeDtypeStruct((1,), batch.public_indices.dtype)
        return self.channel.message(state, dataclasses.replace(batch, public_indices=one), group)


def require_rounds(private_steps: int, distill_steps: int, label_smoothing: float) -> None:
    """Raises `ConfigError` for settings that no round can have."""
    require_at_least(1, private_steps=private_steps, distill_steps=distill_steps)
    require_label_smoothing(label_smoothing)


def channel_of(compression: str) -> Channel:
    """Returns the channel of main heads' predictions with a compression of that name."""
    return Channel(compressions.named(compression), num_heads=1, embeddings=False)


def _towards(logits: Array, targets: Array, exist: Array, label_set: Array | None) -> Array:
    """Returns one client's mean_x CE(softmax z(x), t(x)) over samples with a target, from [P, 1, C].

    0 if no sample has a target.
    """
    targets = jnp.where(exist[:, None], targets, 0)
    share = exist.mean(dtype=targets.dtype)
    loss = distillation(logits, targets[:, None], label_set=label_set)
    return loss / jnp.where(share > 0, share, 1)
