"""Gossip SGD, the baselines DSGDm-N and QG-DSGDm-N (Lin et al., ICML 2021, arXiv 2102.04761).

Neighbours average their parameters, then each takes a step on its own data. With x_j the
result of the previous step's update and η_prev its learning rate (at first the base rate):

    r_i = γ (Σ_j W[i,j] x_j − x_i),   x_i' = x_i + r_i
    m_i ← m_i − r_i / η_prev                                   quasi-global momentum only
    g_i = ∇CE_i(x_i') + weight decay · x_i'
    m_i ← β m_i + g_i,   x_i ← x_i' − η (g_i + β m_i)          the clients' optimizer: Nesterov's

With several gossip rounds a step, the first line is taken that many times with the step's W, and r_i
is the whole move. All clients start from the same parameters. Momentum and normalisation statistics stay at home. Who
does not take a step does not average in it either, which keeps the mean.

On directed graphs no W may keep the mean. Push-sum (Nedić and Olshevsky, 2016; on stochastic gradients
Assran et al., ICML 2019) has shares P whose columns add up to 1, and a weight w_i for each client, at
first 1, that goes the same way; the quotient z_i is the client's model:

    x_i ← x_i + γ (Σ_j P[i,j] x_j − x_i),   w_i ← w_i + γ (Σ_j P[i,j] w_j − w_i),   z_i = x_i / w_i
    x_i ← x_i − η (g_i + β m_i),   g_i = ∇CE_i(z_i) + weight decay · z_i

What it keeps is Σ x_i / Σ w_i, the consensus model.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import factory, require, require_label_smoothing
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import of_one_client, where_rows
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
from mhd_jax.training import optim
from mhd_jax.training.groups import (
    apply_gradients,
    init_state,
    predict,
    private_gradients,
    require_one_architecture,
)

_WAYS_BACK = (
    "where a way back is missing, the weights of push_sum vanish; choose an undirected graph "
    "without push_sum"
)


@factory
def dsgd(
    averaging_rate: float = 1.0,
    mixing: str = "uniform",
    gossip_rounds: int = 1,
    push_sum: bool = False,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Gossip SGD with the clients' own momentum (DSGDm-N).

    Args:
      averaging_rate: γ, in (0, 1].
      mixing: "uniform" (1 / (degree + 1)) or "metropolis_hastings".
      gossip_rounds: how often neighbours average in a step; each time is a message.
      push_sum: whether to average by push-sum, for directed graphs: each client shares equally among
        itself and those who receive from it, and `mixing` plays no part. What goes out must be able to come
        back: the graph is strongly connected.
      label_smoothing: of the private cross-entropy, in [0, 1); 0 as in the paper. Comparisons on the
        command line give all algorithms 0.1.
    """
    require(
        not push_sum or mixing == "uniform",
        f"push_sum has weights of its own, and no mixing {mixing!r}; leave one of them out.",
    )
    return _gossip(
        averaging_rate,
        mixing,
        gossip_rounds,
        label_smoothing,
        quasi_global=False,
        mu=None,
        push_sum=push_sum,
    )


@factory
def qg_dsgd(
    averaging_rate: float = 1.0,
    mixing: str = "uniform",
    mu: float | None = None,
    gossip_rounds: int = 1,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Gossip SGD with quasi-global momentum (QG-DSGDm-N).

    Args:
      averaging_rate, mixing, gossip_rounds, label_smoothing: as for `dsgd`.
      mu: None takes the form above, that of the CCL authors' code. A number in [0, 1) takes the
        paper's Algorithm 1: m̂ ← μ m̂ + (1 − μ)(x^t − x^{t+1}) / η of parameters after mixing is
        the buffer from which each local step starts.
    """
    require(mu is None or 0 <= mu < 1, f"mu must be in [0, 1), not {mu}.")
    return _gossip(averaging_rate, mixing, gossip_rounds, label_smoothing, quasi_global=True, mu=mu)


def _gossip(
    averaging_rate: float,
    mixing: str,
    gossip_rounds: int,
    label_smoothing: float,
    quasi_global: bool,
    mu: float | None,
    push_sum: bool = False,
) -> Algorithm:
    check_settings(averaging_rate, mixing, gossip_rounds, label_smoothing)

    def init(key: Array, clients: Participants, sample_batch: Batch) -> State:
        state = init_gossip(key, clients, sample_batch, quasi_global)
        if push_sum:
            return dataclasses.replace(state, extra={"push_weights": jnp.ones(state.num_clients)})
        if mu is None:
            return state
        params = state.groups[0].params
        zeros = jax.tree.map(jnp.zeros_like, params)
        return dataclasses.replace(state, extra={"mixed": params, "buffer": zeros})

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        if push_sum:
            state = _pushed(state, push_sum_weights(graph), averaging_rate, gossip_rounds)
        else:
            weights = MIXINGS[mixing](graph)
            state = mix(state, weights, averaging_rate, gossip_rounds, quasi_global and mu is None)
        if mu is not None:
            state = _paper_momentum(state, mu, batch.presence)
        gradients, stats, losses = private_gradients(state, batch, label_smoothing)
        messages = {"weights": gossip_rounds * exchange.along_edges(graph)}
        metrics = {"loss": losses, "private_loss": losses, "messages": messages}
        after = apply_gradients(state, gradients, stats)
        return (_step_of_sums(state, after) if push_sum else after), metrics

    def message(state: State, batch: Batch, group: GroupState) -> Messages:
        del batch
        sent = {"weights": of_one_client(group.params)}
        if push_sum:
            sent["push-sum weight"] = of_one_client(state.extra["push_weights"])
        return {"weights": sent}

    return Algorithm(
        init=init,
        train_step=train_step,
        predict=predict,
        message=message,
        undirected=not push_sum,
        strongly_connected=push_sum,
        consensus=_push_weights if push_sum else equal_weights,
        nesterov=True,
        needs_everyone=_WAYS_BACK if push_sum else needs_everyone(mixing),
    )


def check_settings(
    averaging_rate: float, mixing: str, gossip_rounds: int, label_smoothing: float
) -> None:
    """Raises `ConfigError` for settings of gossip that cannot work."""
    require(0 < averaging_rate <= 1, f"averaging_rate must be in (0, 1], not {averaging_rate}.")
    require(mixing in MIXINGS, f"mixing must be one of {', '.join(MIXINGS)}, not {mixing!r}.")
    require(gossip_rounds >= 1, f"gossip_rounds must be at least 1, not {gossip_rounds}.")
    require_label_smoothing(label_smoothing)


def equal_weights(state: State) -> Array:
    """See `Algorithm.consensus`: the plain mean, which doubly stochastic mixing keeps."""
    return jnp.ones(state.num_clients)


def _push_weights(state: State) -> Array:
    """See `Algorithm.consensus`: Σ x_i / Σ w_i, which push-sum keeps, is Σ w_i z_i / Σ w_i."""
    return state.extra["push_weights"]


def needs_everyone(mixing: str) -> str:
    """See `Algorithm.needs_everyone`: what is left of a graph is seldom regular."""
    if mixing == "metropolis_hastings":
        return ""
    return (
        "uniform weights keep the mean of the parameters on regular graphs alone; choose "
        "mixing='metropolis_hastings'"
    )


def init_gossip(
    key: Array, clients: Participants, sample_batch: Batch, quasi_global: bool
) -> State:
    """Clients of one architecture that start from the same parameters.

    Raises:
      ConfigError: several architectures, or (`quasi_global`) an optimizer without momentum.
    """
    require_one_architecture(clients, "gossip averages parameters")
    state = init_state(key, clients, sample_batch, num_heads=1, same_start=True)
    if quasi_global and not optim.has_momentum(state.groups[0].opt_state):
        raise ConfigError(
            "quasi-global momentum needs mhd_jax.optim.SGD with momentum above 0 (--momentum=0.9)."
        )
    return state


def mix(
    state: State, weights: Array, averaging_rate: float, rounds: int, quasi_global: bool
) -> State:
    """x' = x + γ (W x − x), `rounds` times, and with `quasi_global` m ← m − (x' − x) / η_prev.

    Args:
      state: of one group.
      weights: W, row-stochastic [K, K].
    """
    (group,) = state.groups
    params, moves = _rounds(group.params, weights, averaging_rate, rounds)
    opt_state = group.opt_state
    if quasi_global:
        opt_state = optim.change_momentum(
            opt_state, lambda m, move, rate: m - _scaled(move, 1 / rate), moves
        )
    group = dataclasses.replace(group, params=params, opt_state=opt_state)
    return dataclasses.replace(state, groups=(group,))


def _rounds(
    tree: PyTree, weights: Array, averaging_rate: float, rounds: int
) -> tuple[PyTree, PyTree]:
    """Arrays x [K, ...] after x ← x + γ (W x − x), so many times; and how far they moved in all."""

    def once(_: Array, before: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        now, moved = before
        means = exchange.average_neighbours(now, weights)
        moves = jax.tree.map(lambda mean, own: averaging_rate * (mean - own), means, now)
        return jax.tree.map(jnp.add, (now, moved), (moves, moves))

    return jax.lax.fori_loop(0, rounds, once, (tree, jax.tree.map(jnp.zeros_like, tree)))


def _pushed(state: State, shares: Array, averaging_rate: float, rounds: int) -> State:
    """x' = x + γ (P x − x), and w' alike; the state's parameters are the quotients z = x / w.

    Args:
      state: of one group.
      shares: P, column-stochastic [K, K].
    """
    (group,) = state.groups
    weights = state.extra["push_weights"]
    sums = _scaled(group.params, weights)
    (sums, weights), _ = _rounds((sums, weights), shares, averaging_rate, rounds)
    group = dataclasses.replace(group, params=_scaled(sums, 1 / weights))
    return dataclasses.replace(state, groups=(group,), extra={"push_weights": weights})


def _step_of_sums(before: State, after: State) -> State:
    """The optimizer's step as one of the sums x = w z: the quotients z move 1 / w of it."""
    (old,), (group,) = before.groups, after.groups
    steps = jax.tree.map(jnp.subtract, group.params, old.params)
    steps = _scaled(steps, 1 / before.extra["push_weights"])
    group = dataclasses.replace(group, params=jax.tree.map(jnp.add, old.params, steps))
    return dataclasses.replace(after, groups=(group,))


def _paper_momentum(state: State, mu: float, presence: Presence | None) -> State:
    """m̂ ← μ m̂ + (1 − μ)(x^t − x^{t+1}) / η, from which the local step's momentum starts.

    Steps are those that the client takes itself.
    """
    (group,) = state.groups
    rate = optim.learning_rate(group.opt_state)
    buffer = jax.tree.map(
        lambda old, before, now: mu * old + (1 - mu) * _scaled(before - now, 1 / rate),
        state.extra["buffer"],
        state.extra["mixed"],
        group.params,
    )
    opt_state = optim.change_momentum(group.opt_state, lambda m, new, rate: new, buffer)
    group = dataclasses.replace(group, opt_state=opt_state)
    extra = {"mixed": group.params, "buffer": buffer}
    if presence is not None:
        extra = where_rows(presence.trains, extra, state.extra)
    return dataclasses.replace(state, groups=(group,), extra=extra)


def _scaled(tree: PyTree, by: Array) -> PyTree:
    """Arrays [K, …] times a number of each client's [K]."""
    return jax.tree.map(lambda a: a * by.reshape((-1,) + (1,) * (a.ndim - 1)).astype(a.dtype), tree)
