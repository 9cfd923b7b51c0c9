"""What meets between clients: the draw of teachers, the gather of their outputs, the choice of targets."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax.core import random
from mhd_jax.core.client_axis import everywhere, neighbour_slots, over_clients
from mhd_jax.core.types import PyTree, State
from mhd_jax.models.client_model import Outputs

_GATHERING = 16  # as slow, by the neighbour, as so many clients in a product of matrices


@struct.dataclass
class Teachers:
    """S_i for every client: positions int32 [K, T], and which of the T slots are taken, bool [K, T]."""

    positions: Array
    valid: Array


def draw_teachers(
    state: State, adjacency: Array, available: Array, num_targets: int | str
) -> Teachers:
    """Draws `num_targets` neighbours of every client, without replacement.

    The draw is per client and step; a larger weight A[i, j] makes j likelier. It is the
    Gumbel top-k trick: the Δ largest of log A[i, j] + Gumbel noise.

    Args:
      state: gives the step and the clients' keys.
      adjacency: non-negative weights [K, K]; A[i, j] > 0 when i may learn from j.
      available: who can teach at this step, bool [K].
      num_targets: Δ, or "all" for the whole neighbourhood.

    Returns:
      Teachers in T slots, taken slots first: Δ, or as many as hold the largest neighbourhood.
    """
    num_clients = state.num_clients
    most = neighbour_slots(num_clients)
    slots = most if num_targets == "all" else min(int(num_targets), most)
    keys = random.client_keys(state.key, random.Purpose.TEACHERS, state.client_ids, state.step)
    # Noise belongs to the pair of clients, not to their positions.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (num_clients,)))(keys)
    may_teach = (adjacency > 0) & available[None, :]
    weights = jnp.where(may_teach, adjacency, 1)
    scores = jnp.where(may_teach, jnp.log(weights) + noise[:, state.client_ids], -jnp.inf)
    best, positions = jax.lax.top_k(scores, slots)
    return Teachers(positions.astype(jnp.int32), jnp.isfinite(best))


def neighbours(adjacency: Array) -> Teachers:
    """All neighbours of every client of a graph [K, K], taken slots first, in client order."""
    positions, taken = _first_of(adjacency > 0, neighbour_slots(len(adjacency)))
    return Teachers(positions, taken)


def _first_of(chosen: Array, slots: int) -> tuple[Array, Array]:
    """The first columns chosen in each row of [K, K], int32 [K, slots], and which slots are taken."""
    num_clients = chosen.shape[1]
    order = num_clients - jnp.arange(num_clients, dtype=jnp.float32)
    found, columns = jax.lax.top_k(jnp.where(chosen, order, 0), slots)  # floats are sorted fastest
    return columns.astype(jnp.int32), found > 0


def all_finite(said: PyTree, axes: int = 1) -> Array:
    """Whose outputs, or which messages, are all finite: nobody learns from the others.

    Args:
      said: outputs of clients, arrays [K, ...], or messages, arrays [K, T, ...].
      axes: how many of the leading axes tell them apart: 1 or 2.

    Returns:
      bool [K] or [K, T].
    """
    finite = [jnp.isfinite(a).all(axis=range(axes, a.ndim)) for a in jax.tree.leaves(said)]
    return jnp.stack(finite).all(axis=0)


def gather(outputs: Outputs, positions: Array) -> Outputs:
    """Outputs [K, P, …] of the clients at `positions` [K, T], as [K, T, P, …]."""
    return jax.tree.map(lambda a: a[positions], outputs)


def average(tree: PyTree, weights: Array) -> PyTree:
    """Σ_j W[i, j] a_j of arrays [K, …] by a mixing matrix [K, K]; of integers, rounded."""

    def mixed(a: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.inexact):  # what a model counts
            return jnp.round(mixed(a.astype(jnp.float32))).astype(a.dtype)
        # Accelerators would round parameters to fewer bits at every average.
        return jnp.einsum(
            "ij,j...->i...", weights.astype(a.dtype), everywhere(a), precision="highest"
        )

    return jax.tree.map(mixed, tree)


def average_neighbours(tree: PyTree, weights: Array) -> PyTree:
    """`average` by a mixing matrix in which only neighbours in the graph, and oneself, have weight."""
    num_clients = len(weights)
    slots = min(neighbour_slots(num_clients) + 1, num_clients)
    if slots * _GATHERING > num_clients:
        return average(tree, weights)
    positions, _ = _first_of(weights != 0, slots)
    shares = jnp.take_along_axis(weights, positions, axis=1)

    def of_one(positions: Array, shares: Array, everyone: PyTree) -> PyTree:
        def add(t: Array, sums: PyTree) -> PyTree:
            return jax.tree.map(
                lambda total, a: total + shares[t].astype(a.dtype) * a[positions[t]], sums, everyone
            )

        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), everyone)
        return jax.lax.fori_loop(0, slots, add, zeros)

    return over_clients(of_one, in_axes=(0, 0, None))(positions, shares, everywhere(tree))


def among(weights: Array, there: Array) -> Array:
    """A mixing matrix [K, K] of those who are there [K]: each shares all its weight among them.

    Who is away, or has no weight left, keeps its own.
    """
    left = jnp.where(there[:, None] & there[None, :], weights, 0)
    total = left.sum(axis=1, keepdims=True)
    alone = jnp.eye(len(there), dtype=weights.dtype)
    return jnp.where(total > 0, left / jnp.where(total > 0, total, 1), alone)


def along_edges(adjacency: Array) -> Array:
    """One message along every edge of a graph: i ← j at [i, j], int32 [K, K]."""
    return (adjacency > 0).astype(jnp.int32)


def from_teachers(teachers: Teachers) -> Array:
    """One message from every teacher: i ← j at [i, j], int32 [K, K]."""
    num_clients = teachers.positions.shape[0]
    drawn = jax.nn.one_hot(teachers.positions, num_clients, dtype=jnp.int32)  # [K, T, K]
    return (drawn * teachers.valid[..., None]).sum(axis=1)


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
    always sure has little to say.
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
    said = jnp.where(candidates.valid[:, None, None, None], candidates.probabilities, 0)
    others = said.sum(axis=0) - said
    # A candidate without others agrees with nobody, but is all there is.
    agreed = (said * others).sum(axis=-1) + jnp.finfo(said.dtype).tiny
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
