"""FedMD: Li and Wang, 2019, arXiv 1910.03581.

Training goes in rounds. At a round's start the clients' logits z_j on the public set are averaged
into a consensus z̃(x) = mean_j z_j(x). Then every client

    digests:   θ_i ← θ_i − η ∇ mean_x |z_i(x) − sg z̃(x)|        `digest_steps` steps
    revisits:  θ_i ← θ_i − η ∇CE_i                              `revisit_steps` steps

The consensus belongs to the round's start: a copy of the parameters of that moment speaks for
the public samples that each digest step draws. Clients without private data have no say. A
server averages, so the graph plays no part; architectures may differ.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import adversaries, exchange
from mhd_jax import compression as compressions
from mhd_jax.algorithms.base import factory, require, require_label_smoothing
from mhd_jax.communication import Message
from mhd_jax.groups import (
    all_params,
    all_stats,
    apply_gradients,
    forward,
    init_state,
    predict,
    private_gradients,
    shapes_said,
)
from mhd_jax.losses import distillation
from mhd_jax.random import Purpose
from mhd_jax.types import Algorithm, Batch, Metrics, PyTree, State

DIGEST_LOSSES = ("mae", "kl")


@factory
def fedmd(
    digest_steps: int = 5,
    revisit_steps: int = 5,
    digest_loss: str = "mae",
    compression: str = "none",
    label_smoothing: float = 0.0,
) -> Algorithm:
    """FedMD.

    Args:
      digest_steps: steps of a round that learn from the consensus.
      revisit_steps: steps of a round that learn from private data.
      digest_loss: "mae", the mean absolute difference of logits, as the paper; or "kl", the
        cross-entropy to the consensus' softmax.
      compression: of the logits, up and down, see `mhd_jax.compression`; a selection of
        classes keeps probabilities only, which is for the "kl" digest.
      label_smoothing: of the private cross-entropy, in [0, 1).
    """
    for name, steps in (("digest_steps", digest_steps), ("revisit_steps", revisit_steps)):
        require(steps >= 1, f"{name} must be at least 1, not {steps}.")
    require(
        digest_loss in DIGEST_LOSSES,
        f"digest_loss must be one of {', '.join(DIGEST_LOSSES)}, not {digest_loss!r}.",
    )
    require_label_smoothing(label_smoothing)
    coded = compressions.named(compression)
    require(
        digest_loss == "kl" or not coded.ranks_classes,
        f"{compression} keeps no logits that the mae digest could learn from; "
        "choose digest_loss='kl', or float16 or int8.",
    )
    round_steps = digest_steps + revisit_steps

    def init(key: Array, clients: Any, sample_batch: Batch) -> State:
        state = init_state(key, clients, sample_batch, num_heads=1)
        speaks = jnp.asarray(clients.label_counts().sum(axis=1) > 0, jnp.float32)
        start = {"params": all_params(state), "stats": all_stats(state)}
        extra = {"start": start, "speaks": speaks}
        if clients.adversaries:
            logits = shapes_said(state, sample_batch).logits
            extra["adversaries"] = adversaries.start(clients, logits)
        return dataclasses.replace(state, extra=extra)

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        del graph
        phase = state.step % round_steps
        now = {"params": all_params(state), "stats": all_stats(state)}
        start = jax.tree.map(
            lambda new, old: jnp.where(phase == 0, new, old), now, state.extra["start"]
        )
        extra = {**state.extra, "start": start}
        state = dataclasses.replace(state, extra=extra)
        speaks = extra["speaks"] > 0
        digests = phase < digest_steps
        gradients, stats, losses, finite, liars = jax.lax.cond(
            digests, lambda: digest(state, batch), lambda: revisit(state, batch)
        )
        if liars is not None:
            state = dataclasses.replace(state, extra={**extra, "adversaries": liars})
        metrics = {
            "loss": losses,
            "messages": jnp.where(digests & speaks, jnp.int32(2), 0),  # up and down
            "non_finite": (speaks & ~finite).astype(jnp.int32),
        }
        return apply_gradients(state, gradients, stats), metrics

    def revisit(state: State, batch: Batch) -> tuple[PyTree, ...]:
        gradients, stats, losses = private_gradients(state, batch, label_smoothing)
        return gradients, stats, losses, jnp.ones_like(losses, bool), state.extra.get("adversaries")

    def digest(state: State, batch: Batch) -> tuple[PyTree, ...]:
        """Gradients towards the consensus, statistics as they are, the losses [K], whose logits are
        finite [K], and the adversaries afterwards."""
        start, liars = state.extra["start"], state.extra.get("adversaries")
        said, _ = forward(
            state, start["params"], start["stats"], batch.public_inputs, shared_inputs=True
        )
        told = said.logits
        if liars is not None:
            told, liars = liars.sent(told), liars.after(told)
        heard = coded.arrived(told[:, :, 0])
        finite = exchange.all_finite(heard)
        speaks = state.extra["speaks"] * finite
        weights = speaks / jnp.maximum(speaks.sum(), 1)
        heard = jnp.where(finite[:, None, None], heard, 0)
        consensus = coded.arrived(jnp.einsum("k,kpc->pc", weights, heard))

        def loss(params: tuple[PyTree, ...]) -> tuple[Array, Array]:
            outputs, _ = forward(
                state,
                params,
                all_stats(state),
                batch.public_inputs,
                train=Purpose.PUBLIC_DROPOUT,
                shared_inputs=True,
            )
            logits = outputs.logits[:, :, 0]  # [K, P, C]
            if digest_loss == "mae":
                each = jnp.abs(logits - consensus).mean(axis=(1, 2))
            else:
                target = jax.nn.softmax(consensus)[:, None]
                each = jax.vmap(distillation, (0, None))(logits[:, :, None], target)
            each = jnp.where(speaks.any(), each, 0)
            return each.sum(), each  # each depends on its own client's parameters alone

        gradients, losses = jax.grad(loss, has_aux=True)(all_params(state))
        return gradients, all_stats(state), losses, finite, liars

    def message(state: State, batch: Batch) -> Message:
        said = shapes_said(state, batch)
        return {"logits": jax.eval_shape(coded.encode, said.logits)}

    return Algorithm(
        init=init,
        train_step=train_step,
        predict=predict,
        message=message,
        public_batch="shared",
        falsifiable=True,
    )
