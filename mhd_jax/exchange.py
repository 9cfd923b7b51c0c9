"""What meets between clients: the draw of teachers, the gather of their outputs, the choice of targets."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax import random
from mhd_jax.execution import everywhere
from mhd_jax.models.client_model import Outputs
from mhd_jax.types import PyTree, State


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
      Teachers in T = min(Δ, K − 1) slots (at least one), taken slots first.
    """
    num_clients = state.num_clients
    most = max(num_clients - 1, 1)
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
    slots = max(adjacency.shape[0] - 1, 1)
    taken, positions = jax.lax.top_k((adjacency > 0).astype(jnp.int32), slots)
    return Teachers(positions.astype(jnp.int32), taken > 0)


def finite_clients(outputs: PyTree) -> Array:
    """Which clients' outputs, arrays [K, …], are all finite, bool [K]: nobody learns from the others."""
    finite = [jnp.isfinite(a).all(axis=range(1, a.ndim)) for a in jax.tree.leaves(outputs)]
    return jnp.stack(finite).all(axis=0)


def gather(outputs: Outputs, positions: Array) -> Outputs:
    """Outputs [K, P, …] of the clients at `positions` [K, T], as [K, T, P, …]."""
    return jax.tree.map(lambda a: a[positions], outputs)


def average(tree: PyTree, weights: Array) -> PyTree:
    """Σ_j W[i, j] a_j of arrays [K, …] by a mixing matrix [K, K]."""

    def mixed(a: Array) -> Array:
        # Accelerators would round parameters to fewer bits at every average.
        return jnp.einsum(
            "ij,j...->i...", weights.astype(a.dtype), everywhere(a), precision="highest"
        )

    return jax.tree.map(mixed, tree)


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


def _pick(candidates: Candidates, scores: Array) -> Array:
    """The probabilities of the valid candidate with the largest score [N, P, R]."""
    scores = jnp.where(candidates.valid[:, None, None], scores, -jnp.inf)
    best = jnp.argmax(scores, axis=0)
    return jnp.take_along_axis(candidates.probabilities, best[None, ..., None], axis=0)[0]


TARGET_SELECTIONS: dict[str, TargetSelection] = {
    "most_confident": most_confident,
    "random": random_candidate,
    "mean": mean_of_candidates,
}
