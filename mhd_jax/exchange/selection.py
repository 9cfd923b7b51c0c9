"""Target selections: rules that make the targets of public samples from candidates' predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.tasks import CLASSES, Task
from mhd_jax.core.types import Outputs


@struct.dataclass
class About:
    """What is known of clients beside their outputs: arrays [...], or [..., H] for their heads.

    Attributes:
      clients: their ids, int32 [...].
      counts: how much knowledge each head has, c; None without density ratios.
      temperatures: by which confidence is calibrated; None without calibration.
    """

    clients: Array
    counts: Array | None
    temperatures: Array | None


@struct.dataclass
class Who:
    """One client and its teachers, in a step.

    Attributes:
      own: about the client.
      teachers: about its T teachers.
      step: the number of steps taken, int32 [].
      unlabelled: whether it has no private labels, bool []; None where all have some.
      task: what clients learn to predict.
    """

    own: About
    teachers: About
    step: Array
    unlabelled: Array | None
    task: Task = struct.field(pytree_node=False, default=CLASSES)


@struct.dataclass
class Rows:
    """Outputs of n candidates of one kind, some of whom may not exist.

    Attributes:
      logits, embeddings, density, counts, temperatures, clients: see `Candidates`.
      exist: bool [n].
    """

    logits: Array
    embeddings: Array | None
    exist: Array
    clients: Array
    density: Array | None = None
    counts: Array | None = None
    temperatures: Array | None = None

    def only_main(self, num_ranks: int) -> Rows:
        """Returns the candidates with their main head in the place of each of their heads."""

        def main(a: Array, axis: int) -> Array:
            return jnp.repeat(jax.lax.slice_in_dim(a, 0, 1, axis=axis), num_ranks, axis=axis)

        return self.replace(  # type: ignore[attr-defined]
            logits=main(self.logits, 2),
            density=None if self.density is None else main(self.density, 2),
            counts=None if self.counts is None else main(self.counts, 1),
            temperatures=None if self.temperatures is None else main(self.temperatures, 1),
        )


@struct.dataclass
class Candidates:
    """The outputs from which one client may learn on its public batch: N candidates for R heads.

    Attributes:
      logits: [N, P, R, C]; `label_sets.IMPOSSIBLE` for classes outside a candidate's label set.
      probabilities: softmax of the logits divided by the temperature, [N, P, R, C], from which
        targets are made; for a regression, the predicted numbers.
      embeddings: [N, P, D], or None if they are not sent. Where widths differ, narrower ones are
        padded with zeros.
      valid: which of the N rows are candidates, bool [N]; the other rows mean nothing.
      density: d, logarithms of the candidates' density ratios as the client uses them, [N, P, R];
        None if they are not sent (see `mhd_jax.exchange.density`).
      counts: c, how much knowledge each candidate has, [N, R]; None without density ratios.
      clients: the client that each candidate is, int32 [N].
      client: the client that learns, int32 [].
      step: the number of steps taken, int32 [].
      temperatures: by which the candidates' confidence is calibrated, [N, R]; None without
        calibration (see `mhd_jax.exchange.calibration` and `confidence`).
      task: what they predict.
    """

    logits: Array
    probabilities: Array
    embeddings: Array | None
    valid: Array
    density: Array | None = None
    counts: Array | None = None
    clients: Array | None = None
    client: Array | None = None
    step: Array | None = None
    temperatures: Array | None = None
    task: Task = struct.field(pytree_node=False, default=CLASSES)


def rows(outputs: Outputs, heads: slice, exist: Array, about: About) -> Rows:
    """Returns the `heads` of n clients as candidates, from outputs [n, P, …]."""
    return Rows(
        outputs.logits[:, :, heads],
        outputs.embeddings,
        exist,
        about.clients,
        None if outputs.density is None else outputs.density[:, :, heads],
        None if about.counts is None else about.counts[:, heads],
        None if about.temperatures is None else about.temperatures[:, heads],
    )


def joined(parts: Sequence[Rows], temperature: float, who: Who) -> Candidates:
    """One client's candidates of several kinds; nothing of those that do not exist gets through.

    Args:
      parts: the candidates of each kind.
      temperature: T of their probabilities.
      who: which client learns.
    """
    whole = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

    def of_candidates(a: Array) -> Array:
        return jnp.where(whole.exist.reshape((-1,) + (1,) * (a.ndim - 1)), a, 0)

    logits, embeddings, density, counts = jax.tree.map(
        of_candidates, (whole.logits, whole.embeddings, whole.density, whole.counts)
    )
    return Candidates(
        logits=logits,
        probabilities=who.task.predictions(logits, temperature),
        embeddings=embeddings,
        valid=whole.exist,
        density=density,
        counts=counts,
        clients=whole.clients,
        client=who.own.clients,
        step=who.step,
        temperatures=whole.temperatures,
        task=who.task,
    )


# A target selection is a pure function (key, candidates of one client) -> targets [P, R, C],
# which are probabilities.
TargetSelection = Callable[[Array, Candidates], Array]


def confidence(candidates: Candidates) -> Array:
    """Returns Λ(z) = max_c softmax(z)_c of all candidates, [N, P, R], calibrated if they are.

    Raises:
      ConfigError: the candidates predict numbers.
    """
    _require_classes(candidates, "confidence")
    logits = candidates.logits
    if candidates.temperatures is not None:
        logits = logits / candidates.temperatures[:, None, :, None]
    return jax.nn.softmax(logits).max(axis=-1)


def most_confident(key: Array, candidates: Candidates) -> Array:
    """Selects the candidate with the largest Λ(z) = max_c softmax(z)_c for each sample and head."""
    del key
    return _pick(candidates, confidence(candidates))


def random_candidate(key: Array, candidates: Candidates) -> Array:
    """Draws a candidate uniformly for each sample and head."""
    return _pick(candidates, jax.random.uniform(key, candidates.logits.shape[:-1]))


def mean_of_candidates(key: Array, candidates: Candidates) -> Array:
    """Returns the mean of the candidates' probabilities."""
    del key
    weights = candidates.valid / jnp.maximum(candidates.valid.sum(), 1)
    probabilities = candidates.probabilities
    return jnp.einsum("n,nprc->prc", weights.astype(probabilities.dtype), probabilities)


def confidence_weighted(key: Array, candidates: Candidates) -> Array:
    """Returns the mean weighted by confidence, which MHD's authors suggest as another choice."""
    del key
    return _weighted_mean(candidates, confidence(candidates))


def confidence_cap(key: Array, candidates: Candidates, cap: float = 0.95) -> Array:
    """Selects the most confident candidate with Λ(z) ≤ `cap`, or the least confident if none has.

    Label smoothing keeps honest heads below the cap; an adversary that knows the cap can stay
    below it too.
    """
    del key
    sure = confidence(candidates)
    return _pick(candidates, jnp.where(sure <= cap, sure, -sure))


def relative_confidence(key: Array, candidates: Candidates, power: float = 8.0) -> Array:
    """Returns the mean weighted by each candidate's confidence relative to its other samples.

    A weight is the share of samples in the batch on which the candidate is less confident (equal
    confidence counts half), raised to `power`. No candidate can be more confident than usual on
    all samples, so that one that is always confident gets little weight.
    """
    del key
    sure = confidence(candidates)  # [N, P, R]
    here, there = sure[:, :, None], sure[:, None]
    kind = sure.dtype
    share = ((here > there).mean(axis=2, dtype=kind) + (here >= there).mean(axis=2, dtype=kind)) / 2
    return _weighted_mean(candidates, share**power)


def agreement(key: Array, candidates: Candidates) -> Array:
    """Returns the mean weighted by agreement, Σ_{m≠n} p_n · p_m for candidate n."""
    del key
    _require_classes(candidates, "agreement")
    votes = jnp.where(candidates.valid[:, None, None, None], candidates.probabilities, 0)
    others = votes.sum(axis=0) - votes
    # A single candidate agrees with no other, but must get all the weight.
    agreed = (votes * others).sum(axis=-1) + jnp.finfo(votes.dtype).tiny
    return _weighted_mean(candidates, agreed)


def median(key: Array, candidates: Candidates) -> Array:
    """Returns the median of the candidates' probabilities of each class, divided by its sum.

    It is that of the candidates that say something of the class: outside of its label set a client
    says 0.
    """
    del key
    rank, count = _ranks(candidates)
    middle = (rank == (count - 1) // 2).astype(jnp.float32) + (rank == count // 2)
    return _mean_of_kept(candidates, middle)


def trimmed_mean(key: Array, candidates: Candidates, fraction: float = 0.25) -> Array:
    """Returns the trimmed mean of the candidates' probabilities of each class, divided by its sum.

    Of the n candidates that say something of a class, as for `median`, the ⌊`fraction` · n⌋ largest
    and as many smallest probabilities are left out.
    """
    del key
    rank, count = _ranks(candidates)
    cut = jnp.floor(fraction * count).astype(count.dtype)
    kept = (rank >= cut) & (rank < count - cut)
    return _mean_of_kept(candidates, kept.astype(jnp.float32))


def density_ratio(key: Array, candidates: Candidates) -> Array:
    """Returns the mean weighted by knowledge, c exp d: the posterior of the candidates' mixture."""
    del key
    return _weighted_mean(candidates, knowledge(candidates))


def densest(key: Array, candidates: Candidates) -> Array:
    """Selects the candidate with the most knowledge, c exp d, for each sample and head."""
    del key
    known = knowledge(candidates)
    return _pick(candidates, known) * (known.sum(axis=0) > 0)[..., None]


def robust(key: Array, candidates: Candidates) -> Array:
    """Applies `relative_confidence` to main heads and `median` to auxiliary heads.

    Main heads are specialists: on most samples only a few are right, and a median would follow the
    majority, which is wrong. Auxiliary heads all know all classes to some degree, and their
    majority is right.
    """
    return _by_rank(relative_confidence, median, key, candidates)


def density_robust(key: Array, candidates: Candidates) -> Array:
    """Applies `density_ratio` to main heads and `median` to auxiliary heads, as `robust` does."""
    return _by_rank(density_ratio, median, key, candidates)


def knowledge(candidates: Candidates) -> Array:
    """Returns c exp d of all candidates, [N, P, R]; 0 for rows that are not candidates.

    Raises:
      ConfigError: the candidates have no density ratios.
    """
    if candidates.density is None or candidates.counts is None:
        raise ConfigError(
            "these candidates have no density ratios; set density_weight, to 1.0 say."
        )
    return candidates.counts[:, None] * jnp.exp(candidates.density)


def of_somebody(targets: Array, candidates: Candidates, students: Array) -> Array:
    """Returns targets from which a head learns nothing where nobody knows anything.

    Selections by density ratios then return zeros. As probabilities these cost nothing, but as numbers
    they would be a prediction; a head that is its own target learns nothing.

    Args:
      targets: of R heads, [P, R, C].
      candidates: those selected from.
      students: the outputs of the heads that learn, [P, R, C].
    """
    if candidates.task.has_classes or candidates.counts is None:
        return targets
    nobody = (candidates.counts == 0).all(axis=0) & (targets == 0).all(axis=(0, 2))
    return jnp.where(nobody[:, None], jax.lax.stop_gradient(students), targets)


def _by_rank(
    main: TargetSelection, auxiliary: TargetSelection, key: Array, candidates: Candidates
) -> Array:
    """Applies one selection to main heads and another to auxiliary heads."""

    def of(heads: slice) -> Candidates:
        return candidates.replace(  # type: ignore[attr-defined]
            logits=candidates.logits[:, :, heads],
            probabilities=candidates.probabilities[:, :, heads],
            density=None if candidates.density is None else candidates.density[:, :, heads],
            counts=None if candidates.counts is None else candidates.counts[:, heads],
            temperatures=None
            if candidates.temperatures is None
            else candidates.temperatures[:, heads],
        )

    return jnp.concatenate([main(key, of(slice(0, 1))), auxiliary(key, of(slice(1, None)))], axis=1)


def _weighted_mean(candidates: Candidates, weights: Array) -> Array:
    """Returns Σ_n w_n p_n / Σ_n w_n over the valid candidates for weights [N, P, R]."""
    weights = jnp.where(candidates.valid[:, None, None], weights, 0)
    total = weights.sum(axis=0)
    return jnp.einsum(
        "npr,nprc->prc", weights / jnp.where(total > 0, total, 1), candidates.probabilities
    )


def _ranks(candidates: Candidates) -> tuple[Array, Array]:
    """Returns the ascending rank of each candidate's probability of a class, and how many have one.

    Pairs are compared, which XLA computes faster than a sort of so few. Ties are in the order of
    the candidates; rows that are not candidates, or say nothing of the class, rank last.

    Returns:
      Ranks, int [N, P, R, C], and counts, int [P, R, C], or [1, 1, 1] of numbers.
    """
    counted = candidates.valid[:, None, None, None]
    if candidates.task.has_classes:
        counted = counted & (candidates.probabilities > 0)
    values = jnp.where(counted, candidates.probabilities, jnp.inf)
    earlier = jnp.tril(jnp.ones((len(values),) * 2, bool), -1)[..., None, None, None]
    one, other = values[:, None], values[None]
    rank = ((other < one) | (earlier & (other == one))).sum(axis=1)
    return rank, counted.sum(axis=0)


def _mean_of_kept(candidates: Candidates, kept: Array) -> Array:
    """Returns the mean of what is kept, with weights [N, P, R, C]; 0 if nothing is.

    Those of probabilities are divided by their sum over the classes, to be a distribution.
    """
    weights = kept.sum(axis=0)
    means = (kept * candidates.probabilities).sum(axis=0) / jnp.where(weights > 0, weights, 1)
    if not candidates.task.has_classes:
        return means
    total = means.sum(axis=-1, keepdims=True)
    return means / jnp.where(total > 0, total, 1)


def _require_classes(candidates: Candidates, what: str) -> None:
    """Raises `ConfigError` if the candidates predict numbers."""
    if not candidates.task.has_classes:
        raise ConfigError(
            f"target_selection needs {what}, which predictions of numbers do not have; choose "
            "density_ratio (with num_targets='all'), mean, median, trimmed_mean, random, densest or "
            "density_robust."
        )


def _pick(candidates: Candidates, scores: Array) -> Array:
    """Returns the probabilities of the valid candidate with the largest score, [N, P, R]."""
    scores = jnp.where(candidates.valid[:, None, None], scores, -jnp.inf)
    best = jnp.argmax(scores, axis=0)
    return jnp.take_along_axis(candidates.probabilities, best[None, ..., None], axis=0)[0]


TARGET_SELECTIONS: dict[str, TargetSelection] = {
    "most_confident": most_confident,
    "random": random_candidate,
    "mean": mean_of_candidates,
    "confidence_weighted": confidence_weighted,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "agreement": agreement,
    "confidence_cap": confidence_cap,
    "relative_confidence": relative_confidence,
    "robust": robust,
    "density_ratio": density_ratio,
    "densest": densest,
    "density_robust": density_robust,
}
# The selections that cannot do without density ratios.
NEED_DENSITY = (density_ratio, densest, density_robust)
