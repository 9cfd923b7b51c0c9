"""Gossip SGD, the baselines DSGDm-N and QG-DSGDm-N (Lin et al., ICML 2021, arXiv 2102.04761).

Neighbours average their parameters, then each takes a step on its own data. With x_j the
parameters after the previous step and η_prev its learning rate (at first the base rate):

    r_i = γ (Σ_j W[i,j] x_j − x_i),   x_i' = x_i + r_i
    m_i ← m_i − r_i / η_prev                                   quasi-global momentum only
    g_i = ∇CE_i(x_i') + weight decay · x_i'
    m_i ← β m_i + g_i,   x_i ← x_i' − η (g_i + β m_i)          the clients' optimizer: Nesterov's

With an optimizer of Adam's kind both of its moments are quasi-global, as in the authors' code: with
d the move of x_i' from step to step, divided by its norm over all parameters that have moments,

    m_i ← β₁ m_i + (1 − β₁) d,   v_i ← β₂ v_i + (1 − β₂) d²      before Adam's own step from m_i, v_i

Where parts of the parameters have optimizers of their own, each momentum is that of its own
parameters, with their η; parameters without momentum are only averaged.

With several gossip rounds per step, the first line is repeated with the W of the step, and r_i is
the sum of the moves. All clients start from the same parameters. Momentum and normalisation
statistics are not sent. A client that does not take a step does not average in it either, which
preserves the mean.

On a directed graph there may be no W that preserves the mean. Push-sum (Nedić and Olshevsky, 2016;
with stochastic gradients Assran et al., ICML 2019) uses a matrix P whose columns sum to 1, and a
weight w_i for each client, initially 1, that is averaged in the same way; the quotient z_i is the
client's model:

    x_i ← x_i + γ (Σ_j P[i,j] x_j − x_i),   w_i ← w_i + γ (Σ_j P[i,j] w_j − w_i),   z_i = x_i / w_i
    x_i ← x_i − η (g_i + β m_i),   g_i = ∇CE_i(z_i) + weight decay · z_i

Push-sum averaging preserves Σ x_i / Σ w_i, the consensus model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import (
    algorithm_of,
    factory,
    require,
    require_at_least,
    require_label_smoothing,
)
from mhd_jax.core.trees import of_one_client, scaled, where_rows
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    Metrics,
    Participants,
    Presence,
    PyTree,
    State,
)
from mhd_jax.exchange.messages import Messages
from mhd_jax.topology.mixing import MIXINGS, push_sum_weights
from mhd_jax.training import momentum
from mhd_jax.training.groups import (
    apply_gradients,
    init_state,
    private_gradients,
    require_one_architecture,
)

_WAYS_BACK = (
    "where a way back is missing, the weights of push_sum vanish; choose an undirected graph "
    "without push_sum"
)
# Uniform weights need a regular graph, which a graph with failed edges seldom is.
_REGULAR = (
    "uniform weights keep the mean of the parameters on regular graphs alone; choose "
    "mixing='metropolis_hastings'"
)


_BETA_1, _BETA_2 = 0.9, 0.999  # of quasi-global moments of Adam
_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True, eq=False)
class Gossip:
    """The functions of both algorithms, and what they are made with, see `dsgd` and `qg_dsgd`."""

    averaging_rate: float
    mixing: str
    gossip_rounds: int
    label_smoothing: float
    quasi_global: bool = False
    mu: float | None = None
    push_sum: bool = False

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        """See `Algorithm.init`: the state in which all clients have the same parameters."""
        require_one_architecture(clients, "gossip averages parameters")
        state = init_state(key, clients, sample_batch, num_heads=1, same_start=True)
        opt_state, params = state.groups[0].opt_state, state.groups[0].params
        if self.quasi_global:
            momentum.require_own_momentum(opt_state, params)
        is_adam = self.quasi_global and momentum.has_moments(opt_state)
        if self.push_sum:
            return dataclasses.replace(state, extra={"push_weights": jnp.ones(state.num_clients)})
        if self.mu is None and not is_adam:
            return state
        zeros = jax.tree.map(jnp.zeros_like, params)
        second = {"second": zeros} if is_adam else {}
        return dataclasses.replace(state, extra={"mixed": params, "buffer": zeros, **second})

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        """See `Algorithm.train_step`."""
        state = self.gossip(state, graph, batch.presence)
        gradients, stats, losses = private_gradients(state, batch, self.label_smoothing)
        messages = {"weights": self.gossip_rounds * exchange.along_edges(graph)}
        metrics = Metrics(losses, messages, {"private_loss": losses})
        after = apply_gradients(state, gradients, stats)
        return (_step_of_sums(state, after) if self.push_sum else after), metrics

    def gossip(self, state: State, graph: Array, presence: Presence | None) -> State:
        """Returns the state with averaged parameters and, if quasi-global, changed momentum."""
        rate, rounds = self.averaging_rate, self.gossip_rounds
        if self.push_sum:
            return _pushed(state, push_sum_weights(graph), rate, rounds)
        weights = MIXINGS[self.mixing](graph)
        if "second" in state.extra:
            state = _mixed(state, weights, rate, rounds, quasi_global=False)
            return _adams_moments(state, _BETA_1 if self.mu is None else self.mu, presence)
        state = _mixed(state, weights, rate, rounds, self.quasi_global and self.mu is None)
        return state if self.mu is None else _paper_momentum(state, self.mu, presence)

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        """See `Algorithm.message`."""
        del batch
        sent = {"weights": of_one_client(group.params)}
        if self.push_sum:
            sent["push-sum weight"] = of_one_client(state.extra["push_weights"])
        return {"weights": sent}


@factory
def dsgd(
    averaging_rate: float = 1.0,
    mixing: str = "uniform",
    gossip_rounds: int = 1,
    push_sum: bool = False,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns gossip SGD with local momentum (DSGDm-N).

    Args:
      averaging_rate: γ, in (0, 1].
      mixing: "uniform" (1 / (degree + 1)) or "metropolis_hastings".
      gossip_rounds: the number of averages in a step; each of them takes a message per edge.
      push_sum: whether to average by push-sum, for directed graphs, which must be strongly
        connected: each client sends equal shares to itself and to all clients that receive from
        it, and `mixing` is not used.
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1), 0 as in the
        paper. Comparisons on the command line give all algorithms 0.1.
    """
    require(
        not push_sum or mixing == "uniform",
        f"push_sum has weights of its own, and no mixing {mixing!r}; leave one of them out.",
    )
    return gossip_with(
        Gossip(averaging_rate, mixing, gossip_rounds, label_smoothing, push_sum=push_sum)
    )


@factory
def qg_dsgd(
    averaging_rate: float = 1.0,
    mixing: str = "uniform",
    mu: float | None = None,
    gossip_rounds: int = 1,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns gossip SGD with quasi-global momentum (QG-DSGDm-N).

    Args:
      averaging_rate, mixing, gossip_rounds, label_smoothing: as for `dsgd`.
      mu: None uses the momentum m_i ← m_i − r_i / η_prev of the CCL authors' code. A number in
        [0, 1) uses the paper's Algorithm 1: the momentum of each local step starts from the
        buffer m̂ ← μ m̂ + (1 − μ)(x^t − x^{t+1}) / η, where x are parameters after mixing.
    """
    require(mu is None or 0 <= mu < 1, f"mu must be in [0, 1), not {mu}.")
    return gossip_with(
        Gossip(averaging_rate, mixing, gossip_rounds, label_smoothing, quasi_global=True, mu=mu)
    )


def gossip_with(parts: Gossip, **declared: Any) -> Algorithm:
    """Returns the algorithm whose functions are methods of `parts`.

    Args:
      parts: the functions, with their settings.
      **declared: what an algorithm that extends gossip declares besides, see `Algorithm`.

    Raises:
      ConfigError: a setting of gossip is out of range.
    """
    rate, push_sum = parts.averaging_rate, parts.push_sum
    require(0 < rate <= 1, f"averaging_rate must be in (0, 1], not {rate}.")
    require(
        parts.mixing in MIXINGS,
        f"mixing must be one of {', '.join(MIXINGS)}, not {parts.mixing!r}.",
    )
    require_at_least(1, gossip_rounds=parts.gossip_rounds)
    require_label_smoothing(parts.label_smoothing)
    needs = "" if parts.mixing == "metropolis_hastings" else _REGULAR
    return algorithm_of(
        parts,
        undirected=not push_sum,
        strongly_connected=push_sum,
        consensus=_push_weights if push_sum else _equal_weights,
        nesterov=True,
        needs_everyone=_WAYS_BACK if push_sum else needs,
        **{"needs_classes": "", **declared},
    )


def _equal_weights(state: State) -> Array:
    """Returns equal weights for `Algorithm.consensus`: doubly stochastic mixing keeps the mean."""
    return jnp.ones(state.num_clients)


def _push_weights(state: State) -> Array:
    """Returns weights w_i for `Algorithm.consensus`: push-sum keeps Σ x_i / Σ w_i.

    This is the weighted mean Σ w_i z_i / Σ w_i of the clients' models z_i.
    """
    return state.extra["push_weights"]


def _mixed(
    state: State, weights: Array, averaging_rate: float, rounds: int, quasi_global: bool
) -> State:
    """Applies x' = x + γ (W x − x), and m ← m − (x' − x) / η_prev if `quasi_global`.

    Args:
      state: a state of one group.
      weights: W, row-stochastic [K, K].
      averaging_rate: γ.
      rounds: the number of gossip rounds.
      quasi_global: whether to change the momentum m.
    """
    (group,) = state.groups
    params, moves = _rounds(group.params, weights, averaging_rate, rounds)
    opt_state = group.opt_state
    if quasi_global:
        steps = momentum.over_rates(opt_state, moves)
        opt_state = momentum.change(opt_state, "trace", jnp.subtract, steps)
    group = dataclasses.replace(group, params=params, opt_state=opt_state)
    return dataclasses.replace(state, groups=(group,))


def _rounds(
    tree: PyTree, weights: Array, averaging_rate: float, rounds: int
) -> tuple[PyTree, PyTree]:
    """Returns x [K, ...] after `rounds` times x ← x + γ (W x − x), and the total change of x."""

    def once(_: Array, before: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        now, moved = before
        means = exchange.average_neighbours(now, weights)
        moves = jax.tree.map(lambda mean, own: averaging_rate * (mean - own), means, now)
        return jax.tree.map(jnp.add, (now, moved), (moves, moves))

    return jax.lax.fori_loop(0, rounds, once, (tree, jax.tree.map(jnp.zeros_like, tree)))


def _pushed(state: State, shares: Array, averaging_rate: float, rounds: int) -> State:
    """Applies push-sum: x' = x + γ (P x − x) and w' = w + γ (P w − w), `rounds` times.

    Args:
      state: a state of one group, whose parameters are the quotients z = x / w.
      shares: P, column-stochastic [K, K].
      averaging_rate: γ.
      rounds: the number of gossip rounds.
    """
    (group,) = state.groups
    weights = state.extra["push_weights"]
    sums = scaled(group.params, weights)
    (sums, weights), _ = _rounds((sums, weights), shares, averaging_rate, rounds)
    group = dataclasses.replace(group, params=scaled(sums, 1 / weights))
    return dataclasses.replace(state, groups=(group,), extra={"push_weights": weights})


def _step_of_sums(before: State, after: State) -> State:
    """Applies the optimizer's step Δ to the sums x = w z, so that the quotients z move by Δ / w."""
    (old,), (group,) = before.groups, after.groups
    steps = jax.tree.map(jnp.subtract, group.params, old.params)
    steps = scaled(steps, 1 / before.extra["push_weights"])
    group = dataclasses.replace(group, params=jax.tree.map(jnp.add, old.params, steps))
    return dataclasses.replace(after, groups=(group,))


def _paper_momentum(state: State, mu: float, presence: Presence | None) -> State:
    """Sets the momentum of the local step to m̂ ← μ m̂ + (1 − μ)(x^t − x^{t+1}) / η.

    A client that does not train in a step keeps its m̂ and x^t.
    """
    (group,) = state.groups
    moves = jax.tree.map(jnp.subtract, state.extra["mixed"], group.params)
    steps = momentum.over_rates(group.opt_state, moves)
    buffer = jax.tree.map(lambda old, d: mu * old + (1 - mu) * d, state.extra["buffer"], steps)
    opt_state = momentum.change(group.opt_state, "trace", _replaced, buffer)
    group = dataclasses.replace(group, opt_state=opt_state)
    state = _remembering(state, presence, {"mixed": group.params, "buffer": buffer})
    return dataclasses.replace(state, groups=(group,))


def _adams_moments(state: State, beta_1: float, presence: Presence | None) -> State:
    """Sets the moments of the local step by the move from x^t to x^{t+1}, divided by its norm.

    A client that does not train in a step keeps its moments and x^t.
    """
    (group,) = state.groups
    moves = jax.tree.map(jnp.subtract, state.extra["mixed"], group.params)
    moves = momentum.owned(group.opt_state, moves)
    norms = jax.vmap(optax.tree_utils.tree_norm)(moves)
    moves = scaled(moves, 1 / (norms + _EPSILON))

    def mean(old: Array, new: Array, beta: float) -> Array:
        return beta * old + (1 - beta) * new

    first = jax.tree.map(lambda old, d: mean(old, d, beta_1), state.extra["buffer"], moves)
    second = jax.tree.map(lambda old, d: mean(old, d * d, _BETA_2), state.extra["second"], moves)
    opt_state = momentum.change(group.opt_state, "mu", _replaced, first)
    opt_state = momentum.change(opt_state, "nu", _replaced, second)
    group = dataclasses.replace(group, opt_state=opt_state)
    remembered = {"mixed": group.params, "buffer": first, "second": second}
    state = _remembering(state, presence, remembered)
    return dataclasses.replace(state, groups=(group,))


def _remembering(state: State, presence: Presence | None, changed: dict[str, PyTree]) -> State:
    """Returns the state with changed entries of `extra`, for the clients that train."""
    if presence is not None:
        before = {name: state.extra[name] for name in changed}
        changed = where_rows(presence.trains, changed, before)
    return dataclasses.replace(state, extra={**state.extra, **changed})


def _replaced(old: Array, new: Array) -> Array:
    del old
    return new
