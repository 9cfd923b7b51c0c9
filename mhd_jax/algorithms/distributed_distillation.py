"""Distributed Distillation (D-Distillation): Bistritz, Mann and Bambos, NeurIPS 2020.

Clients agree on soft decisions instead of parameters. s_i(x) is client i's softmax on a sample
of the reference set R, which is the public set, and z_i(x) its running estimate of the
network's average. At each step, with the reference minibatch R_t that all share,

    θ_i ← θ_i − η ( ∇CE_i + ρ · ∇ ½ mean_{x∈R_t} ‖s_i(x; θ_i) − sg z_i(x)‖² )
    z_i(x) ← Σ_j W[i,j] z_j(x) + s_i(x; θ_i new) − s_i^prev(x),   s_i^prev(x) ← s_i(x; θ_i new)

for x in R_t: dynamic average consensus, with Metropolis–Hastings weights W of an undirected
graph, z_i(0) = s_i^prev = s_i(θ_i(0)). After every step Σ_i z_i(x) = Σ_i s_i^prev(x) for every x.
Architectures may differ.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import factory, require, require_label_smoothing
from mhd_jax.data.batching import as_float
from mhd_jax.groups import (
    all_params,
    all_stats,
    apply_gradients,
    forward,
    init_state,
    predict,
    private_gradients,
)
from mhd_jax.random import Purpose
from mhd_jax.topology import metropolis_hastings
from mhd_jax.types import Algorithm, Batch, Metrics, PyTree, State

_AT_ONCE = 500  # reference samples in one pass at the start


@factory
def distributed_distillation(rho: float = 1.0, label_smoothing: float = 0.0) -> Algorithm:
    """Distributed Distillation.

    Args:
      rho: ρ, weight of the pull towards the network's average decisions.
      label_smoothing: of the private cross-entropy, in [0, 1).
    """
    require(rho >= 0, f"rho must be at least 0, not {rho}.")
    require_label_smoothing(label_smoothing)

    def init(key: Array, clients: Any, sample_batch: Batch) -> State:
        state = init_state(key, clients, sample_batch, num_heads=1)
        first = _decisions_on_reference_set(state, clients)
        return dataclasses.replace(state, extra={"estimates": first, "said": first})

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        private, stats, losses = private_gradients(state, batch, label_smoothing)
        rows = batch.public_indices
        estimates, said = state.extra["estimates"], state.extra["said"]
        here = jax.lax.stop_gradient(estimates[:, rows])

        def pull(params: tuple[PyTree, ...]) -> tuple[Array, Array]:
            """Σ_i of the clients' own terms: each depends on its own parameters alone."""
            gaps = jnp.square(_decisions(state, params, batch, training=True) - here)
            terms = gaps.sum(axis=-1).mean(axis=1) / 2
            return terms.sum(), terms

        gradients, terms = jax.grad(pull, has_aux=True)(all_params(state))
        total = jax.tree.map(lambda a, b: a + rho * b, private, gradients)
        state = apply_gradients(state, total, stats)

        now = _decisions(state, all_params(state), batch, training=False)
        tracked = exchange.average(estimates[:, rows], metropolis_hastings(graph))
        extra = {
            "estimates": estimates.at[:, rows].set(tracked + now - said[:, rows]),
            "said": said.at[:, rows].set(now),
        }
        metrics = {
            "loss": losses + rho * terms,
            "private_loss": losses,
            "public_loss": terms,
            "edges": exchange.num_edges(graph),
        }
        return dataclasses.replace(state, extra=extra), metrics

    def edge_bytes(state: State, batch: Batch) -> dict[str, int]:
        estimates = state.extra["estimates"]
        size = batch.public_indices.shape[-1] * estimates.shape[-1] * estimates.dtype.itemsize
        return {"soft decisions": size}

    return Algorithm(
        init=init,
        train_step=train_step,
        predict=predict,
        edge_bytes=edge_bytes,
        public_batch="shared",
        undirected=True,
    )


def _decisions(state: State, params: tuple[PyTree, ...], batch: Batch, *, training: bool) -> Array:
    """s_i(x) on the shared reference minibatch, [K, P, C]."""
    outputs, _ = forward(
        state,
        params,
        all_stats(state),
        batch.public_inputs,
        train=Purpose.PUBLIC_DROPOUT if training else None,
        shared_inputs=True,
    )
    return jax.nn.softmax(outputs.logits[:, :, 0])


def _decisions_on_reference_set(state: State, clients: Any) -> Array:
    """s_i(x) for every x of the reference set, [K, M, C], a part of it at a time."""
    rows = clients.public
    parts = np.resize(rows, (-(-len(rows) // _AT_ONCE), min(_AT_ONCE, len(rows))))
    inputs = jax.tree.map(lambda a: jnp.asarray(a[parts]), clients.data.inputs)
    logits = jax.lax.map(lambda part: predict(state, as_float(part)), inputs)  # [n, K, N, 1, C]
    joined = jnp.moveaxis(logits[:, :, :, 0], 0, 1).reshape(state.num_clients, parts.size, -1)
    return jax.nn.softmax(joined[:, : len(rows)])
