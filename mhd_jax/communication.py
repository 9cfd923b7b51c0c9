"""What crosses an edge, as arrays; their bytes follow.

An algorithm declares one message as a dictionary from a type ("logits", "weights") to the
arrays, or their shapes, that it consists of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax

from mhd_jax.memory import num_bytes
from mhd_jax.types import PyTree

Message = Mapping[str, PyTree]


def of_one_client(tree: PyTree) -> PyTree:
    """Shapes of one client's part of arrays [K, ...]."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def bytes_by_type(message: Message) -> dict[str, int]:
    """Bytes of each of a message's types."""
    return {kind: num_bytes(arrays) for kind, arrays in message.items()}


def bytes_by_dtype(message: Message) -> dict[str, int]:
    """Bytes of a message by the types of its numbers ("float32", "uint8")."""
    found: Counter[str] = Counter()
    for array in jax.tree.leaves(dict(message)):
        found[array.dtype.name] += num_bytes(array)
    return dict(found)


def total(messages: int, message: Message) -> dict[str, Any]:
    """What `messages` messages come to, as in `summary.json`."""
    by_type, by_dtype = bytes_by_type(message), bytes_by_dtype(message)
    return {
        "bytes_per_step_per_edge": sum(by_type.values()),
        "total_bytes": sum(by_type.values()) * messages,
        "by_type": {kind: size * messages for kind, size in by_type.items()},
        "by_dtype": {name: size * messages for name, size in by_dtype.items()},
        "messages": messages,
    }
