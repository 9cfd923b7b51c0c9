"""Initialisations of convolutions and dense layers by name, instead of a model's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

PyTree = Any
# (key, kernel or bias to draw anew, the layer's kernel) -> values
Draw = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def pytorch(key: jax.Array, params: PyTree) -> PyTree:
    """Returns one client's parameters with layers drawn anew by PyTorch's defaults.

    Kernels and biases of convolutions and dense layers are uniform within ± 1 / sqrt(fan-in). Other
    parameters are unchanged. The CCL authors' LeNet-5 and MobileNetV2 are initialised like this.
    """
    return _redrawn(key, params, _uniform)


def he_fan_out(key: jax.Array, params: PyTree) -> PyTree:
    """Returns one client's parameters with layers drawn anew as in the CCL authors' ResNet and VGG.

    Kernels of convolutions [h, w, in, out] are normal with variance 2 / (h·w·out), He's for the
    fan-out, and their biases are 0. Dense layers are drawn as in `pytorch`. Other parameters are
    unchanged.
    """
    return _redrawn(key, params, _he_or_uniform)


def _redrawn(key: jax.Array, params: PyTree, draw: Draw) -> PyTree:
    flat = traverse_util.flatten_dict(params)
    drawn = dict(flat)
    for number, path in enumerate(sorted(flat)):
        kernel = flat.get((*path[:-1], "kernel"))
        if kernel is None or path[-1] not in ("kernel", "bias"):
            continue
        drawn[path] = draw(jax.random.fold_in(key, number), flat[path], kernel)
    return traverse_util.unflatten_dict(drawn)


def _uniform(key: jax.Array, values: jax.Array, kernel: jax.Array) -> jax.Array:
    """Draws values by PyTorch's default for `values`, the kernel or the bias of a layer."""
    bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
    return jax.random.uniform(key, values.shape, values.dtype, -bound, bound)


def _he_or_uniform(key: jax.Array, values: jax.Array, kernel: jax.Array) -> jax.Array:
    if kernel.ndim != 4:
        return _uniform(key, values, kernel)
    if values.ndim != 4:
        return jnp.zeros_like(values)
    return _he_fan_out(key, values.shape, values.dtype)


INITIALIZATIONS: dict[str, Callable[[jax.Array, PyTree], PyTree]] = {
    "pytorch": pytorch,
    "he_fan_out": he_fan_out,
}
