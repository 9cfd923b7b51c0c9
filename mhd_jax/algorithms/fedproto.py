"""FedProto: Tan et al., AAAI 2022, arXiv 2105.00243, here between neighbours on a graph.

Clients agree on class prototypes, the mean embeddings of their private samples of each class; they
exchange neither predictions nor parameters, and need no public samples. In each step

    L_i = CE(z_i(x), y) + λ · mean_x ‖φ_i(x) − C̄_i[y]‖² / D              private batch

A round has R steps. Over a round, client i sums up the embeddings S_i[c] of the n_i[c] samples of
class c that it draws, as they are when it trains on them. After the round, neighbours exchange the
means C_i[c] = S_i[c] / n_i[c] and the numbers n_i[c] of the classes that they have drawn, and

    C̄_i[c] = Σ_j n_j[c] C_j[c] / Σ_j n_j[c]    over j ∈ N(i) ∪ {i}

A sample of a class without a prototype, as in the first round, adds nothing to the second term. A
prototype stays until a round in which N(i) ∪ {i} have drawn its class again.

Heads are local and architectures may differ, but embeddings have one width D. The distance is that
of the released code, the squared difference averaged over the D coordinates; the paper's text has
the L2 distance between prototypes, and its analysis λ ‖φ(x) − C̄‖² without 1/D. The weights are
those of that analysis; the paper's equation of the aggregation divides by the number of clients
once more, which shrinks all prototypes, and the released code gives all clients one weight
(`weighting="clients"`).

Departures. A server averages over all clients; here each client does over its neighbourhood, so
that prototypes differ. A round is an epoch in the paper, so that a prototype is over all samples of
a class; here it is `local_steps` steps. Clients predict by their heads, not by the nearest
prototype.

A client that does not train in a step keeps its sums and prototypes. A batch whose embeddings are
not finite is left out of the sums, so that nobody learns from it.
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
from mhd_jax.algorithms.ccl import sums_by_class
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import where_rows
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    Metrics,
    Outputs,
    Participants,
    State,
    Terms,
)
from mhd_jax.exchange.messages import Messages
from mhd_jax.topology.mixing import links
from mhd_jax.training.groups import (
    apply_gradients,
    embedding_width,
    init_state,
    local_gradients,
)
from mhd_jax.training.losses import masked_mean, private_cross_entropy
from mhd_jax.training.passes import private_step
from mhd_jax.training.projection import require_equal_widths

WEIGHTINGS = ("samples", "clients")


@dataclasses.dataclass(frozen=True, eq=False)
class _FedProto:
    """The functions of the algorithm, and what they are made with, see `fedproto`.

    Attributes:
      lambda_p: λ; None leaves the prototypes out.
      local_steps, weighting, label_smoothing: see `fedproto`.
    """

    lambda_p: float | None
    local_steps: int
    weighting: str
    label_smoothing: float

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        _require_no_pretext(clients)
        state = init_state(key, clients, sample_batch, num_heads=1)
        if self.lambda_p is None:
            return state
        require_equal_widths(state, "fedproto compares embeddings", "")
        by_class = (clients.num_clients, clients.num_classes)
        dtype = state.groups[0].params["heads"]["kernel"].dtype
        sums = jnp.zeros((*by_class, embedding_width(state.groups[0])), dtype)
        extra = {
            "sums": sums,
            "counts": jnp.zeros(by_class, dtype),
            "prototypes": sums,
            "known": jnp.zeros(by_class, bool),
        }
        return dataclasses.replace(state, extra=extra)

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        if self.lambda_p is None:
            return private_step(state, batch, self.label_smoothing)
        before = state.extra
        context = (before["prototypes"], before["known"])
        gradients, stats, terms = local_gradients(state, batch, self.loss, context)
        known_sums = {name: before[name] for name in ("sums", "counts")}
        sums = {name: value + terms.pop(name) for name, value in known_sums.items()}
        sums = where_rows(exchange.all_finite(sums), sums, known_sums)
        after, received = jax.lax.cond(
            (state.step + 1) % self.local_steps == 0,
            lambda: self.exchanged({**before, **sums}, graph),
            lambda: ({**before, **sums}, jnp.zeros((state.num_clients,) * 2, jnp.int32)),
        )
        if batch.presence is not None:
            after = where_rows(batch.presence.trains, after, before)
        state = dataclasses.replace(apply_gradients(state, gradients, stats), extra=after)
        return state, Metrics(terms.pop("loss"), {"prototypes": received}, terms)

    def loss(
        self,
        outputs: Outputs,
        labels: Array,
        mask: Array,
        label_set: Array | None,
        prototypes: Array,
        known: Array,
    ) -> tuple[Array, Terms]:
        """Returns L_i, its terms, and what the batch adds to S_i and n_i."""
        features: Array = outputs.embeddings  # type: ignore[assignment]  # of one width
        private = private_cross_entropy(
            outputs.logits[:, 0], labels, mask, self.label_smoothing, label_set
        )
        distances = jnp.square(features - prototypes[labels]).mean(axis=1)
        distance = masked_mean(jnp.where(known[labels], distances, 0), mask)
        total = private + self.lambda_p * distance  # type: ignore[operator]  # no round without it
        seen = sums_by_class(jax.lax.stop_gradient(features), labels, mask, prototypes.shape[0])
        terms = {"loss": total, "private_loss": private, "prototype_loss": distance}
        return total, {**terms, **seen}

    def exchanged(self, extra: dict[str, Array], graph: Array) -> tuple[dict[str, Array], Array]:
        """Ends a round.

        Returns:
          `State.extra` with new prototypes C̄_i and no sums, and the number of class means that i
          receives from j, int32 [K, K].
        """
        own = {"sums": extra["sums"], "counts": extra["counts"]}
        has_class = own["counts"] > 0
        if self.weighting == "clients":  # each mean counts as one sample
            means = own["sums"] / jnp.maximum(own["counts"], 1)[..., None]
            own = {"sums": means, "counts": has_class.astype(means.dtype)}
        total = exchange.average_neighbours(own, links(graph) + jnp.eye(len(graph)))
        is_new = total["counts"] > 0
        means = total["sums"] / jnp.maximum(total["counts"], 1)[..., None]
        after = {
            "sums": jnp.zeros_like(extra["sums"]),
            "counts": jnp.zeros_like(extra["counts"]),
            "prototypes": jnp.where(is_new[..., None], means, extra["prototypes"]),
            "known": extra["known"] | is_new,
        }
        received = exchange.along_edges(graph) * has_class.sum(axis=1, dtype=jnp.int32)
        return after, received

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        del batch, group
        if self.lambda_p is None:
            return {}
        sums, number = state.extra["sums"], jax.ShapeDtypeStruct((), jnp.int32)
        mean = {
            "prototypes": jax.ShapeDtypeStruct(sums.shape[2:], sums.dtype),
            "classes": number,
        }
        if self.weighting == "samples":
            mean["samples"] = number
        return {"prototypes": mean}


@factory
def fedproto(
    lambda_p: float = 1.0,
    local_steps: int = 10,
    weighting: str = "samples",
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns FedProto, in which neighbours exchange the mean embeddings of their classes.

    Args:
      lambda_p: λ, weight of the distance to the prototypes, in the paper 1, and 0.1 for CIFAR-10;
        0 is isolated training.
      local_steps: R, the number of steps of a round, after which prototypes are exchanged.
      weighting: how a prototype weighs the means of a class: by their numbers of "samples", or all
        "clients" alike, as in the released code.
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1), 0 as in the
        paper. Comparisons on the command line give all algorithms 0.1.
    """
    require_at_least(0, lambda_p=lambda_p)
    require_at_least(1, local_steps=local_steps)
    require(
        weighting in WEIGHTINGS,
        f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}.",
    )
    require_label_smoothing(label_smoothing)
    parts = _FedProto(lambda_p or None, local_steps, weighting, label_smoothing)
    return algorithm_of(parts, needs_classes="it exchanges the means of classes")


def _require_no_pretext(clients: Participants) -> None:
    """Raises `ConfigError` if a client learns a pretext task, whose samples have no classes."""
    for group in clients.groups:
        if group.pretext is not None:
            listed = ", ".join(map(str, group.members))
            raise ConfigError(
                f"fedproto exchanges the means of classes, but client {listed} has the objective "
                f"{group.pretext.name}; make it supervised, or unlabelled."
            )
