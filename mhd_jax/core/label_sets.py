"""Label sets: clients whose tasks have only some of the C classes.

All heads have the same C outputs, so that clients with different tasks can teach each other. A
client with label set L gives the classes outside L probability 0: in its predictions, in its
losses and as a teacher. As a student it uses only the part of a target inside L, without
renormalising it: with a target t and its own prediction p,

    −Σ_{c∈L} t_c log p_c = (Σ_{c∈L} t_c) · CE(p, t renormalised inside L),

so that the client learns nothing from a sample that its teacher assigns to classes outside L.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import is_integer, require_clients

IMPOSSIBLE = -1e9  # logit of classes outside: finite, so that 0 · log p is 0 and not NaN
_MOST = 2**20  # the largest number of clients or classes in one range
LabelSets = str | Sequence[Sequence[int]] | Mapping[int, Sequence[int]]


def masked(logits: Array, label_set: Array | None) -> Array:
    """Returns logits [..., C], set to `IMPOSSIBLE` outside a label set, bool [..., C], if any."""
    return logits if label_set is None else jnp.where(label_set, logits, IMPOSSIBLE)


def resolved(given: LabelSets | None, counts: np.ndarray) -> np.ndarray | None:
    """Returns the label sets of all clients, bool [K, C]; None if all have all classes.

    Args:
      given: the argument `label_sets` of `make_clients`.
      counts: private samples whose labels are learned, by client and class, int [K, C].

    Raises:
      ConfigError: the sets cannot be read, or lack a class of which their client has samples.
    """
    if given is None:
        return None
    if isinstance(given, str) and given == "own":
        sets = (counts > 0) | (counts.sum(axis=1, keepdims=True) == 0)
    else:
        sets = _sets(_read(given) if isinstance(given, str) else given, *counts.shape)
    lacking = np.argwhere((counts > 0) & ~sets)
    if lacking.size:
        client, label = lacking[0]
        raise ConfigError(
            f"client {client} has {counts[client, label]} private samples of class {label}, which "
            "its label set lacks; add the class, keep the classes apart (primary labels with skew "
            "inf, or another assignment), or set label_sets to 'own'."
        )
    return None if sets.all() else sets


def require_equal(sets: np.ndarray | None, why: str, among: Sequence[int] | None = None) -> None:
    """Raises `ConfigError` unless all clients, or those of `among`, have the same label set."""
    if sets is None:
        return
    first, *others = range(len(sets)) if among is None else among
    for other in others:
        if (sets[other] != sets[first]).any():
            raise ConfigError(
                f"{why}, which needs one label set for all, but client {first} knows "
                f"{_named(sets[first])} and client {other} {_named(sets[other])}."
            )


def _sets(given: Any, num_clients: int, num_classes: int) -> np.ndarray:
    if isinstance(given, Mapping):
        require_clients("label_sets must name clients", given, num_clients)
    else:
        if not np.iterable(given):
            raise ConfigError(
                "label_sets are 'own', a list of classes for each client, or a dict of such lists, "
                f"not {given!r}."
            )
        given = dict(enumerate(given))
        if len(given) != num_clients:
            raise ConfigError(
                f"the label_sets are for {len(given)} clients, but there are {num_clients}."
            )
    sets = np.ones((num_clients, num_classes), bool)
    for client, classes in given.items():
        classes = list(classes) if np.iterable(classes) else [classes]
        for label in classes:
            if not is_integer(label) or int(label) not in range(num_classes):
                raise ConfigError(
                    f"label_sets gives client {client} the class {label!r}, but classes are "
                    f"0 … {num_classes - 1}."
                )
        if not classes:
            raise ConfigError(
                f"label_sets gives client {client} no class; give it one at least, or leave it "
                "out of a dict to let it know all."
            )
        sets[client] = np.isin(np.arange(num_classes), classes)
    return sets


def _read(text: str) -> dict[int, list[int]]:
    """Parses label sets like "0-3:0-4;4,5:7", clients and their classes, into lists by client."""
    found: dict[int, list[int]] = {}
    try:
        for part in text.split(";"):
            clients, classes = part.split(":")
            for client in _numbers(clients):
                found.setdefault(client, []).extend(_numbers(classes))
    except ValueError:
        raise ConfigError(
            f"cannot read the label sets {text!r}; write own, or clients and their classes like "
            "0-3:0-4;4-7:5,6."
        ) from None
    return found


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        both = range(int(first), int(last if dash else first) + 1)
        if not 1 <= len(both) <= _MOST:
            raise ValueError
        found += both
    return found


def _named(label_set: np.ndarray) -> str:
    labels = np.flatnonzero(label_set)
    few = ", ".join(map(str, labels[:10]))
    return f"classes {few}{' …' if len(labels) > 10 else ''}"
