"""A convolution that stays fast when every client has its own kernel.

`vmap` turns per-client convolutions into one grouped convolution, which XLA runs slowly on
CPUs; and inside loops, XLA's CPU backend leaves both backward convolutions in a transposed
form that runs 10 to 40 times slower. Therefore the convolution here

- has its own batching rules: per-client kernels become a loop over clients on CPUs and the
  grouped convolution elsewhere; if only the samples or only the kernels differ between clients,
  one plain convolution suffices;
- computes both of its gradients on CPUs in forms that are fast there
  (`mhd_jax/models/conv/forms.py`): plain convolutions (kernel flipped for the input's gradient;
  batch and channels swapped for the kernel's), convolutions over blocks of pixels, matrix
  products, sums over taps; and on TPUs swaps kernel and image where the image is the smaller one.

The three maps y(x, w), dx(g, w) and dw(x, g) are the partial derivatives of one trilinear
form ⟨g, y(x, w)⟩, so that the gradients of each map are the other two, to any order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from mhd_jax.core.client_axis import target_platform
from mhd_jax.models.conv.forms import NHWC, TRANSPOSED, Form, cpu_form, tpu_form
from mhd_jax.models.conv.geometry import Geometry, Pair


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Computes `jax.lax.conv_general_dilated`, for `flax.linen.Conv(conv_general_dilated=…)`.

    The signature is the same. Two-dimensional NHWC convolutions without input dilation get the
    rules of this module; all others are passed on to JAX.
    """
    spatial = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = (
        spatial != 2
        or numbers != lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
        or any(d != 1 for d in lhs_dilation or ())
        or batch_group_count != 1
        or (preferred_element_type is not None and preferred_element_type != lhs.dtype)
        or lhs.dtype != rhs.dtype
    )
    if plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        dilated = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], dilated, window_strides, padding)
    geometry = Geometry(
        strides=tuple(int(s) for s in window_strides),  # type: ignore[arg-type]
        padding=tuple((int(low), int(high)) for low, high in padding),  # type: ignore[arg-type]
        dilation=dilation,  # type: ignore[arg-type]
        groups=feature_group_count,
        inputs=lhs.shape[1:],  # type: ignore[arg-type]
        kernel=rhs.shape,  # type: ignore[arg-type]
        precision=precision,
        platform=target_platform(),
    )
    return _map("y", geometry, lhs, rhs)


# A Flax convolution layer that is fast for many clients.
Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)


# The three maps of the trilinear form, by kind:
#   y   [N, H', W', O]         from x and w,
#   dx  [N, H, W, C]           from a gradient at y and w,
#   dw  [h, w, C / groups, O]  from x and a gradient at y.
# Each takes what the other two result in, and these two, given its cotangent, are its gradients.

_OPERANDS = {"y": ("dx", "dw"), "dx": ("y", "dw"), "dw": ("dx", "y")}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _map(kind: str, geometry: Geometry, a: Array, b: Array) -> Array:
    return _mapped(kind, geometry)(a, b)


def _pull_back(
    kind: str, geometry: Geometry, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, ...]:
    known = {kind: cotangent, **dict(zip(_OPERANDS[kind], operands, strict=True))}
    return tuple(
        _map(other, geometry, *(known[operand] for operand in _OPERANDS[other]))
        for other in _OPERANDS[kind]
    )


_map.defvjp(lambda kind, geometry, a, b: (_map(kind, geometry, a, b), (a, b)), _pull_back)


def _form(kind: str, geometry: Geometry) -> Form:
    """Returns the fastest form of a map for one client on the target platform."""
    if geometry.platform == "cpu":
        return cpu_form(kind, geometry)
    return tpu_form(kind, geometry) if geometry.platform == "tpu" else TRANSPOSED[kind]


# The maps for many clients.


@functools.cache
def _mapped(kind: str, geometry: Geometry) -> Callable[[Array, Array], Array]:
    """Returns one of the three maps for one client, with a custom batching rule for `vmap`."""

    form = functools.partial(_form(kind, geometry), geometry)
    one_client = jax.custom_batching.custom_vmap(form)

    @one_client.def_vmap
    def many_clients(
        axis_size: int, in_batched: Sequence[bool], a: Array, b: Array
    ) -> tuple[Array, bool]:
        if all(in_batched) or geometry.groups > 1:
            a, b = (
                t if batched else jnp.broadcast_to(t, (axis_size, *t.shape))
                for t, batched in zip((a, b), in_batched, strict=True)
            )
            if geometry.platform == "cpu":
                return lax.map(lambda ab: one_client(*ab), (a, b)), True
            return jax.vmap(form)(a, b), True
        return _FOLDS[kind, in_batched[0]](axis_size, geometry, a, b), True

    return one_client


# If only one argument differs between clients, all clients are computed by one convolution: the
# client axis is merged into its samples, its input channels or its features.


def _fold_samples(kind: str) -> Callable[[int, Geometry, Array, Array], Array]:
    def fold(size: int, geometry: Geometry, a: Array, b: Array) -> Array:
        merged = _mapped(kind, geometry)(a.reshape(-1, *a.shape[2:]), b)
        return merged.reshape(size, -1, *merged.shape[1:])

    return fold


def _into_channels(a: Array) -> Array:
    """Merges the client axis into channels: [K, …, C] becomes […, K·C]."""
    return jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1)


def _out_of_channels(a: Array, size: int) -> Array:
    """Splits the client axis off channels: […, K·C] becomes [K, …, C]."""
    return jnp.moveaxis(a.reshape(*a.shape[:-1], size, -1), -2, 0)


def _into_fan_in(w: Array) -> Array:
    """Merges the client axis into input channels: [K, h, w, C, O] becomes [h, w, K·C, O]."""
    return jnp.moveaxis(w, 0, 2).reshape(*w.shape[1:3], -1, w.shape[-1])


def _wider_inputs(size: int, geometry: Geometry) -> Geometry:
    height, width, channels = geometry.inputs
    kernel = (*geometry.kernel[:2], size * channels, geometry.kernel[3])
    return dataclasses.replace(geometry, inputs=(height, width, size * channels), kernel=kernel)


def _wider_features(size: int, geometry: Geometry) -> Geometry:
    kernel = (*geometry.kernel[:3], size * geometry.kernel[3])
    return dataclasses.replace(geometry, kernel=kernel)


def _fold_y_kernels(size: int, geometry: Geometry, x: Array, w: Array) -> Array:
    return _out_of_channels(
        _mapped("y", _wider_features(size, geometry))(x, _into_channels(w)), size
    )


def _fold_dx_kernels(size: int, geometry: Geometry, g: Array, w: Array) -> Array:
    return _out_of_channels(_mapped("dx", _wider_inputs(size, geometry))(g, _into_fan_in(w)), size)


def _fold_dw_inputs(size: int, geometry: Geometry, x: Array, g: Array) -> Array:
    joined = _mapped("dw", _wider_inputs(size, geometry))(_into_channels(x), g)
    return jnp.moveaxis(joined.reshape(*joined.shape[:2], size, -1, joined.shape[-1]), 2, 0)


def _fold_dw_outputs(size: int, geometry: Geometry, x: Array, g: Array) -> Array:
    return _out_of_channels(
        _mapped("dw", _wider_features(size, geometry))(x, _into_channels(g)), size
    )


# By map, and by whether the first argument differs between clients (else the second does).
_FOLDS = {
    ("y", True): _fold_samples("y"),
    ("y", False): _fold_y_kernels,
    ("dx", True): _fold_samples("dx"),
    ("dx", False): _fold_dx_kernels,
    ("dw", True): _fold_dw_inputs,
    ("dw", False): _fold_dw_outputs,
}
