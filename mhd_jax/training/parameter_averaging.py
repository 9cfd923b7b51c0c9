"""Ensembles: clients of one architecture that periodically average their parameters.

This is federated averaging within small groups, combined with distillation between all clients
(the MHD paper's hybrid groups). The averages are given by a row-stochastic mixing matrix
W [K, K]; its ensembles are the connected components of the graph of its weights.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jax import Array

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import of_one_client
from mhd_jax.core.types import GroupState, Participants, Presence, State
from mhd_jax.core.validation import is_integer
from mhd_jax.topology.mixing import along_edges, among
from mhd_jax.training.groups import averaged, finite_params, require_one_architecture

# The number of consecutive clients in an ensemble; the clients of each ensemble; or W, in floats.
Ensembles = int | Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Averaging:
    """Clients of an ensemble become their average every so many steps; momentum stays at home.

    Attributes:
      ensembles: who averages with whom, see `mixing_matrix`.
      every: steps between two averages.
    """

    ensembles: Ensembles
    every: int

    def after_step(self, state: State, presence: Presence | None) -> tuple[State, dict[str, Array]]:
        """The state after a step, averaged if that is due, and the messages of it by kind.

        `state.extra["mixing"]` holds W. A client that is away or has diverged averages with nobody.
        """
        averages, mixing, there = state.step % self.every == 0, state.extra["mixing"], None
        if presence is not None:
            there = presence.trains & presence.reachable & finite_params(state)
            mixing = among(mixing, there)
        weighed = along_edges(mixing) * (1 - jnp.eye(state.num_clients, dtype=jnp.int32))
        state = jax.lax.cond(averages, averaged, lambda state, *_: state, state, mixing, there)
        return state, {"weights": jnp.where(averages, weighed, 0)}

    def message(self, group: GroupState) -> dict[str, Any]:
        """Shapes of what a client of a group sends to those of its ensemble."""
        return {"weights": of_one_client((group.params, group.stats))}


def mixing_matrix(ensembles: Ensembles, clients: Participants) -> np.ndarray:
    """Returns the mixing matrix W [K, K]; a client in no ensemble has weight 1 for itself.

    Args:
      ensembles: a size or lists of clients, whose average is weighted as in `fedavg`, by the
        sizes of the labelled private sets (of all private sets, if no client of an ensemble has
        labels); or the weights themselves, in floats.
      clients: all clients; inactive ones, which only pad the client axis, come last.

    Raises:
      ConfigError: clients of an ensemble do not exist, are in two ensembles or differ in
        architecture, or a matrix is not [K, K] and row-stochastic.
    """
    num_active = int((clients.label_counts().sum(axis=1) > 0).sum())
    mixing = np.eye(clients.num_clients)
    rows = _rows(ensembles, num_active)
    if any(isinstance(entry, float) for row in rows for entry in row):
        mixing[:num_active, :num_active] = _weights(rows, num_active)
    else:
        _require_distinct(rows, num_active)
        labelled, private = (
            counts.sum(axis=1) for counts in (clients.labelled_counts(), clients.label_counts())
        )
        for members in rows:
            sizes = labelled[members] if labelled[members].any() else private[members]
            mixing[np.ix_(members, members)] = sizes / sizes.sum()
    for members in _joined(mixing):
        listed = ", ".join(map(str, members))
        require_one_architecture(clients, f"the ensemble of clients {listed} averages", members)
    return mixing


def first_members(mixing: np.ndarray) -> np.ndarray:
    """Returns for each client the first client of its ensemble, int [K]."""
    first = np.arange(len(mixing))
    for members in _joined(mixing):
        first[members] = members[0]
    return first


def _joined(mixing: np.ndarray) -> list[list[int]]:
    """Returns the ensembles of at least two clients, each in client order."""
    parts = nx.connected_components(nx.from_numpy_array((mixing > 0) | (mixing > 0).T))
    return [sorted(part) for part in parts if len(part) > 1]


def _rows(ensembles: Ensembles, num_clients: int) -> list[list]:
    """Returns the clients of each ensemble, or the rows of W."""
    if is_integer(ensembles):
        ensembles = int(ensembles)
        if ensembles < 1 or num_clients % ensembles:
            raise ConfigError(
                f"{num_clients} clients do not make ensembles of {ensembles}; choose a size that "
                "divides them, or list the clients of each."
            )
        return np.arange(num_clients).reshape(-1, ensembles).tolist()
    try:
        rows = [list(row) for row in ensembles]  # type: ignore[union-attr]
    except TypeError:
        rows = []
    if isinstance(ensembles, str) or not rows or not all(rows):
        raise ConfigError(
            "ensembles are a number of consecutive clients, the clients of each like "
            f"[[0, 1], [2, 3]], or a mixing matrix in floats, not {ensembles!r}."
        )
    return rows


def _weights(rows: list[list], num_clients: int) -> np.ndarray:
    """Returns W as an array; raises `ConfigError` unless it is [K, K] and row-stochastic."""
    try:
        weights = np.array(rows, float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"a mixing matrix must be an array of numbers: {error}.") from error
    if weights.shape != (num_clients, num_clients):
        raise ConfigError(
            f"a mixing matrix of {num_clients} clients must have shape [{num_clients}, "
            f"{num_clients}], not {list(weights.shape)}."
        )
    bad = np.argwhere(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        i, j = bad[0]
        raise ConfigError(
            f"weights of a mixing matrix must be finite and not negative, but client {i} gives "
            f"client {j} the weight {weights[i, j]}."
        )
    sums = weights.sum(axis=1)
    off = np.flatnonzero(~np.isclose(sums, 1, rtol=0, atol=1e-5))
    if off.size:
        raise ConfigError(
            f"each row of a mixing matrix must sum to 1, but that of client {off[0]} sums to "
            f"{sums[off[0]]:.6g}; divide rows by their sums."
        )
    return weights


def _require_distinct(lists: list[list], num_clients: int) -> None:
    """Raises `ConfigError` if a client does not exist or is named twice."""
    everyone = [client for members in lists for client in members]
    unknown = [c for c in everyone if not is_integer(c) or c not in range(num_clients)]
    if unknown:
        raise ConfigError(
            f"ensembles must name clients 0 … {num_clients - 1}; check {unknown[:10]}."
        )
    client, times = Counter(everyone).most_common(1)[0]
    if times > 1:
        raise ConfigError(
            f"a client sits in one ensemble, but client {client} is named {times} times; name it "
            "once (weights of a mixing matrix are floats)."
        )
