"""Random keys: every draw of a run derives from (seed, purpose, step, client id).

No key is split and carried along, so that a draw depends on these four alone, and neither on how
many steps one dispatch scans nor on whether the run was interrupted.
"""

from __future__ import annotations

import enum

import jax
from jax import Array


class Purpose(enum.IntEnum):
    """What a key is used for. A change of these values would change all runs: append only."""

    INIT = 0
    PRIVATE_ORDER = 1
    PUBLIC_ORDER = 2
    TEACHERS = 3
    SELECTION = 4
    DROPOUT = 5
    PUBLIC_DROPOUT = 6
    AUGMENTATION = 7
    PUBLIC_AUGMENTATION = 8
    TOPOLOGY = 9
    LINK_LOSS = 10
    OFFLINE = 11
    PARTICIPATION = 12
    POOL = 13
    PROJECTION = 14
    POOL_SLOT = 15


def purpose_key(key: Array, purpose: Purpose, step: Array | int = 0) -> Array:
    """Returns the key that all clients share for `purpose` at `step`."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), step)


def client_keys(key: Array, purpose: Purpose, client_ids: Array, step: Array | int = 0) -> Array:
    """Returns one key per client, [K], for `purpose` at `step`."""
    shared = purpose_key(key, purpose, step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(shared, client_ids)
