"""Normalisation layers by name; each client has its own statistics."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Layer = Callable[[Array], Array]


class EvoNormS0(nn.Module):
    """EvoNorm-S0 (Liu et al., 2020): normalisation and activation in one, for [N, …, channels].

    Attributes:
      gate: "hard" is x · clip(x/6 + 1/2, 0, 1), without parameters, as in the CCL authors'
        experiments; "sigmoid" is x · sigmoid(v x) with trainable v, as published.
      num_groups: the number of groups of channels that share a variance.
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
        # Channels are the fastest axis: compilers vectorise sums over positions first, and then
        # over the few channels of a group.
        positions = tuple(range(1, x.ndim - 1))
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        moments = jnp.stack([exact.mean(axis=positions), jnp.square(exact).mean(axis=positions)])
        moments = moments.reshape(2, x.shape[0], self.num_groups, -1).mean(axis=-1)
        variance = jnp.maximum(moments[1] - jnp.square(moments[0]), 0)
        inverse = jax.lax.rsqrt(variance + self.epsilon)  # [N, groups]
        inverse = jnp.repeat(inverse, channels // self.num_groups, axis=-1)
        inverse = inverse.reshape(x.shape[0], *(1,) * len(positions), channels).astype(x.dtype)
        return gated * (inverse * scale) + bias


def normalise(
    kind: str, train: bool, *, num_groups: int = 8, activation: Layer | None = nn.relu
) -> Layer:
    """Returns a normalisation with its activation, for use inside a compact module.

    Args:
      kind: "none", "layer", "group", "batch", "evonorm" (CCL's form) or "evonorm_s0".
      train: whether BatchNorm uses and updates batch statistics.
      num_groups: the groups of GroupNorm and EvoNorm; the number must divide the channels.
      activation: the activation after the norm; None for none. EvoNorm always has its own.
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
    return layer if activation is None else (lambda x: activation(layer(x)))
