"""Normalisation layers by name; each client has its own statistics."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from mhd_jax.core.client_axis import target_platform

Layer = Callable[[Array], Array]


def relu(x: Array) -> Array:
    """Returns max(x, 0), as `jax.nn.relu`; on CPUs in a form that is kept for the backward pass.

    XLA's CPU backend computes a maximum again in each operation that uses it, with everything since
    the last convolutions: several blocks of a residual network. A selection it computes once.
    """
    return _selected(x) if target_platform() == "cpu" else nn.relu(x)


@jax.custom_jvp
def _selected(x: Array) -> Array:
    return jnp.where(x <= 0, 0, x)  # NaN stays NaN


@_selected.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = _selected(*primals)
    return y, jnp.where(y > 0, tangents[0], 0)  # of x, all that makes x would be computed again


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) over the last axis, as `flax.linen.LayerNorm`.

    The same function of the same parameters; on CPUs its gradient adds up by matrix products, which
    are faster there than reductions, and has no derivative in forward mode.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises x."""
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        exact = jnp.promote_types(x.dtype, jnp.float32)
        rows = x.reshape(-1, features).astype(exact)
        normalised = _layer_norm if target_platform() == "cpu" else _layer_norm_of_rows
        y = normalised(self.epsilon, rows, scale.astype(exact), bias.astype(exact))
        return y.reshape(x.shape).astype(jnp.result_type(x, scale, bias))


def _layer_norm_of_rows(epsilon: float, x: Array, scale: Array, bias: Array) -> Array:
    return _layer_norm_forward(epsilon, x, scale, bias)[0]


_layer_norm = jax.custom_vjp(_layer_norm_of_rows, nondiff_argnums=(0,))


def _layer_norm_forward(
    epsilon: float, x: Array, scale: Array, bias: Array
) -> tuple[Array, tuple[Array, ...]]:
    mean = x.mean(axis=1, keepdims=True)
    square = jnp.square(x).mean(axis=1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + epsilon)
    return (x - mean) * inverse * scale + bias, (x, mean, inverse, scale)


def _layer_norm_backward(
    epsilon: float, kept: tuple[Array, ...], dy: Array
) -> tuple[Array, Array, Array]:
    del epsilon
    x, mean, inverse, scale = kept
    centred = dy * (x - mean)
    weights = (scale / scale.size)[:, None]
    first = dy @ weights
    second = jnp.square(inverse) * (centred @ weights)
    dx = inverse * (dy * scale - first - (x - mean) * second)
    return dx, (inverse.T @ centred)[0], dy.sum(axis=0)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


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
        _, variance = _group_moments(x, self.num_groups)
        inverse = jax.lax.rsqrt(variance + self.epsilon).astype(x.dtype)
        return gated * (inverse * scale) + bias


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He, 2018) of [N, …, channels], as `flax.linen.GroupNorm`.

    The same function of the same parameters, in half the time on CPUs.

    Attributes:
      num_groups: the number of groups of channels that share a mean and a variance.
      epsilon: added to the variance.
    """

    num_groups: int = 8
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises x."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean, variance = _group_moments(x, self.num_groups)
        slope = jax.lax.rsqrt(variance + self.epsilon) * scale
        offset = bias - mean * slope
        if target_platform() == "tpu":  # else XLA sums for the bias's gradient in one more pass
            slope, offset = jax.lax.optimization_barrier((slope, offset))
        y = x * slope + offset  # so the gradient needs two sums, of dy and of x · dy
        return y.astype(jnp.result_type(x, scale, bias))


def _group_moments(x: Array, num_groups: int) -> tuple[Array, Array]:
    """Returns mean and variance of each sample's groups of channels, for each channel [N, …, C].

    Sums over positions come first, because channels are the fastest axis, whose groups are too
    short for vector instructions.
    """
    positions = tuple(range(1, x.ndim - 1))
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def in_groups(a: Array) -> Array:
        of_channels = a.mean(axis=positions, keepdims=True)
        if target_platform() == "tpu":  # its layouts make a product cheaper than short groups
            size = a.shape[-1] // num_groups
            members = np.repeat(np.eye(num_groups, dtype=exact.dtype), size, axis=1)  # [groups, C]
            means = jnp.matmul(of_channels, members.T / size, precision="highest")
            return jnp.matmul(means, members, precision="highest")
        grouped = of_channels.reshape(*of_channels.shape[:-1], num_groups, -1)
        means = grouped.mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(means, grouped.shape).reshape(of_channels.shape)

    mean = in_groups(exact)
    return mean, jnp.maximum(in_groups(jnp.square(exact)) - jnp.square(mean), 0)


def normalise(
    kind: str, train: bool, *, num_groups: int = 8, activation: Layer | None = relu
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
        "layer": LayerNorm,
        "group": lambda: GroupNorm(num_groups),
        "batch": lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9),
    }
    layer = layers[kind]()
    return layer if activation is None else (lambda x: activation(layer(x)))
