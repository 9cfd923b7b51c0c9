"""What crosses an edge, as arrays; their bytes follow.

An algorithm declares one message as a dictionary from a type ("logits", "weights") to the
arrays, or their shapes, that it consists of; or, where senders' messages differ, one for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

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


def total(messages: np.ndarray, message: Message | Sequence[Message]) -> dict[str, Any]:
    """What messages come to, as in `summary.json`.

    Args:
      messages: how many i got from j [K, K], or exchanged with a server [K].
      message: anyone's, or j's at j.

    Returns:
      Sums over all messages; `bytes_per_step_per_edge` is one message's size, or the mean of the
      senders' where it differs between them.
    """
    if isinstance(message, Mapping):
        sent = [(message, int(messages.sum()))]
    else:
        sent = list(zip(message, messages.sum(axis=0).tolist(), strict=True))
    by_type: Counter[str] = Counter()
    by_dtype: Counter[str] = Counter()
    sizes = []
    for each, count in sent:
        sizes.append(num_bytes(dict(each)))
        for found, kinds in ((by_type, bytes_by_type(each)), (by_dtype, bytes_by_dtype(each))):
            for kind, size in kinds.items():
                found[kind] += size * count
    return {
        "bytes_per_step_per_edge": round(sum(sizes) / len(sizes)),
        "total_bytes": sum(by_type.values()),
        "by_type": dict(by_type),
        "by_dtype": dict(by_dtype),
        "messages": int(messages.sum()),
    }
