"""The passes of every client over its private and its public batch in one step.

Where possible, both batches are computed in one joint pass, because a larger batch uses the device
better. They are computed in two passes if batch statistics or dropout would make the results
differ, if a pretext task changes the private images, or if clients are computed in chunks, where
two shorter passes are better.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.client_axis import computes_at_once, over_clients
from mhd_jax.core.random import Purpose
from mhd_jax.core.types import Batch, Metrics, Outputs, PyTree, State
from mhd_jax.training.groups import (
    all_params,
    all_stats,
    apply_gradients,
    forward,
    has_modes,
    private_gradients,
)
from mhd_jax.training.losses import private_loss

Gradients = tuple[PyTree, ...]
PullBack = Callable[[Outputs], tuple[Gradients, tuple[PyTree, ...], Array]]


def private_and_public(
    state: State,
    batch: Batch,
    label_smoothing: float,
    *,
    public_updates_stats: bool = False,
    evaluates: bool = False,
    density_weight: float | None = None,
) -> tuple[Outputs, PullBack]:
    """Returns the clients' outputs on the public batch, and a function that computes gradients.

    Args:
      state: the state of this step.
      batch: the batch of this step.
      label_smoothing: label smoothing of the private cross-entropy.
      public_updates_stats: whether public samples update normalisation statistics too.
      evaluates: whether the public pass, gradients included, is made in evaluation mode.
      density_weight: of the private half of the density ratios' loss, see
        `mhd_jax.training.losses.private_loss`; None trains none.

    Returns:
      `Outputs` with logits [K, P, H, C] and embeddings [K, P, D] (narrower ones are padded with
      zeros), and a function of the gradient of a public loss at these outputs. The function
      returns, for each group, the gradients of the private loss + the public loss and the
      statistics after the step, and the private losses [K].
    """
    if _are_one(state, batch):
        return _jointly(state, batch, label_smoothing, density_weight)
    private = private_gradients(state, batch, label_smoothing, density_weight)
    return _apart(state, batch, private, public_updates_stats, evaluates)


def evaluated(state: State, batch: Batch, public_outputs: Outputs) -> Outputs:
    """Returns the clients' outputs on the public batch in evaluation mode, `Outputs` [K, P, …].

    Teachers send these. `public_outputs` are the outputs in training mode, which are returned if
    the modes do not differ.
    """
    if not _has_modes(state, batch):
        return public_outputs
    shared = batch.public_is_shared
    inputs = batch.public_inputs
    return forward(state, all_params(state), all_stats(state), inputs, shared_inputs=shared)[0]


def private_step(state: State, batch: Batch, label_smoothing: float) -> tuple[State, Metrics]:
    """Returns the state and metrics after a step of all clients on their private samples alone."""
    gradients, stats, losses = private_gradients(state, batch, label_smoothing)
    metrics = Metrics(losses, {}, {"private_loss": losses})
    return apply_gradients(state, gradients, stats), metrics


def _are_one(state: State, batch: Batch) -> bool:
    has_pretext = any(group.model.pretext for group in state.groups)
    return computes_at_once() and not has_pretext and not _has_modes(state, batch)


def _has_modes(state: State, batch: Batch) -> bool:
    return any(has_modes(group, batch) for group in state.groups)


def joined_inputs(state: State, batch: Batch) -> PyTree:
    """Returns each client's private and then public samples as one batch, [K, B + P, ...]."""

    def join(private: Array, public: Array) -> Array:  # [K, B, ...] and [(K,) P, ...]
        if batch.public_is_shared:
            public = jnp.broadcast_to(public, (state.num_clients, *public.shape))
        return jnp.concatenate([private, public], axis=1)

    return jax.tree.map(join, batch.inputs, batch.public_inputs)


def _jointly(
    state: State, batch: Batch, label_smoothing: float, density_weight: float | None
) -> tuple[Outputs, PullBack]:
    num_private = batch.labels.shape[1]
    inputs = joined_inputs(state, batch)
    outputs, pull_back = jax.vjp(
        lambda params: forward(state, params, all_stats(state), inputs, train=Purpose.DROPOUT)[0],
        all_params(state),
    )
    public_outputs = jax.tree.map(lambda a: a[:, num_private:], outputs)
    loss = functools.partial(
        private_loss,
        label_smoothing=label_smoothing,
        density_weight=density_weight,
        task=state.task,
    )

    def back(at_public: Outputs) -> tuple[Gradients, tuple[PyTree, ...], Array]:
        own = jax.tree.map(lambda a: a[:, :num_private], outputs)
        losses, at_own = over_clients(jax.value_and_grad(loss))(
            own, batch.labels, batch.mask, state.label_sets
        )
        at_outputs = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), at_own, at_public)
        (gradients,) = pull_back(at_outputs)
        return gradients, all_stats(state), losses

    return public_outputs, back


def _apart(
    state: State,
    batch: Batch,
    of_private_batch: tuple[Gradients, tuple[PyTree, ...], Array],
    public_updates_stats: bool,
    evaluates: bool,
) -> tuple[Outputs, PullBack]:
    private, stats, losses = of_private_batch

    def on_public_samples(params: Gradients) -> tuple[Outputs, tuple[PyTree, ...]]:
        return forward(
            state,
            params,
            stats if public_updates_stats else all_stats(state),
            batch.public_inputs,
            train=None if evaluates else Purpose.PUBLIC_DROPOUT,
            shared_inputs=batch.public_is_shared,
        )

    public_outputs, pull_back, public_stats = jax.vjp(
        on_public_samples, all_params(state), has_aux=True
    )

    def back(at_public: Outputs) -> tuple[Gradients, tuple[PyTree, ...], Array]:
        (public,) = pull_back(at_public)
        gradients = jax.tree.map(jnp.add, private, public)
        return gradients, public_stats if public_updates_stats else stats, losses

    return public_outputs, back
