"""Clients that misbehave: what they send to others is false, and their own training goes on.

They falsify predictions, those of their snapshots too; embeddings, and parameters that ensembles
average, stay as they are. Receivers of whom a label set is known leave out what is false outside it.
Who falsifies what is data, not program: one `where` over the client axis for each kind.

- "nan", "inf": no finite number.
- "constant": the first class, confidently, whatever the sample.
- "uniform": all classes alike.
- "label_flip": the class behind the one that it predicts, confidently. All who do so agree.
- "replay": what it sent at the step before (at which it could be reached), about other samples.
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
_CONFIDENT = 20.0  # a logit beside zeros: its probability is 1 within 1e-8 for each other class


@struct.dataclass
class Adversaries:
    """Who misbehaves.

    Attributes:
      kinds: of each client's messages, positions in `KINDS`, int32 [K].
      earlier: logits [K, P, H, C] of the step before; None where nobody replays them.
    """

    kinds: Array
    earlier: Array | None

    def sent(self, logits: Array, senders: Array | None = None) -> Array:
        """What clients send for the logits [K, ..., P, H, C] that they came to.

        With `senders`, int32 [K, T], what these send for logits [K, T, P, H, C].
        """
        kinds, earlier = self.kinds, self.earlier
        if senders is not None:  # of whatever device
            kinds, earlier = jax.tree.map(lambda a: a[senders], everywhere((kinds, earlier)))
        return _falsified(kinds, logits, earlier)

    def after(self, logits: Array, reachable: Array | None = None) -> Adversaries:
        """The same, once those who are `reachable`, bool [K], or all, have sent logits [K, P, H, C]."""
        if self.earlier is None:
            return self
        if reachable is not None:
            logits = jnp.where(reachable[:, None, None, None], logits, self.earlier)
        return self.replace(earlier=logits)  # type: ignore[attr-defined]


def checked(given: Mapping[int, str], num_clients: int) -> dict[int, str]:
    """Kinds by client, once they are found to be some.

    Raises:
      ConfigError: an unknown client or kind, or nobody who is honest.
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
    """The adversaries of `mhd_jax.clients.Clients`, before anything was sent.

    Args:
      clients: who takes part.
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
    """Logits [K, ..., P, H, C] as senders of these kinds, [K] or [K, T], send them."""
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
