"""CCL, the cross-feature contrastive loss (Aketi and Roy, WACV 2024, arXiv 2310.15890).

Gossip SGD with losses that align the clients' features (embeddings). Because neighbours exchange
parameters, client i can evaluate a neighbour's model on its own samples. With x_j the parameters
after the previous step, N(i) the neighbours of i and φ the embedding, each step computes, in order:

    x_i' = x_i + γ (Σ_j W[i,j] x_j − x_i)                       gossip, with quasi-global momentum
    f_i  = φ(x_i'; B_i),   f_ij = sg φ(x_j; B_i), evaluation mode
    L_m  = Σ_{j∈N(i)} mean_{x, feature} (f_i − f_ij)²           model-variant loss
    Z_i[c] = (S_i^i + Σ_j S_j^i)[c] / (n_i + Σ_j n_j)[c]        class centres
    L_d  = mean_{x, feature} (f_i − sg Z_i[y])²                 data-variant loss
    x_i ← x_i' − η step(∇(CE + λ_m L_m + λ_d L_d))              the clients' optimizer

S_i^j[c] is the sum of f_ij over i's samples of class c, which i sends to j with the number n_i[c]
of these samples; S_i^i is the sum of sg f_i. Z_i[c] = 0 if no client has a sample of class c.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import factory, require_at_least
from mhd_jax.algorithms.gossip import Gossip, gossip_with
from mhd_jax.core.client_axis import everywhere, over_clients
from mhd_jax.core.trees import of_one_client, take_rows
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    Metrics,
    Outputs,
    PyTree,
    State,
    Terms,
)
from mhd_jax.exchange.messages import Messages
from mhd_jax.training.groups import apply_gradients, local_gradients
from mhd_jax.training.losses import masked_mean, private_cross_entropy


@dataclasses.dataclass(frozen=True, eq=False)
class _CCL(Gossip):
    """The functions of the algorithm, and what they are made with, see `ccl`."""

    lambda_m: float | None = None  # None leaves the loss out
    lambda_d: float | None = None

    def loss(
        self,
        outputs: Outputs,
        labels: Array,
        mask: Array,
        label_set: Array | None,
        met: PyTree,
        received: PyTree,
    ) -> tuple[Array, Terms]:
        features: Array = outputs.embeddings  # type: ignore[assignment]  # of one architecture
        total = private_cross_entropy(
            outputs.logits[:, 0], labels, mask, self.label_smoothing, label_set
        )
        terms = {"private_loss": total}
        if self.lambda_m is not None:
            # Σ_j (f − f_j)² = n (f − f̄)² + Σ_j (f_j − f̄)² with f̄ the mean of the n f_j
            mean = met["sum"] / jnp.maximum(met["count"], 1)
            spread = met["squares"] - met["count"] * jnp.square(mean)
            squares = met["count"] * jnp.square(features - mean) + spread
            terms["model_variant_loss"] = masked_mean(squares.mean(axis=1), mask)
            total += self.lambda_m * terms["model_variant_loss"]
        if self.lambda_d is not None:
            num_classes = outputs.logits.shape[-1]
            own = sums_by_class(jax.lax.stop_gradient(features), labels, mask, num_classes)
            pooled = jax.tree.map(jnp.add, own, received)
            centres = pooled["sums"] / jnp.maximum(pooled["counts"], 1)[:, None]
            squares = jnp.square(features - centres[labels])
            terms["data_variant_loss"] = masked_mean(squares.mean(axis=1), mask)
            total += self.lambda_d * terms["data_variant_loss"]
        return total, {"loss": total, **terms}

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        # Cross features are computed from the parameters before gossip.
        context = (
            self.cross_features(state, batch, graph)
            if self.lambda_m is not None or self.lambda_d is not None
            else ({}, {})
        )
        state = self.gossip(state, graph, batch.presence)
        gradients, stats, terms = local_gradients(state, batch, self.loss, context)
        received = exchange.along_edges(graph)
        messages = {"weights": self.gossip_rounds * received}
        if self.lambda_d is not None:
            messages["features"] = received
        metrics = Metrics(terms.pop("loss"), messages, terms)
        return apply_gradients(state, gradients, stats), metrics

    def cross_features(self, state: State, batch: Batch, graph: Array) -> tuple[PyTree, PyTree]:
        """Returns sums of the features f_ij of i's samples, and of the class features i receives.

        One neighbour of every client is evaluated at a time, which bounds the memory, in as many
        turns as there are clients in the largest neighbourhood.

        Returns:
          Over j ∈ N(i), the number of the f_ij, "count" [K], and their "sum" and "squares"
          [K, B, D]; and, from received messages, Σ_j S_j^i, "sums" [K, C, D], and Σ_j n_j,
          "counts" [K, C].
        """
        (group,) = state.groups
        models = everywhere((group.params, group.stats))
        num_clients, num_classes = state.num_clients, group.model.num_outputs
        neighbours = exchange.neighbours(graph)

        def features(model: tuple[PyTree, PyTree], inputs: PyTree) -> Any:
            params, stats = model
            outputs, _ = group.model.apply(params, stats, inputs)
            return outputs.embeddings

        def turn(t: Array) -> tuple[PyTree, PyTree]:
            who, taken = neighbours.positions[:, t], neighbours.valid[:, t]
            found = over_clients(features)(take_rows(models, who), batch.inputs)
            if batch.presence is not None:  # features that are not finite are ignored
                taken &= exchange.all_finite(found)
            found = jnp.where(taken[:, None, None], found, 0)
            met = {"count": taken.astype(found.dtype), "sum": found, "squares": jnp.square(found)}
            if self.lambda_d is None:
                return met, {}
            sent = over_clients(functools.partial(sums_by_class, num_classes=num_classes))(
                found, batch.labels, batch.mask
            )
            to = jax.nn.one_hot(who, num_clients, axis=0) * taken  # [receiver, sender]
            return met, exchange.average(sent, to)

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(turn, 0))
        return jax.lax.fori_loop(
            0,
            neighbours.valid.sum(axis=1).max(),
            lambda t, totals: jax.tree.map(jnp.add, totals, turn(t)),
            nothing,
        )

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        # Statistics are sent too: a neighbour's model is evaluated in evaluation mode.
        crossing = {"weights": {"weights": of_one_client((group.params, group.stats))}}
        if self.lambda_d is not None:
            _, received = jax.eval_shape(
                self.cross_features,
                state,
                batch,
                jax.ShapeDtypeStruct((state.num_clients,) * 2, float),
            )
            crossing["features"] = {"class features": of_one_client(received)}
        return crossing


@factory
def ccl(
    lambda_m: float = 0.1,
    lambda_d: float = 0.1,
    averaging_rate: float = 1.0,
    mixing: str = "uniform",
    quasi_global: bool = True,
    gossip_rounds: int = 1,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns CCL: gossip SGD with the cross-feature contrastive loss.

    Args:
      lambda_m: λ_m, weight of the model-variant loss.
      lambda_d: λ_d, weight of the data-variant loss; 0 sends no class features.
      averaging_rate, mixing, gossip_rounds, label_smoothing: as for `dsgd`; cross features are
        computed from the parameters before the first gossip round.
      quasi_global: whether CCL extends `qg_dsgd` (as in the paper's best results) or `dsgd`.
    """
    require_at_least(0, lambda_m=lambda_m, lambda_d=lambda_d)
    return gossip_with(
        _CCL(
            averaging_rate,
            mixing,
            gossip_rounds,
            label_smoothing,
            quasi_global,
            lambda_m=lambda_m or None,
            lambda_d=lambda_d or None,
        ),
        needs_classes="it compares features by class",
    )


def sums_by_class(
    features: Array, labels: Array, mask: Array, num_classes: int
) -> dict[str, Array]:
    """Returns the sums [C, D] of one client's features [B, D] by class, and sample counts [C]."""
    classes = jax.nn.one_hot(labels, num_classes, dtype=features.dtype) * mask[:, None]
    return {
        "sums": jnp.einsum("bc,bd->cd", classes, features),
        "counts": classes.sum(axis=0).astype(features.dtype),
    }
