"""FedMD: Li and Wang, 2019, arXiv 1910.03581.

Training proceeds in rounds. At the start of a round the clients' logits z_j on the public set are
averaged into a consensus z̃(x) = mean_j z_j(x). Then every client

    digests:   θ_i ← θ_i − η ∇ mean_{x, c} |z_i(x)_c − sg z̃(x)_c|   `digest_steps` steps
    revisits:  θ_i ← θ_i − η ∇CE_i                                `revisit_steps` steps

The consensus is computed with a copy of the parameters from the start of the round, on the public
samples that each digest step draws. Consensus and digest use evaluation mode. Clients without
private labels learn the consensus and do not contribute to it, nor do clients that cannot be reached
at a digest step or whose logits are not finite. A server averages, so that the graph is not used;
architectures may differ. With label sets, the mean of the logits of a class is over the clients
that have the class, and each client learns the logits of its own classes.

In the paper, clients first train on the labelled public set, and then on their own data. Here public
samples have no labels: such a start is another run's, from which this one goes on (`simulate(...,
init=result)`, docs/continuing.md). Without it clients start from random parameters, so that early
consensus carries little knowledge.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import (
    algorithm_of,
    factory,
    require,
    require_at_least,
    require_label_smoothing,
)
from mhd_jax.core.label_sets import masked
from mhd_jax.core.trees import where_rows
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    Metrics,
    Participants,
    Presence,
    PyTree,
    State,
)
from mhd_jax.exchange import adversaries
from mhd_jax.exchange import compression as compressions
from mhd_jax.exchange.compression import Compression
from mhd_jax.exchange.messages import Messages
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
from mhd_jax.training.losses import absolute_difference, distillation

DIGEST_LOSSES = ("mae", "kl")


@dataclasses.dataclass(frozen=True, eq=False)
class _FedMD:
    """The functions of the algorithm, and what they are made with, see `fedmd`."""

    digest_steps: int
    revisit_steps: int
    digest_loss: str
    coded: Compression
    label_smoothing: float

    @property
    def round_steps(self) -> int:
        """The number of steps of a round."""
        return self.digest_steps + self.revisit_steps

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        state = init_state(key, clients, sample_batch, num_heads=1)
        speaks = jnp.asarray(clients.labelled_counts().sum(axis=1) > 0, jnp.float32)
        listens = jnp.asarray(clients.label_counts().sum(axis=1) > 0)  # all but those that pad
        extra = {"start": models(state), "speaks": speaks, "listens": listens}
        extra |= adversaries.start(clients, output_shapes(state.groups[0], sample_batch))
        return dataclasses.replace(state, extra=extra)

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        del graph
        phase = state.step % self.round_steps
        state = with_start(state, phase == 0)
        extra = state.extra
        digests = phase < self.digest_steps
        gradients, stats, losses, finite, adversary = jax.lax.cond(
            digests, lambda: self.digest(state, batch), lambda: self.revisit(state, batch)
        )
        if adversary is not None:
            state = dataclasses.replace(state, extra={**extra, "adversaries": adversary})
        speaks, listens = extra["speaks"] > 0, extra["listens"]
        if batch.presence is not None:
            speaks, listens = speaks & batch.presence.reachable, listens & batch.presence.trains
        each = speaks.astype(jnp.int32) + listens  # a message to the server and one back
        metrics = Metrics(
            losses,
            {"predictions": jnp.where(digests, each, 0)},
            non_finite=(speaks & ~finite).astype(jnp.int32),
        )
        return apply_gradients(state, gradients, stats), metrics

    def revisit(self, state: State, batch: Batch) -> tuple[PyTree, ...]:
        gradients, stats, losses = private_gradients(state, batch, self.label_smoothing)
        return gradients, stats, losses, jnp.ones_like(losses, bool), state.extra.get("adversaries")

    def digest(self, state: State, batch: Batch) -> tuple[PyTree, ...]:
        """Returns the results of a digest step.

        Returns:
          The gradients of the digest loss, the unchanged statistics, the losses [K], which clients'
          logits are finite, bool [K], and the adversaries after the step.
        """
        start, adversary = state.extra["start"], state.extra.get("adversaries")
        outputs, _ = forward(
            state, start["params"], start["stats"], batch.public_inputs, shared_inputs=True
        )
        if adversary is not None:
            reachable = None if batch.presence is None else batch.presence.reachable
            outputs, adversary = adversary.sent(outputs), adversary.after(outputs, reachable)
        consensus, says, finite, sets = self.consensus_of(
            outputs.logits[:, :, 0], state.extra["speaks"], batch.presence, state.label_sets
        )

        def towards(logits: Array, label_set: Array | None) -> Array:  # of one client, [P, C]
            if self.digest_loss == "mae":
                return absolute_difference(logits, consensus, label_set)
            target = jax.nn.softmax(consensus)[:, None]
            return distillation(logits[:, None], target, label_set=label_set)

        def loss(params: tuple[PyTree, ...]) -> tuple[Array, Array]:
            outputs, _ = forward(
                state, params, all_stats(state), batch.public_inputs, shared_inputs=True
            )
            each = jax.vmap(towards)(outputs.logits[:, :, 0], sets)
            each = jnp.where(says.any(), each, 0)
            return each.sum(), each  # a client's loss depends on its own parameters alone

        gradients, losses = jax.grad(loss, has_aux=True)(all_params(state))
        return gradients, all_stats(state), losses, finite, adversary

    def consensus_of(
        self, logits: Array, speaks: Array, presence: Presence | None, label_sets: Array | None
    ) -> tuple[Array, Array, Array, Array | None]:
        """Returns the consensus z̃ that clients receive, made from their logits [K, P, C].

        Returns:
          z̃ [P, C]; which clients contribute, float [K]; which have finite logits, bool [K]; and
          the classes that each client learns, bool [K, C]: those of its label set that are in the
          label set of a contributor. They are None without label sets.
        """
        received = self.coded.arrived(
            logits, label_set=None if label_sets is None else label_sets[:, None]
        )
        finite = exchange.all_finite(received)
        speaks *= finite if presence is None else finite & presence.reachable
        received = where_rows(speaks > 0, received, jnp.zeros_like(received))
        if label_sets is None:
            weights = speaks / jnp.maximum(speaks.sum(), 1)
            consensus = self.coded.arrived(jnp.einsum("k,kpc->pc", weights, received))
            return consensus, speaks, finite, None
        say = speaks[:, None] * label_sets  # [K, C]
        voices = say.sum(axis=0)
        mean = jnp.einsum("kc,kpc->pc", say / jnp.maximum(voices, 1), received)
        known = voices > 0
        consensus = self.coded.arrived(masked(mean, known), label_set=known)
        return consensus, speaks, finite, label_sets & known

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        outputs = output_shapes(group, batch)
        return {"predictions": {"logits": jax.eval_shape(self.coded.encode, outputs.logits)}}


@factory
def fedmd(
    digest_steps: int = 5,
    revisit_steps: int = 5,
    digest_loss: str = "mae",
    compression: str = "none",
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns FedMD, in which clients learn from a server's consensus of their public logits.

    Args:
      digest_steps: the number of steps of a round that learn from the consensus.
      revisit_steps: the number of steps of a round that learn from private data.
      digest_loss: "mae", the mean absolute difference of logits, as in the paper; or "kl", the
        cross-entropy to the softmax of the consensus.
      compression: compression of the logits in both directions, see
        `mhd_jax.exchange.compression`; "top_K" keeps probabilities only, and so needs the "kl"
        digest.
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1), 0 as in the
        paper. Comparisons on the command line give all algorithms 0.1.
    """
    require_at_least(1, digest_steps=digest_steps, revisit_steps=revisit_steps)
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
    parts = _FedMD(digest_steps, revisit_steps, digest_loss, coded, label_smoothing)
    return algorithm_of(
        parts,
        public_batch="shared",
        falsifiable=True,
        needs_classes="digest_loss='kl' is of classes' probabilities; choose 'mae'"
        if digest_loss == "kl"
        else "",
    )
