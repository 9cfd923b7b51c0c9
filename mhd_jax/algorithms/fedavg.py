"""Federated averaging (McMahan et al., AISTATS 2017).

Every client trains on its own data; after each round of `local_steps` steps all parameters become

    θ_i ← Σ_j n_j θ_j / Σ_j n_j,

weighted by the sizes n_j of the labelled private sets, normalisation statistics included. A server
averages, so that the graph is not used. Clients start each round with momentum 0, like the paper's
clients, which keep no state between rounds.

A round has the same number of steps for all clients. With `local_epochs` it is the number in which
the average client makes that many passes over its data; in the paper, clients with more data take
more steps.

Where clients may be away, the server keeps the last average. A client loads this average before its
next step, and contributes to the next average if it has taken a step since then and can be reached.
The progress of a client that misses an average is lost.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import (
    algorithm_of,
    factory,
    require,
    require_at_least,
    require_label_smoothing,
)
from mhd_jax.core.trees import of_one_client, where_rows
from mhd_jax.core.types import (
    Algorithm,
    Batch,
    GroupState,
    LocalSteps,
    Metrics,
    Participants,
    Presence,
    PyTree,
    State,
)
from mhd_jax.exchange.messages import Messages
from mhd_jax.training import momentum
from mhd_jax.training.groups import (
    apply_gradients,
    finite_params,
    init_state,
    keep_others,
    private_gradients,
    require_one_architecture,
)
from mhd_jax.training.passes import private_step

LOCAL_STEPS = 10
_MOST_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class _FedAvg:
    """The functions of the algorithm, and what they are made with, see `fedavg`."""

    local_steps: int
    local_epochs: float | None
    reset_momentum: bool
    label_smoothing: float

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        require_one_architecture(clients, "fedavg averages parameters")
        state = init_state(key, clients, sample_batch, num_heads=1, same_start=True)
        sizes = jnp.asarray(clients.labelled_counts().sum(axis=1), jnp.float32)
        takes_part = jnp.asarray(clients.label_counts().sum(axis=1) > 0, jnp.int32)
        extra = {"sizes": sizes, "takes_part": takes_part}
        if self.local_epochs is not None:
            steps = steps_of_epochs(self.local_epochs, clients, sample_batch.labels.shape[1])
            extra["round_steps"] = jnp.int32(steps)
        if sample_batch.presence is not None:
            (group,) = state.groups
            average = jax.tree.map(lambda a: a[0], (group.params, group.stats))
            extra |= {"average": average, "is_current": jnp.zeros(sizes.shape, bool)}
        return dataclasses.replace(state, extra=extra)

    def steps_of_round(self, state: State) -> Array | int:
        """Returns the number of steps of a round."""
        # With a number in the state, runs computed jointly would evaluate both branches of `cond`.
        return self.local_steps if self.local_epochs is None else state.extra["round_steps"]

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        del graph
        if batch.presence is not None:
            return self.step_of_some(state, batch, batch.presence)
        state, metrics = self.local_step(state, batch)
        ends = state.step % self.steps_of_round(state) == 0
        nothing = {"weights": jnp.zeros(state.num_clients, jnp.int32)}
        state, messages = jax.lax.cond(ends, self.exchange, lambda state: (state, nothing), state)
        return state, dataclasses.replace(metrics, messages=messages)

    def local_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """See `LocalSteps.step`."""
        return private_step(state, batch, self.label_smoothing)

    def until_exchange(self, state: State) -> Array:
        """See `LocalSteps.until_exchange`."""
        round_steps = self.steps_of_round(state)
        return round_steps - state.step % round_steps

    def exchange(self, state: State) -> tuple[State, dict[str, Array]]:
        """Ends a round: returns the state of averaged clients, and the messages."""
        sizes = state.extra["sizes"]
        (group,) = state.groups
        models = group.params, group.stats
        average = exchange.average_for_all(models, sizes / sizes.sum())
        state = self.restarted(_with_models(state, average), jnp.ones(state.num_clients, bool))
        # One message from every client with labels to the server, and one back to every client.
        return state, {"weights": state.extra["takes_part"] + (sizes > 0)}

    def step_of_some(self, state: State, batch: Batch, presence: Presence) -> tuple[State, Metrics]:
        """Returns the state and metrics after a step of the clients that are present."""
        sizes, takes_part = state.extra["sizes"], state.extra["takes_part"]
        fetches = presence.trains & ~state.extra["is_current"]
        round_steps = self.steps_of_round(state)
        down = (fetches & (state.step >= round_steps)).astype(jnp.int32)  # no message in round 1
        before = self.up_to_date(state, fetches)
        gradients, stats, losses = private_gradients(before, batch, self.label_smoothing)
        state = keep_others(presence.trains, apply_gradients(before, gradients, stats), before)
        averages = state.step % round_steps == 0
        finite = finite_params(state)  # a client that diverges neither sends nor loads an average
        sends = presence.reachable & state.extra["is_current"] & finite
        takes = presence.trains & finite
        up = averages & sends & (sizes > 0)
        down = (down + (averages & takes)) * takes_part
        state = jax.lax.cond(
            averages,
            lambda state: self.up_to_date(_averaged_by_some(state, sends), takes),
            lambda state: state,
            state,
        )
        return state, Metrics(losses, {"weights": up + down}, {"private_loss": losses})

    def up_to_date(self, state: State, who: Array) -> State:
        """Returns the state in which some clients, bool [K], start from the server's average."""
        return self.restarted(_with_average(state, who), who)

    def restarted(self, state: State, who: Array) -> State:
        """Returns the state in which some clients, bool [K], begin a round."""
        return _without_momentum(state, who) if self.reset_momentum else state

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        del state, batch
        return {"weights": {"weights": of_one_client((group.params, group.stats))}}


@factory
def fedavg(
    local_steps: int = LOCAL_STEPS,
    local_epochs: float | None = None,
    reset_momentum: bool = True,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns federated averaging (FedAvg).

    Args:
      local_steps: the number of steps of a round.
      local_epochs: the length of a round in passes over the private data of the average client,
        instead of `local_steps`.
      reset_momentum: whether momentum, or the moments of Adam and its kind, start at 0 in each
        round; otherwise clients keep theirs between rounds.
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1), 0 as in the
        paper. Comparisons on the command line give all algorithms 0.1.
    """
    require_at_least(1, local_steps=local_steps)
    require(
        local_epochs is None or local_epochs > 0,
        f"local_epochs must be positive, not {local_epochs}.",
    )
    require(
        local_epochs is None or local_steps == LOCAL_STEPS,
        "give local_steps or local_epochs, not both.",
    )
    require_label_smoothing(label_smoothing)
    parts = _FedAvg(local_steps, local_epochs, reset_momentum, label_smoothing)
    local = LocalSteps(parts.local_step, parts.until_exchange, parts.exchange)
    return algorithm_of(parts, local=local, needs_classes="")


def steps_of_epochs(epochs: float, clients: Participants, batch_size: int) -> int:
    """Returns the number of steps, at least 1, of `epochs` passes over the average client's data.

    Only clients with labels count, because the others are not averaged.
    """
    sizes = clients.labelled_counts().sum(axis=1)
    steps = float(epochs) * float(sizes[sizes > 0].mean()) / batch_size
    return max(1, round(min(steps, _MOST_STEPS)))


def _averaged_by_some(state: State, sends: Array) -> State:
    """Returns the state with a new server average over `sends`, bool [K], not loaded by any yet."""
    (group,) = state.groups
    weights = jnp.where(sends, state.extra["sizes"], 0)
    models = group.params, group.stats
    models = where_rows(sends, models, jax.tree.map(jnp.zeros_like, models))
    shares = weights / jnp.maximum(weights.sum(), 1)
    average = jax.tree.map(
        lambda new, old: jnp.where(weights.sum() > 0, new[0], old),
        exchange.average(models, shares[None]),
        state.extra["average"],
    )
    extra = {**state.extra, "average": average, "is_current": jnp.zeros_like(sends)}
    return dataclasses.replace(state, extra=extra)


def _with_average(state: State, who: Array) -> State:
    """Replaces the parameters of some clients, bool [K], by the server's average."""
    (group,) = state.groups
    own = (group.params, group.stats)
    average = jax.tree.map(
        lambda a, model: jnp.broadcast_to(a, model.shape), state.extra["average"], own
    )
    extra = {**state.extra, "is_current": state.extra["is_current"] | who}
    return dataclasses.replace(_with_models(state, where_rows(who, average, own)), extra=extra)


def _without_momentum(state: State, who: Array) -> State:
    """Sets the momentum or the moments of some clients, bool [K], to 0, if the optimizer has any."""
    (group,) = state.groups
    opt_state = momentum.emptied(group.opt_state, lambda m: where_rows(who, 0 * m, m))
    return dataclasses.replace(state, groups=(dataclasses.replace(group, opt_state=opt_state),))


def _with_models(state: State, models: PyTree) -> State:
    """Returns the state with new parameters and statistics [K, ...]."""
    (group,) = state.groups
    params, stats = models
    return dataclasses.replace(
        state, groups=(dataclasses.replace(group, params=params, stats=stats),)
    )
