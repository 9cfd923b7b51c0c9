"""Adversaries: clients that send false predictions while their own training continues.

They falsify predictions, including those of their snapshots, but neither embeddings nor the
parameters that ensembles average. Receivers ignore predictions outside the sender's label set,
false ones included. The kind of each adversary is data and not part of the program: each kind is
one `where` over the client axis.

- "nan", "inf": all logits are NaN or infinity.
- "constant": the first class with high confidence, for every sample.
- "uniform": equal probabilities for all classes.
- "label_flip": the class after the predicted class, with high confidence. Adversaries of this kind
  that predict the same class agree.
- "replay": the logits of the previous step at which the adversary could be reached, which are
  those of other samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from mhd_jax.core.client_axis import everywhere
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import Participants

KINDS = ("nan", "inf", "constant", "uniform", "label_flip", "replay")
_HONEST = len(KINDS)
_CONFIDENT = 20.0  # next to logits 0, which each get a probability below 1e-8


@struct.dataclass
class Adversaries:
    """The kind of adversary of each client, and the logits that adversaries may replay.

    Attributes:
      kinds: positions in `KINDS`, or their number for an honest client, int32 [K].
      earlier: logits [K, P, H, C] of the previous step; None if no client replays them.
    """

    kinds: Array
    earlier: Array | None

    def sent(self, logits: Array, senders: Array | None = None) -> Array:
        """Returns the logits that clients send instead of their logits [K, ..., P, H, C].

        With `senders`, int32 [K, T], the logits [K, T, P, H, C] are those of these clients.
        """
        kinds, earlier = self.kinds, self.earlier
        if senders is not None:  # which may be on other devices
            kinds, earlier = jax.tree.map(lambda a: a[senders], everywhere((kinds, earlier)))
        return _falsified(kinds, logits, earlier)

    def after(self, logits: Array, reachable: Array | None = None) -> Adversaries:
        """Returns the adversaries after a step, which store its logits for a replay.

        Args:
          logits: the clients' true logits at this step, [K, P, H, C].
          reachable: which clients can be reached and send them, bool [K]; None is all clients.
        """
        if self.earlier is None:
            return self
        if reachable is not None:
            logits = jnp.where(reachable[:, None, None, None], logits, self.earlier)
        return self.replace(earlier=logits)  # type: ignore[attr-defined]


def checked(given: Mapping[int, str], num_clients: int) -> dict[int, str]:
    """Returns the kinds of adversaries by client, in client order, after checking them.

    Raises:
      ConfigError: a client or kind does not exist, or no client is honest.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"adversaries are kinds by client, like {{7: 'nan'}}, not {given!r}.")
    unknown = sorted(set(given) - set(range(num_clients)), key=str)
    if unknown:
        raise ConfigError(
            f"adversaries must name clients 0 … {num_clients - 1}; check {unknown[:10]}."
        )
    for client, kind in given.items():
        if kind not in KINDS:
            raise ConfigError(
                f"client {client} is an unknown adversary {kind!r}; choose one of {', '.join(KINDS)}."
            )
    if len(given) == num_clients:
        raise ConfigError("nobody is honest; leave one client out of the adversaries.")
    return {int(client): given[client] for client in sorted(given)}


def start(clients: Participants, logits: Any, num_snapshots: int = 0) -> Adversaries:
    """Returns the adversaries before the first step.

    Args:
      clients: `mhd_jax.clients.Clients`, which say which clients are adversaries.
      logits: shape and type of one client's logits, [P, H, C].
      num_snapshots: how many earlier parameters teach in the place of each client's own.

    Raises:
      ConfigError: a client replays its messages, where snapshots teach in its place.
    """
    replaying = [client for client, kind in clients.adversaries.items() if kind == "replay"]
    if num_snapshots > 0 and replaying:
        raise ConfigError(
            f"client {', '.join(map(str, replaying))} replays what it sent at the step before, but "
            "with pool_size or teacher_delay snapshots teach in its place; choose another kind of "
            "adversary, or leave these out."
        )
    kinds = np.full(clients.num_clients, _HONEST, np.int32)
    for client, kind in clients.adversaries.items():
        kinds[client] = KINDS.index(kind)
    earlier = None
    if replaying:
        earlier = jnp.zeros((clients.num_clients, *logits.shape), logits.dtype)
    return Adversaries(jnp.asarray(kinds), earlier)


def _falsified(kinds: Array, logits: Array, earlier: Array | None) -> Array:
    """Returns logits [K, ..., P, H, C] falsified by senders of these kinds, [K] or [K, T]."""
    num_classes = logits.shape[-1]

    def confidently(classes: Array) -> Array:
        return _CONFIDENT * jax.nn.one_hot(classes, num_classes, dtype=logits.dtype)

    predicted = logits.argmax(axis=-1)
    false = {
        "nan": jnp.full_like(logits, jnp.nan),
        "inf": jnp.full_like(logits, jnp.inf),
        "constant": confidently(jnp.zeros_like(predicted)),
        "uniform": jnp.zeros_like(logits),
        "label_flip": confidently((predicted + 1) % num_classes),
        "replay": logits if earlier is None else earlier,
    }
    for number, kind in enumerate(KINDS):
        is_kind = (kinds == number).reshape(kinds.shape + (1,) * (logits.ndim - kinds.ndim))
        logits = jnp.where(is_kind, false[kind], logits)
    return logits
