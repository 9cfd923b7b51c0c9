"""Density ratios of heads, by which teachers are weighted: who is fit to teach which sample.

Every head k of client i has one more output, d_i^k(x), the logarithm of the ratio of two densities:
that of the samples from which the head has its knowledge, and that of the public set. Beside it goes
one number per head, c_i^k, how much knowledge that is.

    d_i^0   logistic regression on the embedding, of private against public samples:
                mean softplus(−d(x_private)) + mean softplus(d(x_public)),
            whose minimum is log p_i(x)/p_public(x) for any sizes of the two batches
    c_i^0   1, or n_i, the number of labelled private samples
    target  T_i^k(x) = Σ_j w_j softmax z_j^{k−1}(x),  w_j ∝ c_j^{k−1} exp d_j^{k−1}(x),  j ∈ candidates
    d_i^k   learns log( Σ_j c_j^{k−1} exp d_j^{k−1}(x) / Σ_j c_j^{k−1} )
    c_i^k   Σ_j c_j^{k−1}

With r_j = p_j/p_public, Σ_j r_j(x) p_j(y|x) / Σ_j r_j(x) is the posterior of the equal-weight mixture of
the candidates' distributions (with c = n, of their pooled data), and the weighted mean of the ratios
is the ratio of that mixture. So head k carries the posterior of what lies within k hops, each client
weighted by the number of walks that lead to it. docs/density_ratio.md has the derivation.

A client without private labels has c^0 = 0: it claims no knowledge of its own. Its d^0 learns the
mixture of its teachers' main heads, as higher ranks do.

Receivers trust nobody. They clip d; they divide each sender's ratios by max(1, their mean over the
public batch), because the mean of an honest ratio over public samples is 1; they may cap ratios,
because an honest ratio never exceeds 1/π_j where the public set is the mixture Σ_j π_j p_j; and they
cut counts to the number of walks that can exist. So of P samples, a single sender can have a ratio of
t on at most P/t, see `Density.read`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import Outputs, Participants, Presence, State
from mhd_jax.core.validation import is_number
from mhd_jax.exchange.selection import (
    NEED_DENSITY,
    TARGET_SELECTIONS,
    Candidates,
    TargetSelection,
    knowledge,
)
from mhd_jax.exchange.teachers import Teachers

WEIGHTS = ("clients", "samples")
GRADIENTS = ("stopped", "flowing")
_OF_REGRESSION = 0.1  # weight of the squared error of d^k next to that of the logistic regression


@dataclasses.dataclass(frozen=True)
class Density:
    """How density ratios are trained, and what receivers make of them.

    Attributes:
      weight: weight of the density ratios' loss.
      weights: what a main head counts: "clients", one each, or "samples", their number.
      clip: the largest absolute value of d that is used.
      divides: whether a sender's ratios are divided by max(1, their mean over the public batch).
      cap: the largest ratio that is believed: a number, "shares" for 1/π_j with client j's share
        π_j of all labelled private samples, or "none".
      gradient: whether the gradient of d at the embedding is "stopped" or "flowing".
      samples_teachers: whether a step has some of the candidates only (Δ < all, or a pool). Then the
        logarithm of a step's mixture would be too low in the mean, and the mean is taken over ratios.
    """

    weight: float
    weights: str
    clip: float
    divides: bool
    cap: float | str
    gradient: str
    samples_teachers: bool

    def start(self, clients: Participants, num_heads: int) -> dict[str, Array]:
        """Returns what is kept in `State.extra`: "counts", c [K, H], and "most", the caps [K].

        With adversaries also "degree", the most neighbours that each client has had, [K].
        """
        samples = jnp.asarray(clients.labelled_counts().sum(axis=1), jnp.float32)
        of_main = samples if self.weights == "samples" else (samples > 0).astype(jnp.float32)
        counts = jnp.zeros((len(samples), num_heads)).at[:, 0].set(of_main)
        kept = {"counts": counts.astype(jnp.float32)}
        if self.cap == "shares":
            kept["most"] = samples.sum() / jnp.maximum(samples, 1)
        elif self.cap != "none":
            kept["most"] = jnp.full(len(samples), float(self.cap))
        if clients.adversaries:
            kept["degree"] = jnp.zeros(len(samples))
        return kept

    def read(self, density: Array, most: Array | None) -> Array:
        """Returns logarithms of ratios as their receiver uses them.

        With `divides`, the mean over the P samples of each sender's ratios is at most 1, so that for
        any t at most P/t of them are above t (Markov's inequality), whatever the sender claims.

        Args:
          density: as received, [..., P, R].
          most: the cap of each sender, [...]; None is none.
        """
        read = jnp.clip(density, -self.clip, self.clip)
        if self.divides:
            total = jax.nn.logsumexp(read, axis=-2, keepdims=True)
            read -= jnp.maximum(total - jnp.log(read.shape[-2]), 0)
        return read if most is None else jnp.minimum(read, jnp.log(most)[..., None, None])

    def as_read(
        self, state: State, sent: Outputs, taught: Outputs, teachers: Teachers
    ) -> tuple[Outputs, Outputs]:
        """Returns clients' own outputs and their teachers', with densities as they are used.

        Args:
          state: of this step.
          sent: what clients send, [K, P, …].
          taught: what they receive from their teachers, [K, T, P, …].
          teachers: of this step.
        """
        most = state.extra.get("most")
        of_teachers = None if most is None else most[teachers.positions]
        return tuple(  # type: ignore[return-value]
            dataclasses.replace(one, density=self.read(one.density, limit))  # type: ignore[arg-type]
            for one, limit in ((sent, most), (taught, of_teachers))
        )

    def met(self, state: State, teachers: Teachers, graph: Array) -> State:
        """Returns the state after clients have met the neighbours of a step, see `start`."""
        if "degree" not in state.extra:
            return state
        neighbours = _neighbours(teachers, graph).astype(jnp.float32)
        degree = jnp.maximum(state.extra["degree"], neighbours)
        return dataclasses.replace(state, extra={**state.extra, "degree": degree})

    def counts_of(self, state: State, teachers: Teachers, graph: Array) -> Array:
        """Returns what receivers take for the counts of their teachers, [K, T, H].

        No teacher has more than all walks of k steps could have brought it, if every client had as
        many neighbours as any has had so far. Where a step has some of n neighbours only, each of its T teachers stands for n/T of them:
        on a graph of unlike weights, by which teachers are drawn, the mixture is weighted by these.
        """
        counts = state.extra["counts"]
        if "adversaries" in state.extra:
            counts = state.extra["adversaries"].counts(counts)
            ranks, degree = jnp.arange(counts.shape[1]), state.extra["degree"].max()
            longest = (1 + degree) ** ranks * state.extra["counts"][:, 0].max()
            counts = jnp.minimum(counts, longest)
        found = counts[teachers.positions] * teachers.valid[..., None]
        if not self.samples_teachers:
            return found
        drawn = jnp.maximum(teachers.valid.sum(axis=1), 1)
        return found * (_neighbours(teachers, graph) / drawn)[:, None, None].astype(found.dtype)

    def loss(
        self,
        own: Array,
        candidates: Candidates,
        unlabelled: Array | None,
        main_heads: Candidates | None,
    ) -> Array:
        """Returns the public part of one client's loss of d, without its weight.

        Args:
          own: its d, [P, H].
          candidates: of its auxiliary heads.
          unlabelled: whether it has no private labels, bool []; None where all have some.
          main_heads: its teachers' main heads, where some clients are unlabelled.
        """
        loss = jax.nn.softplus(own[:, 0]).mean()
        if unlabelled is not None and main_heads is not None:
            loss = jnp.where(unlabelled, self._towards(own[:, :1], main_heads), loss)
        if own.shape[1] > 1:
            loss += self._towards(own[:, 1:], candidates)
        return loss

    def _towards(self, own: Array, candidates: Candidates) -> Array:
        """The loss by which d [P, R] learns the logarithm of the candidates' mixture of ratios."""
        known = candidates.counts.sum(axis=0) > 0  # type: ignore[union-attr]
        mixture = jax.lax.stop_gradient(log_mixture(candidates))
        if self.samples_teachers:
            # The logistic regression of d^0, with public samples weighted by the mixture's ratio in
            # the place of samples from the mixture: its minimum is the mean ratio.
            ratio = jnp.exp(mixture)
            losses = ratio * jax.nn.softplus(-own) + jax.nn.softplus(own)
        else:
            losses = _OF_REGRESSION * jnp.square(own - mixture)
        return jnp.where(known, losses.mean(axis=0), 0).sum()


def after(state: State, total: Array, presence: Presence | None) -> State:
    """Returns the state with new counts c^1 … c^m, where some knowledge was at hand.

    Args:
      state: the state of this step.
      total: Σ_j c_j^{k−1} over each client's candidates, [K, m].
      presence: who trains; None is everybody.
    """
    counts, learns = state.extra["counts"], total > 0
    if presence is not None:
        learns &= presence.trains[:, None]
    kept = jnp.where(learns, total, counts[:, 1:])
    counts = jnp.concatenate([counts[:, :1], kept.astype(counts.dtype)], axis=1)
    return dataclasses.replace(state, extra={**state.extra, "counts": counts})


def log_mixture(candidates: Candidates) -> Array:
    """Returns log( Σ_j c_j exp d_j(x) / Σ_j c_j ), [P, R]; 0 for heads of which nobody knows any."""
    total = knowledge(candidates).sum(axis=0)
    counts = candidates.counts.sum(axis=0)  # type: ignore[union-attr]
    return jnp.log(jnp.where(counts > 0, total, 1) / jnp.where(counts > 0, counts, 1))


def _neighbours(teachers: Teachers, graph: Array) -> Array:
    """Returns how many neighbours each client has, int [K]; in a pool there may be some who are away."""
    none = graph.shape[1]
    known = _different(jnp.where(teachers.valid, teachers.positions, none), none)
    return jnp.maximum((graph > 0).sum(axis=1), known)


def _different(positions: Array, none: int) -> Array:
    """Returns how many different positions below `none` are in each row of int [K, T], [K]."""
    ordered = jnp.sort(positions, axis=1)
    first = jnp.ones_like(ordered, bool).at[:, 1:].set(ordered[:, 1:] != ordered[:, :-1])
    return (first & (ordered < none)).sum(axis=1)


def configured(
    selection: str | TargetSelection,
    num_targets: int | str,
    pool_size: int,
    *,
    weight: float | None,
    weights: str,
    clip: float,
    divides: bool,
    cap: float | str,
    gradient: str,
) -> Density | None:
    """Returns how density ratios are trained; None if the target selection needs none.

    Args:
      selection: the target selection, or its name.
      num_targets: Δ, or "all" there are.
      pool_size: the models in a pool from which teachers are drawn; 0 is none.
      weight: None is 1 for a selection that needs density ratios, and no density ratios for others.
      weights, clip, divides, cap, gradient: see `Density`.

    Raises:
      ConfigError: a value is out of range.
    """
    for name, value, choices in (
        ("density_weights", weights, WEIGHTS),
        ("density_gradient", gradient, GRADIENTS),
    ):
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    if weight is not None and not weight > 0:
        raise ConfigError(
            f"density_weight must be positive, not {weight}; without density ratios leave it out, and "
            "choose another target_selection."
        )
    if not 0 < clip <= 30:
        raise ConfigError(f"density_clip must be above 0 and at most 30, not {clip}.")
    if cap not in ("none", "shares") and not (is_number(cap) and float(cap) >= 1):
        raise ConfigError(
            f"density_cap must be 'none', 'shares' or a number of at least 1, not {cap!r}."
        )
    rule = TARGET_SELECTIONS.get(selection) if isinstance(selection, str) else selection
    if weight is None and not any(rule is one for one in NEED_DENSITY):
        return None
    every = num_targets == "all" and pool_size == 0
    return Density(
        *(1.0 if weight is None else weight, weights, clip, divides, cap, gradient, not every)
    )
