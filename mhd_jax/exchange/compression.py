"""Compression of predictions before they are sent; clients learn from the decompressed values.

- "float16": half precision.
- "int8": the numbers of each sample, divided by the largest magnitude among them, in 255 steps;
  this magnitude is sent with them.
- "top_K": the exact log-probabilities of the K most probable classes; the remaining mass is
  shared equally between the other classes. It applies to logits alone; other parts of a message
  are not compressed.

Receivers know the sender's label set, so that classes outside it do not affect the compression.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.client_axis import everywhere
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.label_sets import masked
from mhd_jax.core.types import PyTree

_LEAST_MASS = 1e-7


@dataclasses.dataclass(frozen=True)
class Compression:
    """A pair of functions that encode arrays before they are sent and decode them on receipt.

    Attributes:
      encode: maps arrays [..., C] to the tree of arrays that is sent.
      decode: maps this tree, C, and the sender's label set, bool [..., C] (None is all classes),
        to arrays [..., C] of float32, or of the wider type that was sent.
      ranks_classes: whether the compression selects classes, and so applies to logits alone.
    """

    encode: Callable[[Array], PyTree]
    decode: Callable[[PyTree, int, Array | None], Array]
    ranks_classes: bool = False

    def arrived(
        self,
        values: Array,
        travel: Callable[[PyTree], PyTree] = everywhere,
        label_set: Array | None = None,
    ) -> Array:
        """Returns values [..., C] as their receivers decode them.

        Args:
          values: the values of the senders.
          travel: moves the encoded values to the devices of the receivers; by default to all.
          label_set: the classes of the sender, bool [..., C]; outside it the result is
            `label_sets.IMPOSSIBLE`. None is all classes.
        """
        if label_set is not None and not self.ranks_classes:
            values = jnp.where(label_set, values, 0)  # zeros do not change the scale of int8
        sent = travel(self.encode(values))
        decoded = self.decode(sent, values.shape[-1], label_set).astype(values.dtype)
        return masked(decoded, label_set)

    @property
    def for_numbers(self) -> Compression:
        """The compression of arrays other than logits: none if this one selects classes."""
        return NONE if self.ranks_classes else self


def named(name: str) -> Compression:
    """Returns the compression "none", "float16", "int8" or "top_K" (such as "top_3").

    Raises:
      ConfigError: the name is unknown.
    """
    if name in _FIXED:
        return _FIXED[name]
    match = re.fullmatch(r"top_([1-9]\d{0,8})", name) if isinstance(name, str) else None
    if match is None:
        raise ConfigError(
            f"unknown compression {name!r}; choose {', '.join(_FIXED)}, or top_K with K classes "
            "(top_3)."
        )
    return _top(int(match[1]))


def _int8_encode(values: Array) -> dict[str, Array]:
    scale = jnp.abs(values).max(axis=-1, keepdims=True) / 127
    steps = values / jnp.where(scale > 0, scale, 1)
    return {"steps": jnp.round(steps).astype(jnp.int8), "scale": scale}


@functools.cache  # equal settings are equal objects: runs that have them share a program
def _top(count: int) -> Compression:
    def encode(logits: Array) -> dict[str, Array]:
        num_classes = logits.shape[-1]
        kind = (
            jnp.uint8 if num_classes <= 256 else jnp.uint16 if num_classes <= 65536 else jnp.int32
        )
        best, classes = jax.lax.top_k(jax.nn.log_softmax(logits), min(count, num_classes))
        return {"log_probabilities": best, "classes": classes.astype(kind)}

    def decode(sent: PyTree, num_classes: int, label_set: Array | None) -> Array:
        best, classes = sent["log_probabilities"], sent["classes"]
        left = jnp.maximum(1 - jnp.exp(best).sum(axis=-1, keepdims=True), _LEAST_MASS)
        known = num_classes if label_set is None else label_set.sum(axis=-1, keepdims=True)
        others = jnp.log(left / jnp.maximum(known - best.shape[-1], 1))
        everyone = jnp.broadcast_to(others, (*best.shape[:-1], num_classes))
        return jnp.put_along_axis(everyone, classes.astype(jnp.int32), best, axis=-1, inplace=False)

    return Compression(encode, decode, ranks_classes=True)


NONE = Compression(encode=lambda values: values, decode=lambda sent, *_: sent)
_FIXED = {
    "none": NONE,
    "float16": Compression(
        encode=lambda values: values.astype(jnp.float16),
        decode=lambda sent, *_: sent.astype(jnp.float32),
    ),
    "int8": Compression(encode=_int8_encode, decode=lambda sent, *_: sent["steps"] * sent["scale"]),
}
