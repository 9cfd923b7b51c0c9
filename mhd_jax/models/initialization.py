"""How convolutions and dense layers start where a model's own way is not wanted, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

PyTree = Any
Path = tuple[str, ...]

_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def pytorch(key: jax.Array, params: PyTree) -> PyTree:
    """The parameters of one client, with layers drawn anew as in the CCL authors' PyTorch code.

    Kernels of convolutions [h, w, in, out] are normal with variance 2 / (h·w·out), He's for the
    fan-out. Kernels of dense layers [in, out] and all biases are uniform within ± 1 / sqrt(fan-in),
    PyTorch's default. Other parameters stay.
    """
    flat = traverse_util.flatten_dict(params)
    drawn = dict(flat)
    for number, path in enumerate(sorted(flat)):
        kernel = flat.get((*path[:-1], "kernel"))
        if kernel is None or path[-1] not in ("kernel", "bias"):
            continue
        own_key, values = jax.random.fold_in(key, number), flat[path]
        if path[-1] == "kernel" and kernel.ndim == 4:
            drawn[path] = _he_fan_out(own_key, values.shape, values.dtype)
        else:
            drawn[path] = _uniform(own_key, values, fan_in=math.prod(kernel.shape[:-1]))
    return traverse_util.unflatten_dict(drawn)


def _uniform(key: jax.Array, like: jax.Array, fan_in: int) -> jax.Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, like.shape, like.dtype, -bound, bound)


INITIALIZATIONS: dict[str, Callable[[jax.Array, PyTree], PyTree]] = {"pytorch": pytorch}
