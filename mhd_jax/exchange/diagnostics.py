"""Diagnostics for each edge, such as whose predictions a client used as targets.

They are accumulated on the device as sums over the steps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core.tasks import Task
from mhd_jax.core.types import Outputs, Terms
from mhd_jax.exchange.selection import Candidates
from mhd_jax.exchange.teachers import Teachers

MOST_CLIENTS = 64  # larger runs have no diagnostics for each edge


def followed(targets: Array, candidates: Candidates) -> Array:
    """Returns the share of samples whose target is each candidate's prediction, [N, R].

    A target that mixes predictions counts for the candidate with the nearest prediction.

    Args:
      targets: probabilities [P, R, C] for the R heads that learn.
      candidates: the N candidates of one client.
    """
    distances = jnp.square(candidates.probabilities - targets).sum(axis=-1)  # [N, P, R]
    distances = jnp.where(candidates.valid[:, None, None], distances, jnp.inf)
    nearest = jax.nn.one_hot(distances.argmin(axis=0), len(distances), axis=0)
    return jnp.where(candidates.valid[:, None], nearest.mean(axis=1), 0)


def agreement(own: Outputs, taught: Outputs, valid: Array, task: Task) -> Array:
    """Returns the share of samples and heads on which each teacher agrees with the client, [T].

    They agree where they predict the same class. For a regression it is the score of the client's
    numbers, if the teacher's were the truth.

    Args:
      own: outputs of the client, with logits [P, H, C].
      taught: outputs of the teachers, with logits [T, P, R, C] of the heads of ranks below R ≤ H.
      valid: which of the T slots hold teachers, bool [T].
      task: what they predict.
    """
    num_ranks = taught.logits.shape[2]
    same = task.scores(own.logits[:, :num_ranks], task.decisions(taught.logits))
    return jnp.where(valid, same.mean(axis=(1, 2)), 0)


def confidence(own: Outputs) -> Array:
    """Returns the mean over samples of the confidence Λ(z) = max_c softmax(z)_c, [H]."""
    return jax.nn.softmax(own.logits).max(axis=-1).mean(axis=0)


def prediction_entropy(logits: Array, label_set: Array | None = None) -> Array:
    """Returns the entropy of the mean prediction of logits [N, C], divided by its maximum log C.

    A value near 0 means that a head predicts the same class for all samples: it has collapsed.
    For a client with a label set L, bool [C], the maximum is `log |L|`; the value for a single
    class is 1.
    """
    mean = jax.nn.softmax(logits).mean(axis=0)
    entropy = jax.scipy.special.entr(mean).sum()
    if label_set is None:
        return entropy / jnp.log(logits.shape[-1])
    known = label_set.sum()
    return jnp.where(known > 1, entropy / jnp.log(jnp.maximum(known, 2)), 1)


def by_client(slots: Array, teachers: Teachers, own_included: bool) -> Array:
    """Sums numbers [K, N, …] of each client's candidates by the clients they are from, [K, K, …].

    Args:
      slots: numbers of candidates: first of the teachers, then of the client itself if
        `own_included`, then, if N is large enough, of the teachers once more (`same_level`).
      teachers: the teachers of each client.
      own_included: whether a client is a candidate of its own.
    """
    num_clients, num_slots = slots.shape[:2]
    who = [teachers.positions]
    if own_included:
        who.append(jnp.arange(num_clients)[:, None])
    who.append(teachers.positions)
    whose = jnp.concatenate(who, axis=1)[:, :num_slots]
    members = jax.nn.one_hot(whose, num_clients, dtype=slots.dtype)  # [K, N, K]
    return jnp.einsum("kn...,knj->kj...", slots, members)


def of_step(seen: Terms, teachers: Teachers, own_included: bool) -> Terms:
    """A step's diagnostics by client: "followed" and "agreement" [K, K, …], "confidence" [K, H].

    Numbers have no confidence. "steps" [K] are those of which confidence is summed: not the one in
    which a client diverges.

    Args:
      seen: the same by each client's candidates, [K, N, …].
      teachers: of the step.
      own_included: whether a client itself is one of its candidates.
    """
    found = {**seen, "steps": jnp.ones(len(teachers.positions))}
    if "confidence" in seen:
        fine = jnp.isfinite(seen["confidence"]).all(axis=-1)
        found["confidence"] = jnp.where(fine[:, None], seen["confidence"], 0)
        found["steps"] = fine.astype(found["steps"].dtype)
    for name in sorted(seen.keys() - {"confidence"}):  # in one order, so that programs are one
        found[name] = by_client(seen[name], teachers, own_included)
    return found


def means(sums: dict[str, np.ndarray], messages: np.ndarray, num_active: int) -> dict[str, Any]:
    """Returns means over the steps, for a summary, from sums over the steps.

    Args:
      sums: "followed" [K, K, R], "agreement" [K, K], "steps" [K] and, of classes, "confidence"
        [K, H].
      messages: the number of messages with predictions that i received from j at [i, j].
      num_active: the number of clients without those that only pad the client axis.

    Returns:
      "followed", the share of i's samples on which it learned from j, by head that learns,
      [R, K, K]; "agreement", the share of j's predicted classes that equal i's, [K, K], NaN where
      i received nothing from j; and "confidence" of each head, [K, H], if it has been summed.
    """
    of_clients = {name: a[:num_active] for name, a in sums.items()}
    shares = of_clients["followed"][:, :num_active].transpose(2, 0, 1)
    total = shares.sum(axis=-1, keepdims=True)
    agreed, steps = of_clients["agreement"][:, :num_active], of_clients["steps"][:, None]
    nothing = np.full(agreed.shape, np.nan)
    found = {
        "followed": np.divide(shares, total, out=np.zeros_like(shares), where=total > 0),
        "agreement": np.divide(agreed, messages, out=nothing, where=messages > 0),
    }
    if "confidence" in of_clients:
        found["confidence"] = of_clients["confidence"] / np.maximum(steps, 1)
    return found
