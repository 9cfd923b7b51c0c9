"""Who learned from whom: per-edge diagnostics, kept on the device as sums over the steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core.types import Metrics, Outputs
from mhd_jax.exchange.selection import Candidates
from mhd_jax.exchange.teachers import Teachers

MOST_CLIENTS = 64  # of a run whose edges are reported one by one


def followed(targets: Array, candidates: Candidates) -> Array:
    """Whose predictions a client's targets are, [N, R]: shares of the samples, by head that learns.

    A target that mixes candidates' predictions counts for the nearest one.

    Args:
      targets: probabilities [P, R, C].
      candidates: N of them.
    """
    distances = jnp.square(candidates.probabilities - targets).sum(axis=-1)  # [N, P, R]
    distances = jnp.where(candidates.valid[:, None, None], distances, jnp.inf)
    nearest = jax.nn.one_hot(distances.argmin(axis=0), len(distances), axis=0)
    return jnp.where(candidates.valid[:, None], nearest.mean(axis=1), 0)


def agreement(own: Outputs, taught: Outputs, valid: Array) -> Array:
    """On which share of samples and heads each teacher answers as the client does, [T].

    Args:
      own: logits [P, H, C].
      taught: logits [T, P, R, C] of the heads of the same ranks, R ≤ H.
      valid: which are teachers, bool [T].
    """
    num_ranks = taught.logits.shape[2]
    same = own.logits[:, :num_ranks].argmax(axis=-1) == taught.logits.argmax(axis=-1)
    return jnp.where(valid, same.mean(axis=(1, 2)), 0)


def confidence(own: Outputs) -> Array:
    """Mean over samples of Λ(z) = max_c softmax(z)_c, [H]."""
    return jax.nn.softmax(own.logits).max(axis=-1).mean(axis=0)


def by_client(slots: Array, teachers: Teachers, own_included: bool) -> Array:
    """Numbers [K, N, …] of each client's candidates as those of clients [K, K, …].

    Candidates are the teachers, then the client itself where `own_included`, then the teachers
    again where N says so.
    """
    num_clients, num_slots = slots.shape[:2]
    who = [teachers.positions]
    if own_included:
        who.append(jnp.arange(num_clients)[:, None])
    who.append(teachers.positions)
    whose = jnp.concatenate(who, axis=1)[:, :num_slots]
    members = jax.nn.one_hot(whose, num_clients, dtype=slots.dtype)  # [K, N, K]
    return jnp.einsum("kn...,knj->kj...", slots, members)


def of_step(seen: Metrics, teachers: Teachers, own_included: bool) -> Metrics:
    """A step's diagnostics by client: "followed" and "agreement" [K, K, …], "confidence" [K, H].

    Args:
      seen: the same by each client's candidates, [K, N, …].
      teachers: of the step.
      own_included: whether a client itself is one of its candidates.
    """
    found = {**seen, "steps": jnp.ones(len(seen["confidence"]))}
    for name in sorted(seen.keys() - {"confidence"}):  # in one order, so that programs are one
        found[name] = by_client(seen[name], teachers, own_included)
    return found


def means(sums: dict[str, np.ndarray], messages: np.ndarray, num_active: int) -> dict[str, Any]:
    """Diagnostics for a summary, from sums over the steps.

    Args:
      sums: "followed" [K, K, R], "agreement" [K, K], "confidence" [K, H] and "steps" [K].
      messages: predictions of j that i got at [i, j].
      num_active: K without clients that only fill devices.

    Returns:
      "followed": share of i's samples on which it learned from j, by head that learns, [R, K, K];
      "agreement": share of j's answers that were i's too, [K, K]; NaN where none came; "confidence"
      of each head, [K, H].
    """
    of_clients = {name: a[:num_active] for name, a in sums.items()}
    shares = of_clients["followed"][:, :num_active].transpose(2, 0, 1)
    total = shares.sum(axis=-1, keepdims=True)
    agreed, steps = of_clients["agreement"][:, :num_active], of_clients["steps"][:, None]
    nothing = np.full(agreed.shape, np.nan)
    return {
        "followed": np.divide(shares, total, out=np.zeros_like(shares), where=total > 0),
        "agreement": np.divide(agreed, messages, out=nothing, where=messages > 0),
        "confidence": of_clients["confidence"] / np.maximum(steps, 1),
    }
