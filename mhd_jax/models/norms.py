"""Normalisation layers, by name. Statistics stay per client: nothing here crosses the client axis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Layer = Callable[[Array], Array]


class EvoNormS0(nn.Module):
    """EvoNorm-S0 (Liu et al., 2020), normalisation and activation in one, for [N, …, channels].

    Attributes:
      gate: "hard": x · clip(x/6 + 1/2, 0, 1), without a parameter in the gate, as in the CCL
        authors' experiments; "sigmoid": x · sigmoid(v x) with trainable v, as published.
      num_groups: channel groups that share a variance.
      epsilon: added to the variance.
    """

    gate: str = "hard"
    num_groups: int = 8
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises and activates x."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if self.gate == "hard":
            gated = x * jnp.clip(x / 6 + 0.5, 0, 1)
        else:
            v = self.param("v", nn.initializers.ones, (channels,))
            gated = x * jax.nn.sigmoid(v * x)
        grouped = x.reshape(x.shape[:-1] + (self.num_groups, channels // self.num_groups))
        axes = (*range(1, x.ndim - 1), x.ndim)
        deviation = jnp.sqrt(grouped.var(axis=axes, keepdims=True) + self.epsilon)
        deviation = jnp.broadcast_to(deviation, deviation.shape[:-1] + (grouped.shape[-1],))
        deviation = deviation.reshape(deviation.shape[:-2] + (channels,))
        return gated / deviation * scale + bias


def normalise(kind: str, train: bool, *, num_groups: int = 8, activate: bool = True) -> Layer:
    """A normalisation, with the activation that follows it, to call inside a compact module.

    Args:
      kind: "none", "layer", "group", "batch", "evonorm" (CCL's form) or "evonorm_s0".
      train: whether BatchNorm uses and updates batch statistics.
      num_groups: of GroupNorm and EvoNorm.
      activate: whether a ReLU follows; EvoNorm carries its own activation in any case.
    """
    if kind in ("evonorm", "evonorm_s0"):
        return EvoNormS0("hard" if kind == "evonorm" else "sigmoid", num_groups)
    layers: dict[str, Callable[[], Layer]] = {
        "none": lambda: lambda x: x,
        "layer": nn.LayerNorm,
        "group": lambda: nn.GroupNorm(num_groups=num_groups),
        "batch": lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9),
    }
    layer = layers[kind]()
    return (lambda x: nn.relu(layer(x))) if activate else layer
