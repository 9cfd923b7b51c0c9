"""Multi-Headed Distillation: Zhmoginov et al., CVPR 2023, arXiv 2211.15774.

Client i has a backbone φ_i and heads z_i^0 (main), z_i^1 … z_i^m (auxiliary). At each step

    L_i = CE(z_i^0(x), y)                                                  private batch
        + ν_emb · mean_x mean_{j∈S_i} ‖ē_i(x) − sg ē_j(x)‖²                public batch
        + ν_aux · Σ_{k=1..m} mean_x CE(softmax z_i^k(x), sg softmax z_q^{k−1}(x))

with ē = φ/‖φ‖, S_i the Δ neighbours drawn at this step and q = q(i, k, x) the candidate in
S_i ∪ {i} whose head k−1 is the most confident on x. Auxiliary head k learns from heads of
rank k−1, so knowledge travels one hop further with every rank, while the main head, which
sees private labels only, stays sharp on the client's own data.

A client without private labels learns its main head as head 1 is learned, from its teachers' main
heads (its own is no candidate: it would learn nothing from itself).

Left open by the paper and chosen here: the own head is among the candidates
(`include_self`), m = 0 means that the main head learns from the neighbours' main heads, and
a client without a teacher keeps its private loss and, through its own candidates, its
auxiliary one.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import adversaries, exchange, random
from mhd_jax import compression as compressions
from mhd_jax.algorithms.base import factory, require, require_label_smoothing
from mhd_jax.communication import Message, of_one_client
from mhd_jax.compression import Compression
from mhd_jax.errors import ConfigError
from mhd_jax.exchange import TARGET_SELECTIONS, Candidates, TargetSelection, Teachers
from mhd_jax.execution import everywhere, over_clients
from mhd_jax.groups import (
    all_params,
    all_stats,
    apply_gradients,
    forward_teachers,
    init_state,
    predict,
    shapes_said,
)
from mhd_jax.losses import distillation, embedding_distance
from mhd_jax.metrics import prediction_entropy
from mhd_jax.models.client_model import Outputs
from mhd_jax.passes import private_and_public
from mhd_jax.random import Purpose
from mhd_jax.types import Algorithm, Batch, Metrics, PyTree, State


@factory
def mhd(
    num_aux_heads: int = 3,
    num_targets: int | str = 1,
    nu_aux: float = 0.3,
    nu_emb: float = 0.1,
    target_selection: str | TargetSelection = "most_confident",
    include_self: bool = True,
    same_level: bool = False,
    temperature: float = 1.0,
    public_batch: str = "shared",
    public_updates_stats: bool = False,
    compression: str = "none",
    label_smoothing: float = 0.1,
) -> Algorithm:
    """Multi-Headed Distillation.

    Args:
      num_aux_heads: m; 0 is naive distillation, where the main head itself learns from the
        neighbours' main heads with weight `nu_aux`.
      num_targets: Δ, neighbours drawn per client and step, or "all".
      nu_aux: weight of the auxiliary heads' distillation.
      nu_emb: weight of the embeddings' distillation; 0 sends no embeddings.
      target_selection: one of `mhd_jax.exchange.TARGET_SELECTIONS` ("most_confident", "random",
        "mean", and those that withstand false predictions, for `num_targets="all"`: "robust"
        among others), or a function of the candidates (see `mhd_jax.exchange.TargetSelection`).
      include_self: whether a client's own head is among its candidates (where it learns from
        auxiliary heads: m > 0).
      same_level: whether the neighbours' heads of rank k are candidates for head k too.
      temperature: T of student's and targets' softmax in the distillation; candidates are
        chosen by their confidence at T = 1.
      public_batch: "shared": all clients see the same public samples in a step;
        "independent": each its own, on which its teachers then run.
      public_updates_stats: whether public samples update BatchNorm statistics too.
      compression: of what neighbours send: "none", "float16", "int8" or "top_K" classes, see
        `mhd_jax.compression`. Every message is about samples just drawn, so that no error is
        left to make up for in the next.
      label_smoothing: of the private cross-entropy; the paper's is 0.

    Raises:
      ConfigError: a value out of range, or (at `init`) embeddings of unequal width.
    """
    for name, value, low in (("nu_aux", nu_aux, 0), ("nu_emb", nu_emb, 0)):
        require(value >= low, f"{name} must be at least {low}, not {value}.")
    require(num_aux_heads >= 0, f"num_aux_heads must be at least 0, not {num_aux_heads}.")
    require(
        num_targets == "all" or (isinstance(num_targets, numbers.Integral) and num_targets >= 1),
        f"num_targets must be a positive integer or 'all', not {num_targets!r}.",
    )
    require(
        num_aux_heads > 0 or not same_level,
        "same_level is about auxiliary heads, but num_aux_heads is 0; leave one of them out.",
    )
    require(temperature > 0, f"temperature must be positive, not {temperature}.")
    require_label_smoothing(label_smoothing)
    require(
        public_batch in ("shared", "independent"),
        f"public_batch must be 'shared' or 'independent', not {public_batch!r}.",
    )
    require(
        callable(target_selection) or target_selection in TARGET_SELECTIONS,
        f"unknown target_selection {target_selection!r}; "
        f"choose one of {', '.join(TARGET_SELECTIONS)}, or give a function.",
    )
    coded = compressions.named(compression)
    select: TargetSelection = TARGET_SELECTIONS.get(target_selection, target_selection)  # type: ignore[arg-type]
    num_heads = num_aux_heads + 1
    first_student = min(num_aux_heads, 1)  # rank of the lowest head that learns from others
    num_ranks = max(num_aux_heads, 1)  # how many heads learn, from as many of the own client
    num_taught = num_ranks + same_level  # how many heads of a neighbour teach
    # A main head that is its own candidate learns nothing from itself: m = 0 leaves it out.
    own_included = include_self and num_aux_heads > 0

    def init(key: Array, clients: Any, sample_batch: Batch) -> State:
        state = init_state(key, clients, sample_batch, num_heads)
        if nu_emb > 0:
            _require_equal_widths(state)
        extra: dict[str, PyTree] = {}
        if num_aux_heads > 0 and not clients.learns_labels.all():
            extra["unlabelled"] = jnp.asarray(~clients.learns_labels)
        if clients.adversaries:
            logits = shapes_said(state, sample_batch).logits
            extra["adversaries"] = adversaries.start(clients, logits)
        return dataclasses.replace(state, extra=extra or ())

    def candidates(own: Outputs, taught: Outputs, valid: Array) -> Candidates:
        """Whom one client may learn from: N = its teachers, itself, its teachers' same level."""
        parts = [(taught.logits[:, :, :num_ranks], taught.embeddings, valid)]
        if own_included:
            embeddings = None if own.embeddings is None else own.embeddings[None]
            parts.append((own.logits[None, :, :num_ranks], embeddings, jnp.ones(1, bool)))
        if same_level:
            parts.append((taught.logits[:, :, 1:], taught.embeddings, valid))
        return joined(parts)

    def joined(parts: list[tuple[Array, Array | None, Array]]) -> Candidates:
        """Candidates of several kinds: logits [n, P, R, C], embeddings [n, P, D], which exist [n]."""
        logits, embeddings, exist = zip(*parts, strict=True)
        is_candidate = jnp.concatenate(exist)

        def join(arrays: Sequence[Array]) -> Array:  # nothing of an empty slot gets through
            whole = jnp.concatenate(arrays)
            keep = is_candidate.reshape((-1,) + (1,) * (whole.ndim - 1))
            return jnp.where(keep, whole, 0)

        all_logits = join(logits)
        return Candidates(
            logits=all_logits,
            probabilities=jax.nn.softmax(all_logits / temperature),
            embeddings=None if embeddings[0] is None else join(embeddings),
            valid=is_candidate,
        )

    def public_loss(
        own: Outputs, taught: Outputs, valid: Array, key: Array, unlabelled: Array | None
    ) -> tuple[Array, Metrics]:
        """The public terms of L_i in the client's own outputs [P, …]; `taught` [T, P, …] are S_i's."""
        constant = jax.lax.stop_gradient(own)
        loss, terms = jnp.zeros(()), {}
        if nu_emb > 0:
            terms["emb_loss"] = embedding_distance(own.embeddings, taught.embeddings, valid)  # type: ignore[arg-type]
            loss += nu_emb * terms["emb_loss"]
        if nu_aux > 0:
            choice = candidates(constant, taught, valid)
            targets = jax.lax.stop_gradient(select(key, choice))
            learned = distillation(own.logits[:, first_student:], targets, temperature)
            terms["aux_loss"] = jnp.where(choice.valid.any(), learned, 0)
            loss += nu_aux * terms["aux_loss"]
            if unlabelled is not None:
                main_heads = joined([(taught.logits[:, :, :1], taught.embeddings, valid)])
                targets = jax.lax.stop_gradient(select(jax.random.fold_in(key, 1), main_heads))
                learned = distillation(own.logits[:, :1], targets, temperature)
                loss += nu_aux * jnp.where(unlabelled & valid.any(), learned, 0)
        terms["public_entropy"] = prediction_entropy(constant.logits[:, -1])
        return loss, {"public_loss": loss, **terms}

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        said, gradients_from = private_and_public(
            state, batch, label_smoothing, public_updates_stats=public_updates_stats
        )
        extra = dict(state.extra)
        told = said
        if "adversaries" in extra:
            told = dataclasses.replace(said, logits=extra["adversaries"].sent(said.logits))
            extra["adversaries"] = extra["adversaries"].after(said.logits)
        heard = arrived(told, everywhere if batch.public_is_shared else _stay)
        finite = exchange.all_finite(heard)
        teachers = exchange.draw_teachers(state, graph, finite, num_targets)
        taught = teacher_outputs(state, heard, teachers, batch)
        understood = teachers.valid  # whoever is finite on his own samples is on those of all
        if not batch.public_is_shared:
            understood &= exchange.all_finite(taught, axes=2)
        keys = random.client_keys(state.key, Purpose.SELECTION, state.client_ids, state.step)
        # Teachers are constants: each client's gradient starts at its own outputs.
        at_said, terms = over_clients(jax.grad(public_loss, has_aux=True))(
            said, taught, understood, keys, extra.get("unlabelled")
        )
        gradients, stats, private_losses = gradients_from(at_said)
        metrics = {
            **terms,
            "private_loss": private_losses,
            "loss": private_losses + terms["public_loss"],
            "messages": exchange.from_teachers(teachers),
            "non_finite": ((graph > 0) & ~finite).sum(axis=1)
            + (teachers.valid & ~understood).sum(axis=1),
        }
        state = apply_gradients(state, gradients, stats)
        return dataclasses.replace(state, extra=extra or ()), metrics

    def teacher_outputs(state: State, heard: Outputs, teachers: Teachers, batch: Batch) -> Outputs:
        """What S_i says about i's public samples, [K, T, P, …]."""
        if batch.public_is_shared:
            # Teachers at the present step: what they said as students, gathered.
            return exchange.gather(heard, teachers.positions)
        outputs = forward_teachers(
            state,
            all_params(state),
            all_stats(state),
            teachers.positions,
            batch.public_inputs,
            train=Purpose.PUBLIC_DROPOUT,
        )
        if "adversaries" in dict(state.extra):
            logits = state.extra["adversaries"].sent_by(teachers.positions, outputs.logits)
            outputs = dataclasses.replace(outputs, logits=logits)
        return arrived(outputs, _stay)  # computed where their students are

    def taught_parts(said: Outputs) -> dict[str, tuple[Compression, Array]]:
        """What a teacher tells of its outputs [..., P, H, C] and [..., P, D], and how it is coded."""
        parts = {"logits": (coded, said.logits[..., :num_taught, :])}
        if nu_emb > 0:
            parts["embeddings"] = (coded.for_numbers, said.embeddings)  # type: ignore[assignment]
        return parts

    def arrived(said: Outputs, travel: Callable[[PyTree], PyTree]) -> Outputs:
        """What students have of it: what crosses edges is all that crosses devices."""
        parts = {
            name: how.arrived(values, travel) for name, (how, values) in taught_parts(said).items()
        }
        return Outputs(parts["logits"], parts.get("embeddings"))

    def message(state: State, batch: Batch) -> Message:
        def sent(said: Outputs) -> dict[str, PyTree]:
            return {name: how.encode(values) for name, (how, values) in taught_parts(said).items()}

        crossing = jax.eval_shape(sent, shapes_said(state, batch))
        if not batch.public_is_shared:
            crossing["indices"] = of_one_client(batch.public_indices)
        return crossing

    return Algorithm(
        init=init,
        train_step=train_step,
        predict=predict,
        message=message,
        num_heads=num_heads,
        public_batch=public_batch,
        falsifiable=True,
    )


def _stay(sent: PyTree) -> PyTree:
    return sent


def _require_equal_widths(state: State) -> None:
    widths = {group.members: group.params["heads"]["kernel"].shape[2] for group in state.groups}
    if len(set(widths.values())) > 1:
        listed = "; ".join(
            f"clients {', '.join(map(str, members))}: {width}" for members, width in widths.items()
        )
        raise ConfigError(
            f"nu_emb > 0 compares embeddings, which must have one width, but they have {listed}. "
            "Set nu_emb to 0, or give the clients backbones of one embedding width."
        )
