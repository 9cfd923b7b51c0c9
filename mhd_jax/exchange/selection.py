"""Whose prediction becomes the target of a public sample: the choice among candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class Candidates:
    """What one client may learn from on its public batch: N candidates for R heads.

    Attributes:
      logits: [N, P, R, C]; `label_sets.IMPOSSIBLE` of classes that a candidate does not know.
      probabilities: softmax of the logits over the distillation's temperature, [N, P, R, C]:
        what a target is made of.
      embeddings: [N, P, D], or None where they are not sent. Where widths differ, narrower
        ones end in zeros.
      valid: which of the N rows are candidates, bool [N]; the others hold zeros.
    """

    logits: Array
    probabilities: Array
    embeddings: Array | None
    valid: Array


# A target selection is a pure function (key, candidates of one client) -> targets [P, R, C],
# which are probabilities.
def joined(parts: Sequence[tuple[Array, Array | None, Array]], temperature: float) -> Candidates:
    """One client's candidates of several kinds; nothing of those that do not exist gets through.

    Args:
      parts: for each kind logits [n, P, R, C], embeddings [n, P, D] (None: of no kind), and which of
        them exist, bool [n].
      temperature: T of their probabilities.
    """
    logits, embeddings, exist = zip(*parts, strict=True)
    valid = jnp.concatenate(exist)

    def join(arrays: Sequence[Array]) -> Array:
        whole = jnp.concatenate(arrays)
        return jnp.where(valid.reshape((-1,) + (1,) * (whole.ndim - 1)), whole, 0)

    all_logits = join(logits)
    return Candidates(
        logits=all_logits,
        probabilities=jax.nn.softmax(all_logits / temperature),
        embeddings=None if embeddings[0] is None else join(embeddings),
        valid=valid,
    )


TargetSelection = Callable[[Array, Candidates], Array]


def most_confident(key: Array, candidates: Candidates) -> Array:
    """The candidate with the largest Λ(z) = max_c softmax(z)_c, for each sample and head."""
    del key
    return _pick(candidates, jax.nn.softmax(candidates.logits).max(axis=-1))


def random_candidate(key: Array, candidates: Candidates) -> Array:
    """A candidate drawn uniformly, for each sample and head."""
    return _pick(candidates, jax.random.uniform(key, candidates.logits.shape[:-1]))


def mean_of_candidates(key: Array, candidates: Candidates) -> Array:
    """The mean of the candidates' probabilities."""
    del key
    weights = candidates.valid / jnp.maximum(candidates.valid.sum(), 1)
    probabilities = candidates.probabilities
    return jnp.einsum("n,nprc->prc", weights.astype(probabilities.dtype), probabilities)


def confidence_cap(key: Array, candidates: Candidates, cap: float = 0.95) -> Array:
    """The most confident candidate of those with Λ(z) ≤ `cap`; the least confident where there is none.

    Label smoothing keeps honest heads below it. Who knows the cap can stay below it too.
    """
    del key
    confidence = jax.nn.softmax(candidates.logits).max(axis=-1)
    return _pick(candidates, jnp.where(confidence <= cap, confidence, -confidence))


def relative_confidence(key: Array, candidates: Candidates, power: float = 8.0) -> Array:
    """The mean weighted by confidence, each candidate's relative to its own on other samples.

    A weight is the share of the batch of which the candidate is less sure (equally sure: half),
    raised to `power`. Nobody can be surer than usual of everything, so that a candidate which is
    always sure tells little.
    """
    del key
    confidence = jax.nn.softmax(candidates.logits).max(axis=-1)  # [N, P, R]
    here, there = confidence[:, :, None], confidence[:, None]
    kind = confidence.dtype
    share = ((here > there).mean(axis=2, dtype=kind) + (here >= there).mean(axis=2, dtype=kind)) / 2
    return _weighted_mean(candidates, share**power)


def agreement(key: Array, candidates: Candidates) -> Array:
    """The mean weighted by agreement: a candidate's mean inner product with the others' probabilities."""
    del key
    votes = jnp.where(candidates.valid[:, None, None, None], candidates.probabilities, 0)
    others = votes.sum(axis=0) - votes
    # A candidate without others agrees with nobody, but is all there is.
    agreed = (votes * others).sum(axis=-1) + jnp.finfo(votes.dtype).tiny
    return _weighted_mean(candidates, agreed)


def median(key: Array, candidates: Candidates) -> Array:
    """The median of the candidates' probabilities, class by class, over its sum."""
    del key
    rank, count = _ranks(candidates), candidates.valid.sum()
    middle = (rank == (count - 1) // 2).astype(jnp.float32) + (rank == count // 2)
    return _normalised((middle * candidates.probabilities).sum(axis=0))


def trimmed_mean(key: Array, candidates: Candidates, fraction: float = 0.25) -> Array:
    """The mean without the largest and the smallest probabilities, class by class, over its sum.

    Of n candidates' ⌊`fraction` · n⌋ are left out at either end.
    """
    del key
    rank, count = _ranks(candidates), candidates.valid.sum()
    cut = jnp.floor(fraction * count).astype(count.dtype)
    kept = (rank >= cut) & (rank < count - cut)
    return _normalised(jnp.where(kept, candidates.probabilities, 0).sum(axis=0))


def robust(key: Array, candidates: Candidates) -> Array:
    """Relative confidence among main heads, the median among auxiliary ones.

    Main heads are specialists: on most samples a few know, and the others are the majority that a
    median follows. Auxiliary heads all know something of everything, and a majority of them is right.
    """
    main, auxiliary = (
        candidates.replace(  # type: ignore[attr-defined]
            logits=candidates.logits[:, :, heads],
            probabilities=candidates.probabilities[:, :, heads],
        )
        for heads in (slice(0, 1), slice(1, None))
    )
    return jnp.concatenate([relative_confidence(key, main), median(key, auxiliary)], axis=1)


def _weighted_mean(candidates: Candidates, weights: Array) -> Array:
    """Σ_n w_n p_n over the valid candidates, for weights [N, P, R] that are made to add up to 1."""
    weights = jnp.where(candidates.valid[:, None, None], weights, 0)
    total = weights.sum(axis=0)
    return jnp.einsum(
        "npr,nprc->prc", weights / jnp.where(total > 0, total, 1), candidates.probabilities
    )


def _ranks(candidates: Candidates) -> Array:
    """Which place a probability has among the valid candidates', ascending, int [N, P, R, C].

    Counted pair by pair, which XLA computes faster than it sorts so few. Equal ones stand in the
    candidates' order; those that are none stand behind all others.
    """
    valid = candidates.valid[:, None, None, None]
    values = jnp.where(valid, candidates.probabilities, jnp.inf)
    earlier = jnp.tril(jnp.ones((len(values),) * 2, bool), -1)[..., None, None, None]
    one, other = values[:, None], values[None]
    return ((other < one) | (earlier & (other == one))).sum(axis=1)


def _normalised(masses: Array) -> Array:
    """Masses [..., C] over their sum; zeros stay zeros."""
    total = masses.sum(axis=-1, keepdims=True)
    return masses / jnp.where(total > 0, total, 1)


def _pick(candidates: Candidates, scores: Array) -> Array:
    """The probabilities of the valid candidate with the largest score [N, P, R]."""
    scores = jnp.where(candidates.valid[:, None, None], scores, -jnp.inf)
    best = jnp.argmax(scores, axis=0)
    return jnp.take_along_axis(candidates.probabilities, best[None, ..., None], axis=0)[0]


TARGET_SELECTIONS: dict[str, TargetSelection] = {
    "most_confident": most_confident,
    "random": random_candidate,
    "mean": mean_of_candidates,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "agreement": agreement,
    "confidence_cap": confidence_cap,
    "relative_confidence": relative_confidence,
    "robust": robust,
}
