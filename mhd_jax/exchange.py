"""What meets between clients: the draw of teachers, the gather of their outputs, the choice of targets."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax import random
from mhd_jax.models.client_model import Outputs
from mhd_jax.types import State


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


def finite_clients(outputs: Outputs) -> Array:
    """Which clients' outputs are all finite, bool [K]: nobody learns from the others."""
    finite = [jnp.isfinite(a).all(axis=range(1, a.ndim)) for a in jax.tree.leaves(outputs)]
    return jnp.stack(finite).all(axis=0)


def gather(outputs: Outputs, positions: Array) -> Outputs:
    """Outputs [K, P, …] of the clients at `positions` [K, T], as [K, T, P, …]."""
    return jax.tree.map(lambda a: a[positions], outputs)


# Target selection. Each rule is a pure function of one client's candidates:
#   (key, logits [N, P, R, C], embeddings [N, P, D] or None, valid [N]) -> targets [P, R, C]
# for R heads that learn; the targets are probabilities. Rows that are not valid hold zeros.
TargetSelection = Callable[[Array, Array, Array | None, Array], Array]


def most_confident(key: Array, logits: Array, embeddings: Array | None, valid: Array) -> Array:
    """The candidate with the largest Λ(z) = max_c softmax(z)_c, for each sample and head."""
    del key, embeddings
    probabilities = jax.nn.softmax(logits)
    return _pick(probabilities, probabilities.max(axis=-1), valid)


def random_candidate(key: Array, logits: Array, embeddings: Array | None, valid: Array) -> Array:
    """A candidate drawn uniformly, for each sample and head."""
    del embeddings
    return _pick(jax.nn.softmax(logits), jax.random.uniform(key, logits.shape[:-1]), valid)


def mean_of_candidates(key: Array, logits: Array, embeddings: Array | None, valid: Array) -> Array:
    """The mean of the candidates' probabilities."""
    del key, embeddings
    weights = valid / jnp.maximum(valid.sum(), 1)
    return jnp.einsum("n,nprc->prc", weights.astype(logits.dtype), jax.nn.softmax(logits))


def _pick(probabilities: Array, scores: Array, valid: Array) -> Array:
    """Rows of [N, P, R, C] with the largest score [N, P, R] among the valid."""
    scores = jnp.where(valid[:, None, None], scores, -jnp.inf)
    best = jnp.argmax(scores, axis=0)
    return jnp.take_along_axis(probabilities, best[None, ..., None], axis=0)[0]


TARGET_SELECTIONS: dict[str, TargetSelection] = {
    "most_confident": most_confident,
    "random": random_candidate,
    "mean": mean_of_candidates,
}
