"""What fails in a run: lost links, clients that are away, slow, late, or that diverge.

`Faults` says how much; what it means for one step are pure functions of (key, step, client ids).
Algorithms see a graph without the edges that fail, and the step's `Presence`. What a client that
does not train had before the step, it has after it: its learning rate, too, goes by the steps that it
takes.
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
from mhd_jax.core.types import Algorithm, Metrics, Presence, State
from mhd_jax.core.validation import is_integer, is_number, require_kind
from mhd_jax.training import groups

ON_NONFINITE = ("stop", "quarantine")
_NEVER = 2**31 - 1
ByClient = Mapping[int, int] | Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Faults:
    """What fails, and how often. All draws derive from the run's seed.

    Attributes:
      link_loss: how likely a message j → i is lost, at each step and for each pair of clients
        independently. Where clients average over the graph, both directions are lost together.
      offline: the share of its time that each client is offline: it neither trains nor teaches.
      offline_steps: a client's time is cut into spells of so many steps, each of them offline with
        probability `offline`; where one begins differs from client to client.
      offline_trains: whether clients go on training while they are offline, with nobody to learn
        from.
      stragglers: who takes only every n-th step, {client: n}. In between it teaches with the
        parameters that it has, but does not average.
      participation: the share of the clients that take part in a round, drawn anew for each; the
        others neither train nor teach.
      participation_steps: steps of a round.
      joins: {client: step}: it is not there before.
      leaves: {client: step}: it is not there from then on.

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
        """The same as arrays for K clients; `both_ways` says whether they average over the graph.

        Raises:
          ConfigError: it names clients that there are not.
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
    """`Faults` as traced arrays: scalars, and `every`, `joins` and `leaves` by client id, int32 [K].

    Other values of the same K are the same program.
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
    """What came of it.

    Attributes:
      trained: steps that each client took since the last evaluation, int32 [K].
      missed: steps that each did not take since the start, int32 [K].
      unreachable: steps at which nobody could hear from it since the start, int32 [K].
      lost: edges to each client on which a message was lost since the start, int32 [K]; those of
        clients that are away are not counted.
      quarantined: the step at which each client's loss or parameters were no longer finite, −1
        while they are, int32 [K]; None where that stops the run.
    """

    trained: Array
    missed: Array
    unreachable: Array
    lost: Array
    quarantined: Array | None

    @classmethod
    def start(cls, num_clients: int, *, quarantine: bool) -> Tally:
        """That of a run that starts."""
        zeros = jnp.zeros(num_clients, jnp.int32)
        return cls(zeros, zeros, zeros, zeros, zeros - 1 if quarantine else None)


def presence(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Presence:
    """Who is there at a step.

    Args:
      plan: of the run.
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
    """Which clients i could learn from which j, bool [K, K]; `both_ways`: and j from i as well."""
    one_way = (there.trains & there.reachable)[:, None] & there.reachable[None, :]
    return one_way & (one_way.T | ~jnp.asarray(both_ways))


def lost_links(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Array:
    """Which messages i ← j are lost at a step, bool [K, K]."""
    keys = random.client_keys(key, random.Purpose.LINK_LOSS, client_ids, step)
    draws = jax.vmap(lambda key: jax.random.uniform(key, client_ids.shape))(keys)[:, client_ids]
    # Both directions together: what the client of the lower id draws.
    own = (client_ids[:, None] < client_ids[None, :]) | ~plan.both_ways
    return jnp.where(own, draws, draws.T) < plan.link_loss


def _is_offline(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Array:
    """Whether each client's present spell is an offline one, bool [K]."""
    keys = random.client_keys(key, random.Purpose.OFFLINE, client_ids)

    def one_client(key: Array) -> Array:
        begins = jax.random.randint(jax.random.fold_in(key, 0), (), 0, plan.offline_steps)
        spell = (step + begins) // plan.offline_steps
        return jax.random.uniform(jax.random.fold_in(key, 1 + spell)) < plan.offline

    return jax.vmap(one_client)(keys)


def _takes_part(plan: FaultPlan, key: Array, client_ids: Array, step: Array) -> Array:
    """Who is among the participants of the present round, bool [K]."""
    this_round = step // plan.participation_steps
    keys = random.client_keys(key, random.Purpose.PARTICIPATION, client_ids, this_round)
    draws = jax.vmap(jax.random.uniform)(keys)
    return jnp.argsort(jnp.argsort(draws)) < plan.participants


def before_step(
    plan: FaultPlan | None, tally: Tally, state: State, graph: Array
) -> tuple[Presence, Array, Tally]:
    """What a step's faults leave.

    Args:
      plan: None where nothing but quarantine takes clients out.
      tally: so far.
      state: before the step.
      graph: of the step, [N, N], with N active clients.

    Returns:
      Who is there [K], the graph [N, N] without edges that fail, and the tally with these.
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
    """A step's state and metrics as those are who took it.

    Returns:
      The state, in which all others are as they were before; the metrics, 0 for them (but for counts
      of messages that are not finite: theirs may be received); and the tally.
    """
    took, quarantined = there.trains, tally.quarantined
    if quarantined is not None:
        fine = jnp.isfinite(metrics["loss"]) & groups.finite_params(after)
        quarantined = jnp.where(took & ~fine, before.step, quarantined)
        took &= fine
    state = groups.keep_others(took, after, before)
    metrics = {
        name: jnp.where(took, value, 0) if value.ndim and name != "non_finite" else value
        for name, value in metrics.items()
    }
    trained = tally.trained + took
    return state, metrics, dataclasses.replace(tally, trained=trained, quarantined=quarantined)


def require_sound(
    faults: Faults | None, quarantine: bool, algorithm: Algorithm, has_server: bool
) -> None:
    """Raises `ConfigError` where an algorithm has no sound meaning with such faults.

    Args:
      faults: None where nothing fails.
      quarantine: whether clients that diverge are taken out.
      algorithm: of the run.
      has_server: whether the clients exchange messages with a server, not with each other.
    """
    # Other averages go on among those who are left; without a way back weights vanish.
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
    """Clients and their numbers, in the clients' order."""
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
