"""Messages as dictionaries of arrays, and the number of bytes that a run sends.

An algorithm sends messages of one or several kinds ("predictions", "weights"), each at its own
steps and along its own edges. It declares a message of each kind as a dictionary from types
("logits", "embeddings") to arrays, or to their shapes.
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
    """Returns the number of bytes of each type in a message."""
    return {kind: num_bytes(arrays) for kind, arrays in message.items()}


def bytes_by_dtype(message: Message) -> dict[str, int]:
    """Returns the number of bytes of each number format ("float32", "uint8") in a message."""
    found: Counter[str] = Counter()
    for array in jax.tree.leaves(dict(message)):
        found[array.dtype.name] += num_bytes(array)
    return dict(found)


def total(
    counts: Mapping[str, np.ndarray], senders: Mapping[tuple[int, ...], Messages]
) -> dict[str, Any]:
    """Returns the number and the bytes of all messages of a run, as in `summary.json`.

    Args:
      counts: the number of messages of each kind: those that i receives from j, [K, K], or those
        between i and a server, [K].
      senders: for each group of clients the shapes of a message of each kind that they send.

    Returns:
      The bytes in total, by type and by number format, and the number of messages by kind.
      "bytes_per_step_per_edge" is the size of one message of every kind, from the clients whose
      messages are the largest.
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
