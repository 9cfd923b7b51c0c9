"""Multi-Headed Distillation: Zhmoginov et al., CVPR 2023, arXiv 2211.15774.

Client i has a backbone φ_i, a main head z_i^0 and auxiliary heads z_i^1 … z_i^m. At each step

    L_i = CE(z_i^0(x), y)                                                  private batch
        + ν_emb · mean_x mean_{j∈S_i} ‖ē_i(x) − sg ē_j(x)‖²                public batch
        + ν_aux · Σ_{k=1..m} mean_x CE(softmax z_i^k(x), sg softmax z_q^{k−1}(x))

with ē = φ/‖φ‖, S_i the Δ neighbours drawn at this step (the teachers of i), and q = q(i, k, x) the
candidate in S_i ∪ {i} whose head k−1 is the most confident on x. Auxiliary head k learns from
heads of rank k−1, so that knowledge travels one hop further with every rank, while the main head,
which learns from private labels only, stays accurate on the client's own data.

Where clients learn numbers (`mhd_jax.core.tasks`), both cross-entropies are squared errors, and a
rule that needs no confidence makes the targets, such as "mean" or "density_ratio".

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

Other rules take the place of the most confident candidate (`target_selection`), among them means
weighted by density ratios, which heads learn beside their predictions: see
`mhd_jax.exchange.density` and docs/density_ratio.md.

Targets, including those from the client's own heads, are outputs in evaluation mode; the student
learns with its outputs in training mode.

Choices that the paper leaves open: the client's own head is among the candidates (`include_self`);
m = 0 means that the main head learns from the neighbours' main heads; and a client without a
teacher keeps its private loss and, with its own heads as candidates, its auxiliary loss.
"""

from __future__ import annotations

import dataclasses
from typing import Any

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
from mhd_jax.core import random
from mhd_jax.core.client_axis import over_clients
from mhd_jax.core.random import Purpose
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
from mhd_jax.exchange import adversaries, calibration, contract, diagnostics, teacher_sources
from mhd_jax.exchange import compression as compressions
from mhd_jax.exchange import density as densities
from mhd_jax.exchange.channel import Channel, known_finite, travels_to_all
from mhd_jax.exchange.density import Density
from mhd_jax.exchange.messages import Messages
from mhd_jax.exchange.selection import (
    About,
    Candidates,
    TargetSelection,
    Who,
    joined,
    of_somebody,
    rows,
)
from mhd_jax.exchange.teachers import Source, Teachers
from mhd_jax.training import projection
from mhd_jax.training.groups import (
    apply_gradients,
    init_state,
    output_shapes,
    predict_density,
    start_optimizers,
)
from mhd_jax.training.losses import distillation, embedding_distance
from mhd_jax.training.parameter_averaging import (
    Averaging,
    Ensembles,
    first_members,
    mixing_matrix,
)
from mhd_jax.training.passes import evaluated, private_and_public

PUBLIC_BATCHES = ("shared", "independent")
OWN_CANDIDATES = ("same_rank", "main")
_OTHER_WIDTHS = "set embedding_projection to 'linear' or 'shared_width', or nu_emb to 0, or "


@dataclasses.dataclass(frozen=True, eq=False)
class _MHD:
    """The functions of the algorithm, and what they are made with.

    Attributes:
      num_aux_heads, nu_aux, nu_emb, select, temperature, label_smoothing, public_updates_stats,
        same_level, embedding_projection: see `mhd`; a weight of None leaves its term out.
      own_included: whether a client's own heads are among its candidates.
      own_candidate: which of them are.
      density: how density ratios are trained and read; None if heads have none.
      calibrate_every: the number of steps between two calibrations of confidence; 0 is never.
      source: where teachers come from.
      channel: what crosses an edge from a teacher.
      averaging: of parameters inside ensembles; None averages nobody.
    """

    num_aux_heads: int
    nu_aux: float | None
    nu_emb: float | None
    select: TargetSelection
    temperature: float
    label_smoothing: float
    public_updates_stats: bool
    same_level: bool
    embedding_projection: str
    own_included: bool
    own_candidate: str
    density: Density | None
    calibrate_every: int
    source: Source
    channel: Channel
    averaging: Averaging | None

    @property
    def first_student(self) -> int:
        """The lowest rank of the heads that learn from others: 1, or 0 where m = 0."""
        return min(self.num_aux_heads, 1)

    @property
    def num_ranks(self) -> int:
        """How many heads learn from others, each from heads of one rank."""
        return max(self.num_aux_heads, 1)

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        """See `Algorithm.init`."""
        extra: dict[str, PyTree] = {}
        same_start: Any = False
        if self.averaging is not None:
            mixing = mixing_matrix(self.averaging.ensembles, clients)
            extra["mixing"], same_start = jnp.asarray(mixing), first_members(mixing)
        relays = self.num_aux_heads > 0 or self.density is not None
        if relays and not clients.learns_labels.all():
            extra["unlabelled"] = jnp.asarray(~clients.learns_labels)
        num_heads = self.num_aux_heads + 1
        if self.density is not None:
            extra |= self.density.start(clients, num_heads)
        if self.calibrate_every > 0:
            extra["calibration"] = calibration.start(clients, num_heads)
        state = init_state(
            *(key, clients, sample_batch, num_heads, same_start),
            starts_optimizers=False,
            density=None if self.density is None else self.density.gradient,
        )
        if self.nu_emb is not None and self.embedding_projection == "none":
            projection.require_equal_widths(state, "nu_emb > 0 compares embeddings", _OTHER_WIDTHS)
        if self.embedding_projection == "linear":
            state = projection.with_projections(state, clients)
        state = start_optimizers(state)
        outputs = output_shapes(state.groups[0], sample_batch)
        extra |= adversaries.start(clients, outputs, self.source.num_snapshots)
        return self.source.start(dataclasses.replace(state, extra=extra))

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        """See `Algorithm.train_step`: L_i and its gradient, for all clients at once."""
        if self.calibrate_every > 0:
            state = calibration.renewed(state, self.calibrate_every)
        outputs, pull_back = private_and_public(
            *(state, batch, self.label_smoothing),
            public_updates_stats=self.public_updates_stats,
            density_weight=None if self.density is None else self.density.weight,
        )
        sent = evaluated(state, batch, outputs)
        received = self.channel.received(state, sent, travels=travels_to_all(batch))
        finite = known_finite(received)
        state, teachers, taught = self.source.teach(
            state, batch, graph, finite, received, self.channel
        )
        of_others = not batch.public_is_shared or self.source.num_snapshots > 0
        understood = teachers.valid & (exchange.all_finite(taught, axes=2) if of_others else True)
        mapped = None
        if self._is_mapped(state):
            mapped, pull_back_all = projection.mapped(state, outputs, teachers.positions, pull_back)
        known, heard = sent, graph * finite
        if self.density is not None:
            state = self.density.met(state, teachers, heard)
            known, taught = self.density.as_read(state, sent, taught, teachers)
        who = self._who(state, teachers, heard)
        # Teachers are constants: each client's gradient starts at its own outputs.
        gradient = jax.grad(self.public_loss, argnums=(0, 1), has_aux=True)
        at_outputs, (terms, seen) = over_clients(gradient)(
            outputs,
            mapped,
            known,
            taught,
            understood,
            random.client_keys(state.key, Purpose.SELECTION, state.client_ids, state.step),
            who,
            state.label_sets,
        )
        gradients, stats, private_losses = (
            pull_back(at_outputs[0]) if mapped is None else pull_back_all(*at_outputs)
        )
        if "counts" in seen:
            state = densities.after(state, seen.pop("counts"), batch.presence)
        state = apply_gradients(self.channel.after(state, sent, batch.presence), gradients, stats)
        weights: dict[str, Array] = {}
        if self.averaging is not None:
            state, weights = self.averaging.after_step(state, batch.presence)
        not_received = ((graph > 0) & ~finite).sum(axis=1)
        recorded = None
        if state.num_clients < 2 * diagnostics.MOST_CLIENTS:  # some of whom may only fill devices
            recorded = diagnostics.of_step(seen, teachers, self.own_included)
        return state, Metrics(
            loss=private_losses + terms["public_loss"],
            messages={"predictions": exchange.from_teachers(teachers), **weights},
            terms={"private_loss": private_losses, **terms},
            non_finite=not_received + (teachers.valid & ~understood).sum(axis=1),
            diagnostics=recorded,
        )

    def public_loss(
        self,
        own: Outputs,
        mapped: Array | None,
        sent: Outputs,
        taught: Outputs,
        valid: Array,
        key: Array,
        who: Who,
        label_set: Array | None,
    ) -> tuple[Array, tuple[Terms, Terms]]:
        """The public terms of one client's L_i, to differentiate in its own outputs.

        Args:
          own: its outputs as a student, logits [P, H, C] and embeddings [P, D].
          mapped: its embeddings in its teachers' widths, [T, P, D], where it learns maps.
          sent: its outputs as a teacher, which are constant.
          taught: outputs of its teachers S_i, [T, P, …].
          valid: which of the T are teachers, bool [T].
          key: of the selection.
          who: which client it is, and who its teachers are.
          label_set: which classes it knows, bool [C]; None is all.

        Returns:
          The loss; and its terms, with what the diagnostics record of the candidates.
        """
        if taught.embeddings is not None:
            own, sent = projection.cut((own, sent), taught.embeddings.shape[-1])
        sent = jax.lax.stop_gradient(sent)
        loss, terms = jnp.zeros(()), {}
        task = who.task
        seen = {"agreement": diagnostics.agreement(sent, taught, valid, task)}
        if task.has_classes:
            seen["confidence"] = diagnostics.confidence(sent)
        if self.nu_emb is not None:
            compared = own.embeddings if mapped is None else mapped
            terms["emb_loss"] = embedding_distance(compared, taught.embeddings, valid)  # type: ignore[arg-type]
            loss += self.nu_emb * terms["emb_loss"]
        if self.nu_aux is not None:
            candidates = self.candidates(sent, taught, valid, who)
            main_heads = self._main_heads(taught, valid, who)
            students = own.logits[:, self.first_student :]
            targets = jax.lax.stop_gradient(self.select(key, candidates))
            seen["followed"] = diagnostics.followed(targets, candidates)
            learned = self._distilled(students, targets, candidates, label_set)
            terms["aux_loss"] = jnp.where(candidates.valid.any(), learned, 0)
            loss += self.nu_aux * terms["aux_loss"]
            if main_heads is not None and self.num_aux_heads > 0:
                targets = self.select(jax.random.fold_in(key, 1), main_heads)
                main, targets = own.logits[:, :1], jax.lax.stop_gradient(targets)
                learned = self._distilled(main, targets, main_heads, label_set)
                relays: Array = who.unlabelled & valid.any()  # type: ignore[operator]
                loss += self.nu_aux * jnp.where(relays, learned, 0)
            if self.density is not None:
                found = self.density.loss(own.density, candidates, who.unlabelled, main_heads)  # type: ignore[arg-type]
                terms["density_loss"] = found
                loss += self.density.weight * found
                if self.num_aux_heads > 0:
                    seen["counts"] = candidates.counts.sum(axis=0)  # type: ignore[union-attr]
        if task.has_classes:
            last = sent.logits[:, -1]
            terms["public_entropy"] = diagnostics.prediction_entropy(last, label_set)
        return loss, ({"public_loss": loss, **terms}, seen)

    def _distilled(
        self, students: Array, targets: Array, candidates: Candidates, label_set: Array | None
    ) -> Array:
        """The distillation of targets, which were selected from candidates, into R heads."""
        targets = of_somebody(targets, candidates, students)
        return distillation(students, targets, self.temperature, label_set, candidates.task)

    def candidates(self, own: Outputs, taught: Outputs, valid: Array, who: Who) -> Candidates:
        """Candidates of one client: its teachers, itself, and its teachers' heads of the same level."""
        lower = slice(0, self.num_ranks)
        parts = [rows(taught, lower, valid, who.teachers)]
        if self.own_included:
            compared = None if taught.embeddings is None else own.embeddings
            own = dataclasses.replace(own, embeddings=compared)
            alone, itself = jax.tree.map(lambda a: a[None], (own, who.own))
            mine = rows(alone, lower, jnp.ones(1, bool), itself)
            if self.own_candidate == "main":
                mine = mine.only_main(self.num_ranks)
            parts.append(mine)
        if self.same_level:
            parts.append(rows(taught, slice(1, None), valid, who.teachers))
        return joined(parts, self.temperature, who)

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        """See `Algorithm.message`."""
        messages = {"predictions": self.channel.message(state, batch, group)}
        return (
            messages
            if self.averaging is None
            else {**messages, "weights": self.averaging.message(group)}
        )

    def _is_mapped(self, state: State) -> bool:
        """Whether clients map their embeddings to their teachers' widths."""
        return self.embedding_projection == "linear" and len(set(projection.widths(state))) > 1

    def _main_heads(self, taught: Outputs, valid: Array, who: Who) -> Candidates | None:
        """The candidates of a main head without labels; None where all have labels."""
        if who.unlabelled is None:
            return None
        parts = [rows(taught, slice(0, 1), valid, who.teachers)]
        return joined(parts, self.temperature, who)

    def _who(self, state: State, teachers: Teachers, graph: Array) -> Who:
        """Who learns from whom in this step, for all clients; `graph` has who can be heard."""
        kept, drawn = state.extra, teachers.positions
        calibrated = kept.get("calibration")
        temperatures = None if calibrated is None else calibrated.temperatures
        counts = None if self.density is None else self.density.counts_of(state, teachers, graph)
        return Who(
            own=About(state.client_ids, kept.get("counts"), temperatures),
            teachers=About(
                state.client_ids[drawn],
                counts,
                None if temperatures is None else temperatures[drawn],
            ),
            step=jnp.broadcast_to(state.step, state.client_ids.shape),
            unlabelled=kept.get("unlabelled"),
            task=state.task,
        )


@factory
def mhd(
    num_aux_heads: int = 3,
    num_targets: int | str = 1,
    nu_aux: float = 0.3,
    nu_emb: float = 0.1,
    target_selection: str | TargetSelection = "most_confident",
    include_self: bool = True,
    own_candidate: str = "same_rank",
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
    calibrate_every: int = 0,
    density_weight: float | None = None,
    density_weights: str = "clients",
    density_clip: float = 8.0,
    density_divides: bool = True,
    density_cap: float | str = "none",
    density_gradient: str = "stopped",
) -> Algorithm:
    """Returns the algorithm Multi-Headed Distillation (MHD).

    Args:
      num_aux_heads: m; 0 is naive distillation, where the main head itself learns from the
        neighbours' main heads with weight `nu_aux`.
      num_targets: Δ, the number of neighbours drawn per client and step, or "all".
      nu_aux: ν_aux, weight of the auxiliary heads' distillation.
      nu_emb: ν_emb, weight of the embeddings' distillation; 0 sends no embeddings.
      target_selection: one of `mhd_jax.exchange.selection.TARGET_SELECTIONS` ("most_confident",
        "random", "mean"; "density_ratio", best with `num_targets="all"`; and selections that resist
        false predictions, such as "robust", for "all"), or a function of the candidates (see
        `mhd_jax.exchange.selection.TargetSelection`).
      include_self: whether a client's own head is among its candidates (only if m > 0).
      own_candidate: which own head that is: of the "same_rank" as the teachers', as in the paper, or
        the "main" head for all ranks.
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
      calibrate_every: the number of steps after which each head's confidence is calibrated anew on
        the validation set (`mhd_jax.exchange.calibration`); 0 compares confidence as it is.
      density_weight: weight of the loss of the density ratios (`mhd_jax.exchange.density`) by which
        some selections weight teachers. None is 1 for these, and trains and sends none for others;
        with a number a user's own selection gets them, too.
      density_weights: what a main head counts in a mixture: "clients" count alike, "samples" by
        their labelled private samples.
      density_clip: the largest logarithm of a density ratio that is used, either way.
      density_divides: whether a teacher's ratios are divided by max(1, their mean over the public
        batch), which limits what an adversary can claim.
      density_cap: the largest ratio that is believed: a number, "shares" (1/π_j for a teacher with
        the share π_j of all labelled private samples) or "none".
      density_gradient: whether the gradient of density ratios at the embedding is "stopped", so that
        they do not change the backbone, or "flowing".

    Raises:
      ConfigError: a value is out of range, or (at `init`) embedding widths differ without a
        projection, ensembles are impossible (see `mhd_jax.training.parameter_averaging`), or
        an adversary replays messages while teachers are snapshots.
    """
    require_at_least(0, nu_aux=nu_aux, nu_emb=nu_emb, num_aux_heads=num_aux_heads)
    require(
        num_aux_heads > 0 or not same_level,
        "same_level is about auxiliary heads, but num_aux_heads is 0; leave one of them out.",
    )
    require(temperature > 0, f"temperature must be positive, not {temperature}.")
    require_label_smoothing(label_smoothing)
    require(
        public_batch in PUBLIC_BATCHES,
        f"public_batch must be 'shared' or 'independent', not {public_batch!r}.",
    )
    require(
        own_candidate in OWN_CANDIDATES,
        f"own_candidate must be one of {', '.join(OWN_CANDIDATES)}, not {own_candidate!r}.",
    )
    projection.require_known(embedding_projection, compares=nu_emb > 0)
    require_at_least(1, average_every=average_every)
    require_at_least(0, calibrate_every=calibrate_every)
    density = densities.configured(
        *(target_selection, num_targets, pool_size),
        weight=density_weight,
        weights=density_weights,
        clip=density_clip,
        divides=density_divides,
        cap=density_cap,
        gradient=density_gradient,
    )
    require(
        density is None or (nu_aux > 0 and not same_level),
        "density ratios are of heads that learn from lower ranks, by their distillation; leave out "
        "same_level, and let nu_aux (nu_naive) be positive.",
    )
    parts = _MHD(
        num_aux_heads=num_aux_heads,
        nu_aux=nu_aux or None,
        nu_emb=nu_emb or None,
        select=contract.selection(target_selection),
        temperature=temperature,
        label_smoothing=label_smoothing,
        public_updates_stats=public_updates_stats,
        same_level=same_level,
        embedding_projection=embedding_projection,
        # A main head that is its own candidate learns nothing from itself: m = 0 leaves it out.
        own_included=include_self and num_aux_heads > 0,
        own_candidate=own_candidate,
        density=density,
        calibrate_every=calibrate_every,
        source=teacher_sources.named(num_targets, pool_size, pool_refresh, teacher_delay),
        channel=Channel(
            compressions.named(compression),
            num_heads=max(num_aux_heads, 1) + same_level,
            embeddings=nu_emb > 0,
            density=density is not None,
            calibrated=calibrate_every > 0,
            shared_width=embedding_projection == "shared_width",
        ),
        averaging=None if ensembles is None else Averaging(ensembles, average_every),
    )
    return algorithm_of(
        parts,
        num_heads=num_aux_heads + 1,
        public_batch=public_batch,
        num_snapshots=parts.source.num_snapshots,
        falsifiable=True,
        density=None if density is None else predict_density,
        needs_classes=_needs_classes(parts),
    )


def _needs_classes(parts: _MHD) -> str:
    """Returns the setting that is of classes alone; empty if there is none."""
    if parts.temperature != 1:
        return "temperature is that of a softmax; leave it at 1"
    if parts.calibrate_every > 0:
        return "calibrate_every is of confidence, which numbers do not have; leave it out"
    if parts.channel.compression.ranks_classes:
        return "top_K compression is of the most probable classes; choose float16 or int8"
    return ""


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
    calibrate_every: int = 0,
    density_weight: float | None = None,
    density_weights: str = "clients",
    density_clip: float = 8.0,
    density_divides: bool = True,
    density_cap: float | str = "none",
    density_gradient: str = "stopped",
) -> Algorithm:
    """Returns naive distillation: `mhd` with no auxiliary heads and no embedding term.

        L_i = CE(z_i(x), y) + ν_naive · mean_x CE(softmax z_i(x), sg softmax z_q(x))

    The single head learns from private labels and from neighbours: the baseline for auxiliary
    heads.

    Args:
      nu_naive: ν_naive, weight of the distillation.

    All others are as for `mhd`.
    """
    options = dict(locals())
    require_at_least(0, nu_naive=options["nu_naive"])
    return mhd(num_aux_heads=0, nu_aux=options.pop("nu_naive"), nu_emb=0.0, **options)
