"""Adversaries: clients that send false predictions while their own training continues.

They falsify predictions and density ratios, including those of their snapshots, but neither
embeddings nor the parameters that ensembles average. Receivers ignore predictions outside the
sender's label set, false ones included. The kind of each adversary is data and not part of the
program: each kind is one `where` over the client axis.

- "nan", "inf": all logits are NaN or infinity.
- "constant": the first class with high confidence, for every sample.
- "uniform": equal probabilities for all classes.
- "label_flip": the class after the predicted class, with high confidence. Adversaries of this kind
  that predict the same class agree.
- "replay": the outputs of the previous step at which the adversary could be reached, which are
  those of other samples.
- "claim_all": the predictions of "label_flip", and the claim to know everything: the largest density
  ratio for every sample, and any count.
- "claim_some": the same for one half of the samples, those on which the adversary's own density ratio
  is below its median, so that its claims are where it knows least; and none for the other half.

Where heads have no density ratios, the last two are "label_flip". The other kinds send their true
density ratios ("nan" and "inf" none that is finite).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from mhd_jax.core.client_axis import everywhere
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import where_rows
from mhd_jax.core.types import Outputs, Participants

KINDS = ("nan", "inf", "constant", "uniform", "label_flip", "replay", "claim_all", "claim_some")
FLIPPING = ("label_flip", "claim_all", "claim_some")  # whose predictions are those of label_flip
# The honest have a number among those of kinds, so that states saved before the last two kinds keep
# their meaning.
HONEST = 6
NUMBERS = {kind: place + (place >= HONEST) for place, kind in enumerate(KINDS)}
_LIMIT = 1e3  # a claimed logarithm of a density ratio, above all that receivers take
_CONFIDENT = 20.0  # next to logits 0, which each get a probability below 1e-8


@struct.dataclass
class Adversaries:
    """The kind of adversary of each client, and the outputs that adversaries may replay.

    Attributes:
      kinds: numbers of the kinds in `NUMBERS`, or `HONEST`, int32 [K].
      earlier: outputs [K, P, …] of the previous step; None if no client replays them.
    """

    kinds: Array
    earlier: Outputs | None

    def sent(self, outputs: Outputs, senders: Array | None = None) -> Outputs:
        """Returns what clients send instead of their outputs [K, ..., P, …].

        With `senders`, int32 [K, T], the outputs [K, T, P, …] are those of these clients.
        """
        kinds, earlier = self.kinds, self.earlier
        if senders is not None:  # which may be on other devices
            kinds, earlier = jax.tree.map(lambda a: a[senders], everywhere((kinds, earlier)))
        replayed = outputs if earlier is None else earlier
        logits = _falsified(kinds, outputs.logits, replayed.logits)
        density = outputs.density
        if density is not None:
            density = _claimed(kinds, density, replayed.density)  # type: ignore[arg-type]
        return dataclasses.replace(outputs, logits=logits, density=density)

    def counts(self, counts: Array) -> Array:
        """Returns the counts of knowledge that clients send instead of theirs, [K, H]."""
        return jnp.where(_are(["claim_all", "claim_some"], self.kinds, 2), jnp.inf, counts)

    def after(self, outputs: Outputs, reachable: Array | None = None) -> Adversaries:
        """Returns the adversaries after a step, which store its outputs for a replay.

        Args:
          outputs: the clients' true outputs at this step, [K, P, …].
          reachable: which clients can be reached and send them, bool [K]; None is all clients.
        """
        if self.earlier is None:
            return self
        sent = _replayable(outputs)
        if reachable is not None:
            sent = where_rows(reachable, sent, self.earlier)
        return self.replace(earlier=sent)  # type: ignore[attr-defined]


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


def start(
    clients: Participants, outputs: Outputs, num_snapshots: int = 0
) -> dict[str, Adversaries]:
    """Returns the entry "adversaries" of `State.extra` before the first step; {} if all are honest.

    Args:
      clients: `mhd_jax.clients.Clients`, which say which clients are adversaries.
      outputs: shapes and types of one client's outputs, [P, …].
      num_snapshots: how many earlier parameters teach in the place of each client's own.

    Raises:
      ConfigError: a client replays its messages, where snapshots teach in its place, or flips
        labels of a regression, which has none.
    """
    if not clients.adversaries:
        return {}
    replaying = [client for client, kind in clients.adversaries.items() if kind == "replay"]
    if num_snapshots > 0 and replaying:
        raise ConfigError(
            f"client {', '.join(map(str, replaying))} replays what it sent at the step before, but "
            "with pool_size or teacher_delay snapshots teach in its place; choose another kind of "
            "adversary, or leave these out."
        )
    flipping = [kind for kind in FLIPPING if kind in clients.adversaries.values()]
    if flipping and not clients.task.has_classes:
        raise ConfigError(
            f"{flipping[0]} is of classes, but clients predict numbers; choose another kind."
        )
    kinds = np.full(clients.num_clients, HONEST, np.int32)
    for client, kind in clients.adversaries.items():
        kinds[client] = NUMBERS[kind]
    earlier = None
    if replaying:
        earlier = jax.tree.map(
            lambda a: jnp.zeros((clients.num_clients, *a.shape), a.dtype), _replayable(outputs)
        )
    return {"adversaries": Adversaries(jnp.asarray(kinds), earlier)}


def _replayable(outputs: Outputs) -> Outputs:
    return dataclasses.replace(outputs, embeddings=None)


def _falsified(kinds: Array, logits: Array, earlier: Array) -> Array:
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
        "replay": earlier,
    }
    for kind, instead in false.items():
        of_kind = FLIPPING if kind == "label_flip" else (kind,)
        logits = jnp.where(_are(of_kind, kinds, logits.ndim), instead, logits)
    return logits


def _claimed(kinds: Array, density: Array, earlier: Array) -> Array:
    """Returns densities [K, ..., P, H] falsified by senders of these kinds, [K] or [K, T]."""
    knows_least = density < jnp.median(density, axis=-2, keepdims=True)
    false = {
        "nan": jnp.full_like(density, jnp.nan),
        "inf": jnp.full_like(density, jnp.inf),
        "replay": earlier,
        "claim_all": jnp.full_like(density, _LIMIT),
        "claim_some": jnp.where(knows_least, _LIMIT, -_LIMIT),
    }
    for kind, instead in false.items():
        density = jnp.where(_are([kind], kinds, density.ndim), instead, density)
    return density


def _are(names: Sequence[str], kinds: Array, num_axes: int) -> Array:
    """Returns which senders are adversaries of the named kinds, with axes added up to `num_axes`."""
    found = jnp.isin(kinds, jnp.array([NUMBERS[name] for name in names]))
    return found.reshape(kinds.shape + (1,) * (num_axes - kinds.ndim))
