"""Simulated faults: lost links, clients that are offline, slow, late, or that diverge.

`Faults` holds the settings; the faults of one step are pure functions of (key, step, client ids).
Algorithms see a graph without the failed edges, and the step's `Presence`. A client that does not
train in a step keeps its parameters, statistics and optimizer state; its learning-rate schedule
counts only the steps that it takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from mhd_jax.core import random
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import where_rows
from mhd_jax.core.types import Algorithm, Metrics, Presence, State
from mhd_jax.core.validation import is_integer, is_number, require_kind
from mhd_jax.training import groups

ON_NONFINITE = ("stop", "quarantine")
_NEVER = 2**31 - 1
ByClient = Mapping[int, int] | Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Faults:
    """Settings of the simulated faults: what fails, and how often.

    All draws derive from the run's seed.

    Attributes:
      link_loss: the probability that a message j → i is lost, independently for each step and
        each ordered pair of clients. If clients average over the graph, both directions are lost
        together.
      offline: the share of time for which each client is offline: it neither trains nor teaches.
      offline_steps: the length of a spell. Each spell of a client is offline with probability
        `offline`; spells start at different steps for different clients.
      offline_trains: whether clients go on training while they are offline, without teachers.
      stragglers: clients that take only every n-th step, {client: n}. In between a straggler
        teaches with its latest parameters, but does not average.
      participation: the share of the clients that take part in a round, drawn anew for each; the
        others neither train nor teach.
      participation_steps: the steps of a round.
      joins: {client: step}: the client is absent before this step.
      leaves: {client: step}: the client is absent from this step on.

    Raises:
      ConfigError: a value out of range.
    """

    link_loss: float = 0.0
    offline: float = 0.0
    offline_steps: int = 50
    offline_trains: bool = False
    stragglers: ByClient = ()
    participation: float = 1.0
    participation_steps: int = 10
    joins: ByClient = ()
    leaves: ByClient = ()

    def __post_init__(self):
        require_kind("offline_trains", "bool", self.offline_trains)
        for name, value in (("link_loss", self.link_loss), ("offline", self.offline)):
            _require(is_number(value) and 0 <= value < 1, f"{name} must be in [0, 1)", value)
        share = self.participation
        _require(is_number(share) and 0 < share <= 1, "participation must be in (0, 1]", share)
        for name in ("offline_steps", "participation_steps"):
            _require_step(name, getattr(self, name), least=1)
        for name, least in (("stragglers", 1), ("joins", 0), ("leaves", 0)):
            pairs = _pairs(name, getattr(self, name))
            for client, value in pairs:
                _require_step(f"{name} of client {client}", value, least)
            object.__setattr__(self, name, pairs)  # hashable
        joins = dict(self.joins)
        for client, step in self.leaves:
            if step <= joins.get(client, -1):
                raise ConfigError(
                    f"client {client} leaves at step {step}, before it joins at {joins[client]}; "
                    "let it leave later."
                )

    def plan(self, num_clients: int, both_ways: bool) -> FaultPlan:
        """Returns the settings as arrays for K clients.

        Args:
          num_clients: K.
          both_ways: whether clients average over the graph, so that links fail in both directions.

        Raises:
          ConfigError: the settings name a client outside 0 to K − 1.
        """

        def by_client(name: str, otherwise: int) -> Array:
            values = np.full(num_clients, otherwise, np.int32)
            for client, value in getattr(self, name):
                if not 0 <= client < num_clients:
                    raise ConfigError(
                        f"{name} names client {client}, but the clients are 0 to {num_clients - 1}."
                    )
                values[client] = value
            return jnp.asarray(values)

        return FaultPlan(
            link_loss=jnp.float32(self.link_loss),
            both_ways=jnp.asarray(both_ways),
            offline=jnp.float32(self.offline),
            offline_steps=jnp.int32(self.offline_steps),
            offline_trains=jnp.asarray(self.offline_trains),
            every=by_client("stragglers", 1),
            participants=jnp.int32(max(1, math.floor(self.participation * num_clients + 0.5))),
            participation_steps=jnp.int32(self.participation_steps),
            joins=by_client("joins", 0),
            leaves=by_client("leaves", _NEVER),
        )


@struct.dataclass
class FaultPlan:
    """`Faults` as traced arrays: scalars; `every`, `joins`, `leaves` by client id, int32 [K].

    Other values with the same K run in the same compiled program.
    """

    link_loss: Array
    both_ways: Array
    offline: Array
    offline_steps: Array
    offline_trains: Array
    every: Array
    participants: Array
    participation_steps: Array
    joins: Array
    leaves: Array


@struct.dataclass
class Tally:
    """Counts of the faults that happened, by client.

    Attributes:
      trained: steps that each client took since the last evaluation, int32 [K].
      missed: steps that each client missed since the start, int32 [K].
      unreachable: steps at which nobody could receive from the client since the start, int32 [K].
      lost: edges to each client on which a message was lost since the start, int32 [K], without
        edges from or to absent clients.
      quarantined: the step at which each client's loss or parameters ceased to be finite, −1 for
        finite ones, int32 [K]; None if non-finite values stop the run.
    """

    trained: Array
    missed: Array
    unreachable: Array
    lost: Array
    quarantined: Array | None

    @classmethod
    def start(cls, num_clients: int, *, quarantine: bool) -> Tally:
        """Returns the tally at the start of a run."""
        zeros = jnp.zeros(num_clients, jnp.int32)
        return cls(zeros, zeros, zeros, zeros, zeros - 1 if quarantine else None)


def presence(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Presence:
    """Draws which clients train and which are reachable at a step.

    Args:
      plan: the run's.
      key: the run's base key.
      client_ids: int32 [K].
      step: int32 [].
    """
    joined, left = plan.joins[client_ids] <= step, plan.leaves[client_ids] <= step
    here = joined & ~left & _takes_part(plan, key, client_ids, step)
    online = ~_is_offline(plan, key, client_ids, step)
    in_turn = step % plan.every[client_ids] == 0
    return Presence(trains=here & (online | plan.offline_trains) & in_turn, reachable=here & online)


def links(there: Presence, both_ways: Array | bool = False) -> Array:
    """Returns whether client i can learn from client j, bool [K, K]; `both_ways`: and j from i."""
    one_way = (there.trains & there.reachable)[:, None] & there.reachable[None, :]
    return one_way & (one_way.T | ~jnp.asarray(both_ways))


def lost_links(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Array:
    """Draws which messages i ← j are lost at a step, bool [K, K]."""
    keys = random.client_keys(key, random.Purpose.LINK_LOSS, client_ids, step)
    draws = jax.vmap(lambda key: jax.random.uniform(key, client_ids.shape))(keys)[:, client_ids]
    # If both directions fail together, the draw of the client with the lower id decides.
    own = (client_ids[:, None] < client_ids[None, :]) | ~plan.both_ways
    return jnp.where(own, draws, draws.T) < plan.link_loss


def _is_offline(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Array:
    """Draws whether each client's current spell is offline, bool [K]."""
    keys = random.client_keys(key, random.Purpose.OFFLINE, client_ids)

    def one_client(key: Array) -> Array:
        begins = jax.random.randint(jax.random.fold_in(key, 0), (), 0, plan.offline_steps)
        spell = (step + begins) // plan.offline_steps
        return jax.random.uniform(jax.random.fold_in(key, 1 + spell)) < plan.offline

    return jax.vmap(one_client)(keys)


def _takes_part(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Array:
    """Draws which clients participate in the current round, bool [K]."""
    this_round = step // plan.participation_steps
    keys = random.client_keys(key, random.Purpose.PARTICIPATION, client_ids, this_round)
    draws = jax.vmap(jax.random.uniform)(keys)
    return jnp.argsort(jnp.argsort(draws)) < plan.participants


def before_step(
    plan: FaultPlan | None, tally: Tally, state: State, graph: Array
) -> tuple[Presence, Array, Tally]:
    """Draws the faults of a step and removes the failed edges from its graph.

    Args:
      plan: None if only quarantine removes clients.
      tally: the counts so far.
      state: the state before the step.
      graph: the step's graph [N, N] of N active clients.

    Returns:
      The clients' presence [K], the graph [N, N] without failed edges, and the updated tally.
    """
    active = graph.shape[0]
    ids, padding = state.client_ids[:active], (0, state.num_clients - active)
    everyone = jnp.ones(active, bool)
    there = Presence(everyone, everyone)
    if plan is not None:
        there = presence(plan, state.key, ids, state.step)
    if tally.quarantined is not None:
        well = tally.quarantined[:active] < 0
        there = jax.tree.map(lambda a: a & well, there)
    lost = jnp.zeros(active, jnp.int32)
    graph = jnp.where(links(there, False if plan is None else plan.both_ways), graph, 0)
    if plan is not None:
        fails = lost_links(plan, state.key, ids, state.step)
        lost = ((graph > 0) & fails).sum(axis=1, dtype=jnp.int32)
        graph = jnp.where(fails, 0, graph)
    there = jax.tree.map(lambda a: jnp.pad(a, padding, constant_values=True), there)
    tally = dataclasses.replace(
        tally,
        missed=tally.missed + ~there.trains,
        unreachable=tally.unreachable + ~there.reachable,
        lost=tally.lost + jnp.pad(lost, padding),
    )
    return there, graph, tally


def after_step(
    tally: Tally, there: Presence, before: State, after: State, metrics: Metrics
) -> tuple[State, Metrics, Tally]:
    """Undoes a step for the clients that did not take it.

    Returns:
      The state, in which clients that did not take the step are unchanged; the metrics, 0 for these
      clients (except counts of messages and of non-finite ones, as theirs may be received); and the
      tally.
    """
    took, quarantined = there.trains, tally.quarantined
    if quarantined is not None:
        fine = jnp.isfinite(metrics.loss) & groups.finite_params(after)
        quarantined = jnp.where(took & ~fine, before.step, quarantined)
        took &= fine
    state = groups.keep_others(took, after, before)

    def of_those(value: Array) -> Array:
        return jnp.where(took, value, 0) if value.ndim else value

    nothing = jax.tree.map(jnp.zeros_like, metrics.diagnostics)
    metrics = dataclasses.replace(
        metrics,
        loss=of_those(metrics.loss),
        terms=jax.tree.map(of_those, metrics.terms),
        diagnostics=where_rows(there.trains, metrics.diagnostics, nothing),
    )
    trained = tally.trained + took
    return state, metrics, dataclasses.replace(tally, trained=trained, quarantined=quarantined)


def require_sound(
    faults: Faults | None, quarantine: bool, algorithm: Algorithm, has_server: bool
) -> None:
    """Raises `ConfigError` if an algorithm is not well defined under such faults.

    Args:
      faults: None if nothing fails.
      quarantine: whether clients that diverge are removed.
      algorithm: the run's.
      has_server: whether the clients exchange messages with a server, not with each other.
    """
    # Other averaging goes on among the remaining clients; but weight that is sent to a client
    # which never sends back would vanish.
    if quarantine and algorithm.strongly_connected and algorithm.needs_everyone:
        raise ConfigError(
            f"{algorithm.name} needs all clients at every step, and on_nonfinite='quarantine' takes "
            f"out who diverges: {algorithm.needs_everyone}, or on_nonfinite='stop'."
        )
    if faults is None:
        return
    if algorithm.needs_everyone:
        raise ConfigError(
            f"{algorithm.name} needs all clients and links at every step: "
            f"{algorithm.needs_everyone}."
        )
    if has_server and faults.link_loss > 0:
        raise ConfigError(
            f"link_loss is of links between clients, but {algorithm.name} has a server; leave it "
            "out, or let clients be offline."
        )
    if has_server and faults.offline_trains:
        raise ConfigError(
            f"offline_trains is not for {algorithm.name}, whose clients train for a server's next "
            "round; leave it out."
        )


def _pairs(name: str, given: object) -> tuple[tuple[int, int], ...]:
    """Returns checked pairs (client, number), sorted by client."""
    try:
        pairs = [*given.items()] if isinstance(given, Mapping) else [(c, n) for c, n in given]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ConfigError(
            f"{name} must be numbers by client, like {{0: 4, 3: 2}}, not {given!r}."
        ) from None
    for client, _ in pairs:
        _require(is_integer(client), f"{name} must name clients by their numbers", client)
    if len(dict(pairs)) < len(pairs):
        raise ConfigError(f"{name} names a client twice ({given!r}); name each once.")
    return tuple(sorted(pairs))


def _require(condition: bool, what: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{what}, not {value!r}.")


def _require_step(name: str, value: object, least: int) -> None:
    right = is_integer(value) and least <= int(value) < _NEVER
    _require(right, f"{name} must be a number of steps, at least {least}", value)
