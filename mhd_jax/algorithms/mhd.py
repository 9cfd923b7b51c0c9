"""Multi-Headed Distillation: Zhmoginov et al., CVPR 2023, arXiv 2211.15774.

Client i has a backbone φ_i, a main head z_i^0 and auxiliary heads z_i^1 … z_i^m. At each step

    L_i = CE(z_i^0(x), y)                                                  private batch
        + ν_emb · mean_x mean_{j∈S_i} ‖ē_i(x) − sg ē_j(x)‖²                public batch
        + ν_aux · Σ_{k=1..m} mean_x CE(softmax z_i^k(x), sg softmax z_q^{k−1}(x))

with ē = φ/‖φ‖, S_i the Δ neighbours drawn at this step (the teachers of i), and q = q(i, k, x) the
candidate in S_i ∪ {i} whose head k−1 is the most confident on x. Auxiliary head k learns from
heads of rank k−1, so that knowledge travels one hop further with every rank, while the main head,
which learns from private labels only, stays accurate on the client's own data.

A client with a label set (`mhd_jax.core.label_sets`) learns the part of q's prediction inside it,
without renormalisation. The confidence of a candidate is that among its own classes: a candidate
with a single class has confidence 1.

The main head of a client without private labels is trained like head 1, from its teachers' main
heads (its own main head is no candidate, because it would learn nothing from itself).

Clients of one architecture may also form ensembles (the paper's hybrid groups): every
`average_every` steps their parameters and normalisation statistics are averaged, as in `fedavg`;
momentum is not. The graph determines the teachers, inside ensembles and between them. Where clients
fail, the present clients of an ensemble are averaged; links inside ensembles do not fail.

With a pool (N_P > 0), S_i is drawn from earlier models of neighbours, see
`mhd_jax.exchange.teacher_pools`.

Targets, including those from the client's own heads, are outputs in evaluation mode; the student
learns with its outputs in training mode.

Choices that the paper leaves open: the client's own head is among the candidates (`include_self`);
m = 0 means that the main head learns from the neighbours' main heads; and a client without a
teacher keeps its private loss and, with its own heads as candidates, its auxiliary loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import factory, require, require_label_smoothing
from mhd_jax.core import random
from mhd_jax.core.client_axis import everywhere, over_clients
from mhd_jax.core.random import Purpose
from mhd_jax.core.trees import take_rows
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    Metrics,
    Outputs,
    Participants,
    Presence,
    PyTree,
    State,
)
from mhd_jax.core.validation import is_integer
from mhd_jax.exchange import adversaries, contract, delays, teacher_pools
from mhd_jax.exchange import compression as compressions
from mhd_jax.exchange import diagnostics as edges
from mhd_jax.exchange.compression import Compression
from mhd_jax.exchange.messages import Messages, of_one_client
from mhd_jax.exchange.selection import TARGET_SELECTIONS, Candidates, TargetSelection
from mhd_jax.exchange.teachers import Teachers
from mhd_jax.training import projection
from mhd_jax.training.groups import (
    all_params,
    all_stats,
    apply_gradients,
    averaged,
    finite_params,
    forward,
    forward_teachers,
    init_state,
    output_shapes,
    predict,
    start_optimizers,
)
from mhd_jax.training.losses import distillation, embedding_distance
from mhd_jax.training.metrics import prediction_entropy
from mhd_jax.training.parameter_averaging import Ensembles, first_members, mixing_matrix
from mhd_jax.training.passes import PullBack, evaluated, private_and_public
from mhd_jax.training.projection import EMBEDDING_PROJECTIONS


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
    public_updates_stats: bool = True,
    pool_size: int = 0,
    pool_refresh: int = 200,
    teacher_delay: int = 0,
    compression: str = "none",
    ensembles: Ensembles | None = None,
    average_every: int = 10,
    label_smoothing: float = 0.1,
    embedding_projection: str = "none",
) -> Algorithm:
    """Returns the algorithm Multi-Headed Distillation (MHD).

    Args:
      num_aux_heads: m; 0 is naive distillation, where the main head itself learns from the
        neighbours' main heads with weight `nu_aux`.
      num_targets: Δ, the number of neighbours drawn per client and step, or "all".
      nu_aux: ν_aux, weight of the auxiliary heads' distillation.
      nu_emb: ν_emb, weight of the embeddings' distillation; 0 sends no embeddings.
      target_selection: one of `mhd_jax.exchange.selection.TARGET_SELECTIONS` ("most_confident",
        "random", "mean", and selections that resist false predictions, such as "robust", for
        `num_targets="all"`), or a function of the candidates (see
        `mhd_jax.exchange.selection.TargetSelection`).
      include_self: whether a client's own head is among its candidates (only if m > 0).
      same_level: whether the neighbours' heads of rank k are candidates for head k too.
      temperature: T of the student's and the targets' softmax in the distillation; candidates are
        chosen by their confidence at T = 1.
      public_batch: "shared" if all clients have the same public samples in a step; "independent"
        if each draws its own, on which its teachers are then evaluated.
      public_updates_stats: whether public samples update BatchNorm statistics too, because
        auxiliary heads are trained on them.
      pool_size: N_P, the number of earlier models of neighbours in each client's pool, from which
        its teachers are drawn; 0 draws teachers from the current neighbours.
      pool_refresh: S_P, the number of steps after which each client renews a random slot of its
        pool.
      teacher_delay: d; teachers are the neighbours' models of d steps ago, or of the start. It
        serves to study the effect of delay alone, without a pool.
      compression: compression of predictions and embeddings: "none", "float16", "int8" or "top_K"
        classes, see `mhd_jax.exchange.compression`. There is no error feedback, because every
        message is about newly drawn samples.
      ensembles: which clients average their parameters: the number of consecutive clients in an
        ensemble; the clients of each ([[0, 1], [3, 4, 5]]), weighted by the sizes of their labelled
        private sets; or a row-stochastic mixing matrix [K, K] in floats. The clients of an ensemble
        start from the same parameters. None averages no parameters.
      average_every: the number of steps between two averages; in the step of an average each client
        also receives parameters from the clients of its ensemble.
      label_smoothing: label smoothing of the private cross-entropy; the paper's is 0.
      embedding_projection: the comparison of embeddings of different widths: "none" refuses them,
        "linear" maps them to the teachers' widths by maps that each client learns, "shared_width"
        compares the coordinates that all clients have; see `mhd_jax.training.projection`.

    Raises:
      ConfigError: a value is out of range, or (at `init`) embedding widths differ without a
        projection, ensembles are impossible (see `mhd_jax.training.parameter_averaging`), or
        an adversary replays messages while teachers are snapshots.
    """
    for name, value, low in (("nu_aux", nu_aux, 0), ("nu_emb", nu_emb, 0)):
        require(value >= low, f"{name} must be at least {low}, not {value}.")
    require(num_aux_heads >= 0, f"num_aux_heads must be at least 0, not {num_aux_heads}.")
    require(
        num_targets == "all" or (is_integer(num_targets) and int(num_targets) >= 1),
        f"num_targets must be a positive integer or 'all', not {num_targets!r}.",
    )
    require(
        num_aux_heads > 0 or not same_level,
        "same_level is about auxiliary heads, but num_aux_heads is 0; leave one of them out.",
    )
    for name, value, low in (
        ("pool_size", pool_size, 0),
        ("pool_refresh", pool_refresh, 1),
        ("teacher_delay", teacher_delay, 0),
    ):
        require(value >= low, f"{name} must be at least {low}, not {value}.")
    require(
        pool_size == 0 or teacher_delay == 0,
        "pool_size and teacher_delay both say how old teachers are; leave one of them out.",
    )
    require(temperature > 0, f"temperature must be positive, not {temperature}.")
    require(average_every >= 1, f"average_every must be at least 1, not {average_every}.")
    require_label_smoothing(label_smoothing)
    require(
        public_batch in ("shared", "independent"),
        f"public_batch must be 'shared' or 'independent', not {public_batch!r}.",
    )
    require(
        callable(target_selection) or target_selection in tuple(TARGET_SELECTIONS),
        f"unknown target_selection {target_selection!r}; "
        f"choose one of {', '.join(TARGET_SELECTIONS)}, or give a function.",
    )
    require(
        embedding_projection in EMBEDDING_PROJECTIONS,
        f"unknown embedding_projection {embedding_projection!r}; choose one of "
        f"{', '.join(EMBEDDING_PROJECTIONS)}.",
    )
    require(
        nu_emb > 0 or embedding_projection == "none",
        "embedding_projection is about the embeddings' distillation, but nu_emb is 0; leave one of "
        "them out.",
    )
    coded = compressions.named(compression)
    select: TargetSelection = (
        contract.checked(target_selection)
        if callable(target_selection)
        else TARGET_SELECTIONS[target_selection]
    )
    num_heads = num_aux_heads + 1
    first_student = min(num_aux_heads, 1)  # rank of the lowest head that learns by distillation
    num_ranks = max(num_aux_heads, 1)  # number of heads that learn, and of own heads that teach
    num_taught = num_ranks + same_level  # number of a neighbour's heads that teach
    # For m = 0 the main head is no candidate: it would learn nothing from itself.
    own_included = include_self and num_aux_heads > 0
    num_snapshots = pool_size or teacher_delay

    def init(key: Array, clients: Participants, sample_batch: Batch) -> State:
        extra: dict[str, PyTree] = {}
        same_start: Any = False
        if ensembles is not None:
            mixing = mixing_matrix(ensembles, clients)
            extra["mixing"], same_start = jnp.asarray(mixing), first_members(mixing)
        if num_aux_heads > 0 and not clients.learns_labels.all():
            extra["unlabelled"] = jnp.asarray(~clients.learns_labels)
        state = init_state(
            key, clients, sample_batch, num_heads, same_start, starts_optimizers=False
        )
        if nu_emb > 0 and embedding_projection == "none":
            projection.require_equal_widths(state)
        if embedding_projection == "linear":
            state = projection.with_projections(state)
        state = start_optimizers(state)
        if clients.adversaries:
            _require_no_replay(clients, num_snapshots)
            logits = output_shapes(state.groups[0], sample_batch).logits
            extra["adversaries"] = adversaries.start(clients, logits)
        if pool_size > 0:
            state, extra["pool"] = teacher_pools.start(state, pool_size)
        if teacher_delay > 0:
            state = delays.start(state, teacher_delay)
        return dataclasses.replace(state, extra=extra)

    def is_mapped(state: State) -> bool:
        """Returns whether clients map their embeddings to their teachers' widths."""
        return embedding_projection == "linear" and len(set(projection.widths(state))) > 1

    def candidates(own: Outputs, taught: Outputs, valid: Array) -> Candidates:
        """Returns the candidates of one client.

        They are its teachers, the client itself if `include_self`, and, if `same_level`, the
        teachers' heads of the same rank.
        """
        parts = [(taught.logits[:, :, :num_ranks], taught.embeddings, valid)]
        if own_included:
            embeddings = None if own.embeddings is None else own.embeddings[None]
            parts.append((own.logits[None, :, :num_ranks], embeddings, jnp.ones(1, bool)))
        if same_level:
            parts.append((taught.logits[:, :, 1:], taught.embeddings, valid))
        return joined(parts)

    def joined(parts: list[tuple[Array, Array | None, Array]]) -> Candidates:
        """Joins candidates of several kinds, such as teachers and the client itself.

        Args:
          parts: for each kind, logits [n, P, R, C], embeddings [n, P, D] and which of the n slots
            hold a candidate, bool [n].
        """
        logits, embeddings, exist = zip(*parts, strict=True)
        is_candidate = jnp.concatenate(exist)

        def join(arrays: Sequence[Array]) -> Array:  # empty slots become zeros
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
        own: Outputs,
        mapped: Array | None,
        evaluated_outputs: Outputs,
        taught: Outputs,
        valid: Array,
        key: Array,
        unlabelled: Array | None,
        label_set: Array | None,
    ) -> tuple[Array, Metrics]:
        """Returns the public terms of L_i for one client.

        Args:
          own: the client's outputs [P, …] in training mode.
          mapped: its embeddings mapped to its teachers' widths, [T, P, D]; None without maps.
          evaluated_outputs: its outputs [P, …] in evaluation mode.
          taught: the outputs [T, P, …] of its teachers S_i.
          valid: which of the T slots hold a teacher, bool [T].
          key: the key of the target selection.
          unlabelled: whether the client has no private labels, bool []; None if all clients have
            labels, or m = 0.
          label_set: the client's classes, bool [C]; None if all clients have all classes.
        """
        if taught.embeddings is not None:
            width = taught.embeddings.shape[-1]
            own, evaluated_outputs = (
                dataclasses.replace(one, embeddings=one.embeddings[..., :width])  # type: ignore[index]
                for one in (own, evaluated_outputs)
            )
        constant = jax.lax.stop_gradient(evaluated_outputs)
        loss, terms = jnp.zeros(()), {}
        diagnostics = {
            "agreement": edges.agreement(constant, taught, valid),
            "confidence": edges.confidence(constant),
        }
        if nu_emb > 0:
            compared = own.embeddings if mapped is None else mapped
            terms["emb_loss"] = embedding_distance(compared, taught.embeddings, valid)  # type: ignore[arg-type]
            loss += nu_emb * terms["emb_loss"]
        if nu_aux > 0:
            choice = candidates(constant, taught, valid)
            targets = jax.lax.stop_gradient(select(key, choice))
            diagnostics["followed"] = edges.followed(targets, choice)
            learned = distillation(own.logits[:, first_student:], targets, temperature, label_set)
            terms["aux_loss"] = jnp.where(choice.valid.any(), learned, 0)
            loss += nu_aux * terms["aux_loss"]
            if unlabelled is not None:
                main_heads = joined([(taught.logits[:, :, :1], taught.embeddings, valid)])
                targets = jax.lax.stop_gradient(select(jax.random.fold_in(key, 1), main_heads))
                learned = distillation(own.logits[:, :1], targets, temperature, label_set)
                loss += nu_aux * jnp.where(unlabelled & valid.any(), learned, 0)
        terms["public_entropy"] = prediction_entropy(constant.logits[:, -1], label_set)
        return loss, {"public_loss": loss, **terms, "diagnostics": diagnostics}

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        outputs, gradients_from = private_and_public(
            state, batch, label_smoothing, public_updates_stats=public_updates_stats
        )
        evaluated_outputs = evaluated(state, batch, outputs)
        travel = everywhere if batch.public_is_shared else _stay
        received = arrived(state, as_sent(state, evaluated_outputs), travel, state.label_sets)
        finite = exchange.all_finite(received)
        state, teachers, taught = taught_by_some(state, batch, graph, received, finite)
        understood = teachers.valid & are_finite(taught, batch)
        mapped, gradients_through = mapped_embeddings(state, outputs, teachers, gradients_from)
        keys = random.client_keys(state.key, Purpose.SELECTION, state.client_ids, state.step)
        unlabelled = state.extra.get("unlabelled")
        # Teachers' outputs are constants: gradients are taken by each client's own outputs.
        gradient = jax.grad(public_loss, argnums=(0, 1), has_aux=True)
        at_outputs, terms = over_clients(gradient)(
            outputs,
            mapped,
            evaluated_outputs,
            taught,
            understood,
            keys,
            unlabelled,
            state.label_sets,
        )
        gradients, stats, private_losses = gradients_through(*at_outputs)
        state = apply_gradients(
            remembered(state, evaluated_outputs, batch.presence), gradients, stats
        )
        state, weights = averaged_in_ensembles(state, batch.presence)
        not_received = ((graph > 0) & ~finite).sum(axis=1)
        seen = terms.pop("diagnostics")
        if state.num_clients < 2 * edges.MOST_CLIENTS:  # some may only pad the client axis
            terms["diagnostics"] = by_client(seen, teachers)
        return state, {
            **terms,
            "private_loss": private_losses,
            "loss": private_losses + terms["public_loss"],
            "messages": {"predictions": exchange.from_teachers(teachers), **weights},
            "non_finite": not_received + (teachers.valid & ~understood).sum(axis=1),
        }

    def by_client(seen: Metrics, teachers: Teachers) -> Metrics:
        """Sums diagnostics of candidates by client, see `mhd_jax.exchange.diagnostics`."""
        found = {**seen, "steps": jnp.ones(len(seen["confidence"]))}
        for name in sorted(seen.keys() - {"confidence"}):  # sorted, so that the program is fixed
            found[name] = edges.by_client(seen[name], teachers, own_included)
        return found

    def as_sent(state: State, outputs: Outputs, senders: Array | None = None) -> Outputs:
        """Returns outputs as they are sent, with those of adversaries falsified.

        Args:
          state: the state of the step.
          outputs: outputs [K, …] of the clients, or [K, T, …] of `senders`.
          senders: positions of the senders, int32 [K, T]; None if each client sends its own.
        """
        adversary = state.extra.get("adversaries")
        if adversary is None:
            return outputs
        return dataclasses.replace(outputs, logits=adversary.sent(outputs.logits, senders))

    def remembered(state: State, outputs: Outputs, presence: Presence | None) -> State:
        """Returns the state in which adversaries have stored outputs of this step for a replay."""
        if "adversaries" not in state.extra:
            return state
        reachable = None if presence is None else presence.reachable
        adversary = state.extra["adversaries"].after(outputs.logits, reachable)
        return dataclasses.replace(state, extra={**state.extra, "adversaries": adversary})

    def taught_by_some(
        state: State, batch: Batch, graph: Array, received: Outputs, available: Array
    ) -> tuple[State, Teachers, Outputs]:
        """Draws the teachers S_i and returns their outputs as the students receive them.

        Returns:
          The state with updated snapshots, the teachers, and their outputs [K, T, P, …] on the
          public samples of their students.
        """
        if pool_size > 0:
            return from_pools(state, batch, graph, available)
        teachers = exchange.draw_teachers(state, graph, available, num_targets)
        params, stats = all_params(state), all_stats(state)
        if teacher_delay > 0:
            params, stats = delays.before(state, teacher_delay)
            state = delays.renewed(state, teacher_delay)
        if not batch.public_is_shared:
            inputs = batch.public_inputs
            outputs = forward_teachers(state, params, stats, teachers.positions, inputs)
            return state, teachers, arrived_by_student(state, outputs, teachers)
        if teacher_delay > 0:
            evaluated_outputs, _ = forward(
                state, params, stats, batch.public_inputs, shared_inputs=True
            )
            received = arrived(
                state, as_sent(state, evaluated_outputs), everywhere, state.label_sets
            )
        return state, teachers, exchange.gather(received, teachers.positions)

    def from_pools(
        state: State, batch: Batch, graph: Array, available: Array
    ) -> tuple[State, Teachers, Outputs]:
        """Does the same as `taught_by_some`, with S_i drawn from i's pool."""
        there = jnp.ones(state.num_clients, bool)
        if batch.presence is not None:  # a client that is away does not use its pool either
            there = batch.presence.trains & batch.presence.reachable
        neighbours = exchange.draw_teachers(state, graph, available, "all")
        state, pool = teacher_pools.renewed(
            state, state.extra["pool"], neighbours, there, pool_refresh
        )
        state = dataclasses.replace(state, extra={**state.extra, "pool": pool})
        teachers, slots = teacher_pools.draw(state, pool, there, num_targets)
        shared = batch.public_is_shared
        outputs = teacher_pools.outputs(
            state, teachers, slots, batch.public_inputs, shared_inputs=shared
        )
        return state, teachers, arrived_by_student(state, outputs, teachers)

    def arrived_by_student(state: State, outputs: Outputs, teachers: Teachers) -> Outputs:
        """Returns teachers' outputs [K, T, P, …] as the students receive them.

        They were computed on the devices of the students, and so are not moved.
        """
        label_sets = take_rows(state.label_sets, teachers.positions)
        return arrived(state, as_sent(state, outputs, teachers.positions), _stay, label_sets)

    def are_finite(taught: Outputs, batch: Batch) -> Array | bool:
        """Returns which messages are finite, bool [K, T], or True if they need no further check."""
        if batch.public_is_shared and num_snapshots == 0:
            return True  # the draw of teachers left out clients whose outputs are not finite
        return exchange.all_finite(taught, axes=2)

    def mapped_embeddings(
        state: State, outputs: Outputs, teachers: Teachers, gradients_from: PullBack
    ) -> tuple[Array | None, Callable[..., Any]]:
        """Returns the clients' embeddings mapped to the teachers' widths, and a gradient function.

        Returns:
          The embeddings [K, T, P, D], None if clients do not map them; and a function of the
          gradients of a loss at the outputs and at these embeddings, with the same results as
          `gradients_from`, including gradients of the maps.
        """
        if not is_mapped(state):
            return None, lambda at_outputs, _: gradients_from(at_outputs)
        mapped, pull_back = jax.vjp(
            lambda maps, embeddings: projection.towards(
                state, maps, embeddings, teachers.positions
            ),
            projection.projections(state),
            outputs.embeddings,
        )

        def back(at_outputs: Outputs, at_mapped: Array) -> Any:
            of_maps, at_embeddings = pull_back(at_mapped)
            gradients, stats, losses = gradients_from(
                dataclasses.replace(at_outputs, embeddings=at_outputs.embeddings + at_embeddings)
            )
            gradients = tuple(
                {**own, "projections": maps} for own, maps in zip(gradients, of_maps, strict=True)
            )
            return gradients, stats, losses

        return mapped, back

    def averaged_in_ensembles(
        state: State, presence: Presence | None
    ) -> tuple[State, dict[str, Array]]:
        """Averages ensembles if the step is due; returns the state and its messages by kind."""
        if ensembles is None:
            return state, {}
        averages, mixing, there = state.step % average_every == 0, state.extra["mixing"], None
        if presence is not None:  # clients that are away or have diverged do not take part
            there = presence.trains & presence.reachable & finite_params(state)
            mixing = exchange.among(mixing, there)
        weighed = exchange.along_edges(mixing) * (1 - jnp.eye(state.num_clients, dtype=jnp.int32))
        state = jax.lax.cond(averages, averaged, lambda state, *_: state, state, mixing, there)
        return state, {"weights": jnp.where(averages, weighed, 0)}

    def taught_parts(state: State, outputs: Outputs) -> dict[str, tuple[Compression, Array]]:
        """Returns the parts of teachers' outputs that are sent, each with its compression.

        They are the logits [..., P, H', C] of the heads that teach, and embeddings [..., P, D].
        """
        parts = {"logits": (coded, outputs.logits[..., :num_taught, :])}
        if nu_emb > 0:
            embeddings: Array = outputs.embeddings  # type: ignore[assignment]
            if embedding_projection == "shared_width":
                embeddings = embeddings[..., : projection.widths(state).min()]
            parts["embeddings"] = (coded.for_numbers, embeddings)
        return parts

    def arrived(
        state: State, outputs: Outputs, travel: Callable[[PyTree], PyTree], label_sets: Array | None
    ) -> Outputs:
        """Returns teachers' outputs as the students decode them.

        Only the compressed parts are moved between devices.

        Args:
          state: gives the widths of embeddings.
          outputs: the outputs of the teachers.
          travel: moves the compressed parts to the devices of the students.
          label_sets: the label sets of the teachers, bool [..., C]; None is all classes.
        """
        known = {"logits": None if label_sets is None else label_sets[..., None, None, :]}
        parts = {
            name: how.arrived(values, travel, known.get(name))
            for name, (how, values) in taught_parts(state, outputs).items()
        }
        return Outputs(parts["logits"], parts.get("embeddings"))

    def message(state: State, batch: Batch, group: GroupState) -> Messages:
        def sent(outputs: Outputs) -> dict[str, PyTree]:
            parts = taught_parts(state, outputs)
            return {name: how.encode(values) for name, (how, values) in parts.items()}

        crossing = jax.eval_shape(sent, output_shapes(group, batch))
        if not batch.public_is_shared:
            crossing["indices"] = of_one_client(batch.public_indices)
        if ensembles is None:
            return {"predictions": crossing}
        weights = of_one_client((group.params, group.stats))
        return {"predictions": crossing, "weights": {"weights": weights}}

    return Algorithm(
        init=init,
        train_step=train_step,
        predict=predict,
        message=message,
        num_heads=num_heads,
        public_batch=public_batch,
        num_snapshots=num_snapshots,
        falsifiable=True,
    )


@factory
def naive(
    nu_naive: float = 1.0,
    num_targets: int | str = 1,
    target_selection: str | TargetSelection = "most_confident",
    temperature: float = 1.0,
    public_batch: str = "shared",
    public_updates_stats: bool = True,
    pool_size: int = 0,
    pool_refresh: int = 200,
    teacher_delay: int = 0,
    compression: str = "none",
    ensembles: Ensembles | None = None,
    average_every: int = 10,
    label_smoothing: float = 0.1,
) -> Algorithm:
    """Returns naive distillation: `mhd` with no auxiliary heads and no embedding term.

        L_i = CE(z_i(x), y) + ν_naive · mean_x CE(softmax z_i(x), sg softmax z_q(x))

    The single head learns from private labels and from neighbours: the baseline for auxiliary
    heads.

    Args:
      nu_naive: ν_naive, weight of the distillation.

    All others are as for `mhd`.
    """
    require(nu_naive >= 0, f"nu_naive must be at least 0, not {nu_naive}.")
    return mhd(
        num_aux_heads=0,
        nu_aux=nu_naive,
        nu_emb=0.0,
        num_targets=num_targets,
        target_selection=target_selection,
        temperature=temperature,
        public_batch=public_batch,
        public_updates_stats=public_updates_stats,
        pool_size=pool_size,
        pool_refresh=pool_refresh,
        teacher_delay=teacher_delay,
        compression=compression,
        ensembles=ensembles,
        average_every=average_every,
        label_smoothing=label_smoothing,
    )


def _stay(sent: PyTree) -> PyTree:
    return sent


def _require_no_replay(clients: Participants, num_snapshots: int) -> None:
    replaying = [client for client, kind in clients.adversaries.items() if kind == "replay"]
    require(
        num_snapshots == 0 or not replaying,
        f"client {', '.join(map(str, replaying))} replays what it sent at the step before, but with "
        "pool_size or teacher_delay snapshots of it speak; choose another kind of adversary, or "
        "leave these out.",
    )
