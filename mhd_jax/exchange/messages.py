"""What crosses an edge, as arrays; their bytes follow.

An algorithm sends messages of one kind or of several ("predictions", "weights"), each at its own
times and along its own edges. It declares one of each kind as a dictionary from a type ("logits",
"embeddings") to the arrays, or their shapes, that it consists of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mhd_jax.core.trees import num_bytes
from mhd_jax.core.types import PyTree

Message = Mapping[str, PyTree]
Messages = Mapping[str, Message]


def bytes_by_type(message: Message) -> dict[str, int]:
    """Bytes of each of a message's types."""
    return {kind: num_bytes(arrays) for kind, arrays in message.items()}


def bytes_by_dtype(message: Message) -> dict[str, int]:
    """Bytes of a message by the types of its numbers ("float32", "uint8")."""
    found: Counter[str] = Counter()
    for array in jax.tree.leaves(dict(message)):
        found[array.dtype.name] += num_bytes(array)
    return dict(found)


def total(
    counts: Mapping[str, np.ndarray], senders: Mapping[tuple[int, ...], Messages]
) -> dict[str, Any]:
    """What all messages come to, as in `summary.json`.

    Args:
      counts: how many of each kind, those of i from j [K, K] or between i and a server [K].
      senders: what a message of each kind from these clients consists of, in shapes.

    Returns:
      Bytes in all, by type and by number format, and the number of messages by kind.
      "bytes_per_step_per_edge" is what an edge carries in a step in which a message of every kind
      crosses it, from the clients whose are the largest.
    """
    by_type: Counter[str] = Counter()
    by_dtype: Counter[str] = Counter()
    for members, messages in senders.items():
        for kind, message in messages.items():
            number = int(counts[kind][..., list(members)].sum())
            for name, size in bytes_by_type(message).items():
                by_type[name] += size * number
            for name, size in bytes_by_dtype(message).items():
                by_dtype[name] += size * number
    return {
        "bytes_per_step_per_edge": max(num_bytes(messages) for messages in senders.values()),
        "total_bytes": by_type.total(),
        "by_type": dict(by_type),
        "by_dtype": dict(by_dtype),
        "messages": {kind: int(count.sum()) for kind, count in counts.items()},
    }
