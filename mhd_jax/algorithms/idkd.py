"""IDKD, in-distribution knowledge distillation (Ravikumar et al., TMLR 2024, arXiv 2304.04326).

Gossip SGD with quasi-global momentum (`qg_dsgd`), in which the clients' data become more alike from
step E on: neighbours tell each other soft labels of public samples. Client j, with its parameters
x_j before step E, labels the public samples that are in-distribution for it, and sends only those,

    s_j(x) = softmax(z_j(x; x_j) / T)    where max_c s_j(x)_c > τ

Client i learns a sample that some of N(i) ∪ {i} have labelled from the mean t_i(x) of their labels.
From step E on, gossip goes on with a loss over the union of the n_i labelled private samples and
the M_i public samples that have labels,

    L_i = (1 − w_i) · CE_i + w_i · mean_{x labelled} CE(z_i(x), t_i(x)),   w_i = M_i / (n_i + M_i)

A step estimates it from its private batch and its public batch, M_i as M times the share of the
public batch that has labels. Neighbours exchange the labels of x at the first step from E on at
which i draws x, by the models of step E, which are kept; i stores t_i(x) for all later draws.

Departures. The paper labels the whole public set in step E and draws batches from the union. It
calibrates τ; how, could not be read in its text. A helper of the released code takes the τ with the
largest TPR − FPR on the ROC curve of private against public validation samples, but the code trains
with a fixed τ = 0.98, and here τ is fixed too. Also in the code, a sample's label is that of
the neighbour with the most private samples of the class it predicts (`label_choice`), here only
among those who have labelled it, and clients pass labels on every few epochs, one hop further each
time; here labels go one hop, from the client whose model made them.

A prediction that is not finite is no label. Labels that are lost on their way, because a client or
a link fails, are not sent again. Private and public samples make one pass in training mode, so that
BatchNorm's statistics are over both.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import factory, require, require_at_least
from mhd_jax.algorithms.gossip import Gossip, gossip_with
from mhd_jax.core.client_axis import everywhere, in_any_run, over_clients
from mhd_jax.core.label_sets import masked
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    Metrics,
    Outputs,
    Participants,
    PyTree,
    State,
    Terms,
)
from mhd_jax.exchange import adversaries
from mhd_jax.exchange.messages import Messages
from mhd_jax.training.groups import (
    apply_gradients,
    forward,
    local_gradients,
    output_shapes,
    private_gradients,
)
from mhd_jax.training.losses import masked_mean, private_cross_entropy
from mhd_jax.training.passes import joined_inputs

LABEL_CHOICES = ("mean", "most_samples")


@dataclasses.dataclass(frozen=True, eq=False)
class _IDKD(Gossip):
    """The functions of the algorithm, and what they are made with, see `idkd`."""

    start_step: int = 0
    threshold: float = 0.0
    temperature: float = 1.0
    label_choice: str = "mean"

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        state = super().init(key, clients, sample_batch)
        (group,) = state.groups
        outputs = output_shapes(group, sample_batch)
        every_sample = (clients.num_clients, clients.num_public)
        extra = {
            "labellers": (group.params, group.stats),
            "labels": jnp.zeros((*every_sample, clients.num_classes), outputs.logits.dtype),
            "asked": jnp.zeros(every_sample, bool),
            "samples": jnp.asarray(clients.labelled_counts(), jnp.int32),
            **(state.extra or {}),
        }
        extra |= adversaries.start(clients, outputs)
        return dataclasses.replace(state, extra=extra)

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        state, received = self.ask(state, batch, graph)
        state = self.gossip(state, graph, batch.presence)
        gradients, stats, terms = jax.lax.cond(
            state.step < self.start_step,
            lambda: self.on_private_samples(state, batch),
            lambda: self.on_both(state, batch),
        )
        weights = self.gossip_rounds * exchange.along_edges(graph)
        metrics = Metrics(terms.pop("loss"), {"weights": weights, "labels": received}, terms)
        return apply_gradients(state, gradients, stats), metrics

    def ask(self, state: State, batch: Batch, graph: Array) -> tuple[State, Array]:
        """Lets every client learn the labels of the public samples that it draws for the first time.

        Returns:
          The state with the labels, and the number of labels that i receives from j, int32 [K, K].
        """
        rows = batch.public_indices
        asks = ~state.extra["asked"][:, rows]  # [K, P]
        if batch.presence is not None:
            asks &= (batch.presence.trains & batch.presence.reachable)[:, None]
        due = in_any_run((state.step >= self.start_step) & asks.any())
        nothing = jnp.zeros((state.num_clients,) * 2, jnp.int32)
        return jax.lax.cond(
            due, lambda: self.answered(state, batch, graph, asks), lambda: (state, nothing)
        )

    def answered(
        self, state: State, batch: Batch, graph: Array, asks: Array
    ) -> tuple[State, Array]:
        """Returns the results of `ask` where client i asks for the samples `asks[i]`, bool [K, P]."""
        extra, rows = dict(state.extra), batch.public_indices
        (group,) = state.groups
        is_first = ~extra["asked"].any()
        extra["labellers"] = jax.tree.map(
            lambda now, kept: jnp.where(is_first, now, kept),
            (group.params, group.stats),
            extra["labellers"],
        )
        params, stats = extra["labellers"]
        outputs, _ = forward(state, (params,), (stats,), batch.public_inputs, shared_inputs=True)
        own, sent = self.labels_from(outputs.logits), outputs.logits
        if "adversaries" in extra:
            reachable = None if batch.presence is None else batch.presence.reachable
            sent = extra["adversaries"].sent(outputs).logits
            # Which of the joined runs ask, differs: who is not asked has said nothing.
            extra["adversaries"] = jax.tree.map(
                lambda now, kept: jnp.where(asks.any(), now, kept),
                extra["adversaries"].after(outputs, reachable),
                extra["adversaries"],
            )
        known = state.label_sets
        sent = everywhere(
            self.labels_from(masked(sent, None if known is None else known[:, None, None]))
        )
        samples = everywhere(extra["samples"])
        near = exchange.neighbours(graph)
        found = over_clients(self.combined)(
            own, extra["samples"], sent[near.positions], samples[near.positions], near.valid
        )
        before = extra["labels"][:, rows]
        now = jnp.where(asks[..., None], found, before)
        extra["labels"] = extra["labels"].at[:, rows].set(now)
        extra["asked"] = extra["asked"].at[:, rows].max(asks)
        # A batch may hold a sample twice, whose label crosses once.
        once = jnp.argmax(rows[:, None] == rows, axis=1) == jnp.arange(rows.size)
        crossing = jnp.einsum(
            "ip,jp->ij", (asks & once).astype(jnp.int32), sent.any(axis=-1).astype(jnp.int32)
        )
        received = exchange.along_edges(graph) * crossing
        return dataclasses.replace(state, extra=extra), received

    def labels_from(self, logits: Array) -> Array:
        """Returns the labels s_j(x) [K, P, C] from logits [K, P, 1, C]; 0 where j does not label x."""
        probabilities = jax.nn.softmax(logits[:, :, 0] / self.temperature)
        confidence = probabilities.max(axis=-1, keepdims=True)
        return jnp.where(confidence > self.threshold, probabilities, 0)

    def combined(
        self, own: Array, own_samples: Array, sent: Array, samples: Array, valid: Array
    ) -> Array:
        """Returns the labels t_i(x) of one client, [P, C]; 0 where nobody labels x.

        Args:
          own, sent: labels by itself [P, C], and by its T neighbours [T, P, C].
          own_samples, samples: their numbers of labelled private samples by class, [C] and [T, C].
          valid: which of the T are neighbours, bool [T].
        """
        labels = jnp.concatenate([own[None], jnp.where(valid[:, None, None], sent, 0)])
        has_labelled = labels.any(axis=-1)  # [T + 1, P]
        if self.label_choice == "mean":
            return labels.sum(axis=0) / jnp.maximum(has_labelled.sum(axis=0), 1)[:, None]
        samples = jnp.concatenate([own_samples[None], samples])
        of_class = jnp.take_along_axis(samples, labels.argmax(axis=-1), axis=1)
        chosen = jnp.where(has_labelled, of_class, -1).argmax(axis=0)  # [P]
        return jnp.take_along_axis(labels, chosen[None, :, None], axis=0)[0]

    def on_private_samples(self, state: State, batch: Batch) -> tuple[PyTree, PyTree, Terms]:
        """Returns gradients, statistics and terms of a step before step E, as of `qg_dsgd`."""
        gradients, stats, losses = private_gradients(state, batch, self.label_smoothing)
        zeros = jnp.zeros_like(losses)
        terms = {"loss": losses, "private_loss": losses, "public_loss": zeros, "labelled": zeros}
        return gradients, stats, terms

    def on_both(self, state: State, batch: Batch) -> tuple[PyTree, PyTree, Terms]:
        """Returns gradients, statistics and terms of a step from step E on."""
        labels = state.extra["labels"]
        targets = labels[:, batch.public_indices]
        share = targets.any(axis=-1).mean(axis=1, dtype=labels.dtype)
        public = labels.shape[1] * share
        weight = public / jnp.maximum(state.extra["samples"].sum(axis=1) + public, 1)
        joined = dataclasses.replace(batch, inputs=joined_inputs(state, batch))
        gradients, stats, terms = local_gradients(state, joined, self.loss, (targets, weight))
        return gradients, stats, {**terms, "labelled": share}

    def loss(
        self,
        outputs: Outputs,
        labels: Array,
        mask: Array,
        label_set: Array | None,
        targets: Array,
        weight: Array,
    ) -> tuple[Array, Terms]:
        """Returns L_i and its terms, from outputs on B private samples and then P public ones."""
        logits, size = outputs.logits[:, 0], labels.shape[0]
        private = private_cross_entropy(
            logits[:size], labels, mask, self.label_smoothing, label_set
        )
        errors = optax.softmax_cross_entropy(logits[size:], targets)
        public = masked_mean(errors, targets.any(axis=-1))
        total = (1 - weight) * private + weight * public
        return total, {"loss": total, "private_loss": private, "public_loss": public}

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        labels = state.extra["labels"]
        number = jax.ShapeDtypeStruct((), jnp.int32)
        label = {
            "soft labels": jax.ShapeDtypeStruct(labels.shape[2:], labels.dtype),
            "indices": number,
        }
        if self.label_choice == "most_samples":
            label["private samples"] = number  # of the sender, of the class that it predicts
        return {**super().message(state, batch, group), "labels": label}


@factory
def idkd(
    start_step: int = 1000,
    threshold: float = 0.8,
    temperature: float = 1.0,
    label_choice: str = "mean",
    averaging_rate: float = 1.0,
    mixing: str = "uniform",
    gossip_rounds: int = 1,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns in-distribution knowledge distillation, which is `qg_dsgd` until `start_step`.

    Args:
      start_step: E, the step from which neighbours label public samples. It should come late: the
        paper's code labels after four fifths of the epochs. A run that is not longer than E labels
        nothing, and warns of it.
      threshold: τ, the least confidence of a label, in [0, 1]. 0 labels every sample, as plain
        distillation does; 1 labels none. The released code has 0.98 without label smoothing; with
        the 0.1 of comparisons, confidences seldom pass 0.91, hence the lower default.
      temperature: T of the labels' softmax, and of the confidence.
      label_choice: "mean", the mean of the labels of a sample; or "most_samples", the label by the
        client with the most private samples of the class that it predicts, as in the released code.
      averaging_rate, mixing, gossip_rounds, label_smoothing: as for `dsgd`.
    """
    require_at_least(0, start_step=start_step)
    require(0 <= threshold <= 1, f"threshold must be in [0, 1], not {threshold}.")
    require(temperature > 0, f"temperature must be positive, not {temperature}.")
    require(
        label_choice in LABEL_CHOICES,
        f"label_choice must be one of {', '.join(LABEL_CHOICES)}, not {label_choice!r}.",
    )
    parts = _IDKD(
        averaging_rate,
        mixing,
        gossip_rounds,
        label_smoothing,
        quasi_global=True,
        start_step=start_step,
        threshold=threshold,
        temperature=temperature,
        label_choice=label_choice,
    )
    return gossip_with(
        parts,
        public_batch="shared",
        remembers_public=True,
        falsifiable=True,
        needs_classes="it labels samples by their most probable class",
    )
