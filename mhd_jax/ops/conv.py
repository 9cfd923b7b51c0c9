"""A convolution that stays fast when every client has its own kernel.

`vmap` turns per-client convolutions into one grouped convolution, which XLA runs slowly on
CPUs; and inside loops, XLA's CPU backend leaves both backward convolutions in a transposed
form that runs 10 to 40 times slower. So the convolution here

- has batching rules of its own: per-client kernels become a loop over clients on CPUs and
  the grouped convolution elsewhere; where only the samples or only the kernels differ
  between clients, one plain convolution does;
- computes both of its gradients as plain convolutions (kernel flipped for the input's;
  batch and channels swapped for the kernel's).

The three maps y(x, w), dx(g, w) and dw(x, g) are the partial derivatives of one trilinear
form ⟨g, y(x, w)⟩, so each one's gradients are the other two, to any order.
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

_NHWC = ("NHWC", "HWIO", "NHWC")
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """All that is static about a convolution of [N, H, W, C] by [h, w, C / groups, O]."""

    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    inputs: tuple[int, int, int]  # H, W, C
    kernel: tuple[int, int, int, int]
    precision: Any

    def output(self) -> Pair:
        """Height and width of the output."""
        return tuple(  # type: ignore[return-value]
            (size + sum(pads) - self.span(i)) // self.strides[i] + 1
            for i, (size, pads) in enumerate(zip(self.inputs[:2], self.padding, strict=True))
        )

    def span(self, axis: int) -> int:
        """Input positions that the dilated kernel covers along an axis."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1


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
    """`jax.lax.conv_general_dilated` with its signature, for `flax.linen.Conv(conv_general_dilated=…)`.

    Two-dimensional NHWC convolutions without input dilation get the rules of this module;
    all others are passed on to JAX.
    """
    spatial = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = (
        spatial != 2
        or numbers != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
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
    geometry = _Geometry(
        strides=tuple(int(s) for s in window_strides),  # type: ignore[arg-type]
        padding=tuple((int(low), int(high)) for low, high in padding),  # type: ignore[arg-type]
        dilation=dilation,  # type: ignore[arg-type]
        groups=feature_group_count,
        inputs=lhs.shape[1:],  # type: ignore[arg-type]
        kernel=rhs.shape,  # type: ignore[arg-type]
        precision=precision,
    )
    return _convolve(geometry, lhs, rhs)


# A Flax convolution layer that is fast for many clients.
Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)


# The trilinear form's three maps. `geometry` is static.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: _Geometry, x: Array, w: Array) -> Array:
    """y(x, w): [N, H, W, C], [h, w, C / groups, O] -> [N, H', W', O]."""
    return _mapped("y", geometry)(x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(geometry: _Geometry, g: Array, w: Array) -> Array:
    """dx(g, w): [N, H', W', O], [h, w, C / groups, O] -> [N, H, W, C]."""
    return _mapped("dx", geometry)(g, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry: _Geometry, x: Array, g: Array) -> Array:
    """dw(x, g): [N, H, W, C], [N, H', W', O] -> [h, w, C / groups, O]."""
    return _mapped("dw", geometry)(x, g)


_convolve.defvjp(
    lambda geometry, x, w: (_convolve(geometry, x, w), (x, w)),
    lambda geometry, xw, g: (
        _input_gradient(geometry, g, xw[1]),
        _kernel_gradient(geometry, xw[0], g),
    ),
)
_input_gradient.defvjp(
    lambda geometry, g, w: (_input_gradient(geometry, g, w), (g, w)),
    lambda geometry, gw, x: (
        _convolve(geometry, x, gw[1]),
        _kernel_gradient(geometry, x, gw[0]),
    ),
)
_kernel_gradient.defvjp(
    lambda geometry, x, g: (_kernel_gradient(geometry, x, g), (x, g)),
    lambda geometry, xg, w: (
        _input_gradient(geometry, xg[1], w),
        _convolve(geometry, xg[0], w),
    ),
)


# One client: the plain forms. JAX's own transposes are the reference, and what accelerators get.


def _y(geometry: _Geometry, x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_NHWC,
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _dx_transposed(geometry: _Geometry, g: Array, w: Array) -> Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.inputs), g.dtype)
    return jax.linear_transpose(lambda x: _y(geometry, x, w), x)(g)[0]


def _dw_transposed(geometry: _Geometry, x: Array, g: Array) -> Array:
    w = jax.ShapeDtypeStruct(geometry.kernel, x.dtype)
    return jax.linear_transpose(lambda w: _y(geometry, x, w), w)(g)[0]


def _spread(geometry: _Geometry, g: Array) -> Array:
    """`g` where a convolution of stride 1 would have put it, with zeros elsewhere."""
    config = [(0, 0, 0)]
    for i, stride in enumerate(geometry.strides):
        full = geometry.inputs[i] + sum(geometry.padding[i]) - geometry.span(i) + 1
        config.append((0, full - ((g.shape[1 + i] - 1) * stride + 1), stride - 1))
    return lax.pad(g, jnp.zeros((), g.dtype), [*config, (0, 0, 0)])


def _dx_plain(geometry: _Geometry, g: Array, w: Array) -> Array:
    """The input's gradient as one convolution with a flipped kernel."""
    # [h, w, C / groups, O] -> [h, w, O / groups, C]: each group's channels trade places.
    height, width, fan_in, features = geometry.kernel
    groups = geometry.groups
    flipped = w[::-1, ::-1].reshape(height, width, fan_in, groups, features // groups)
    flipped = flipped.transpose(0, 1, 4, 3, 2).reshape(
        height, width, features // groups, groups * fan_in
    )
    rims = [geometry.span(i) - 1 for i in (0, 1)]
    return lax.conv_general_dilated(
        _spread(geometry, g),
        flipped,
        (1, 1),
        [(rim - low, rim - high) for rim, (low, high) in zip(rims, geometry.padding, strict=True)],
        rhs_dilation=geometry.dilation,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=geometry.precision,
    )


def _dw_plain(geometry: _Geometry, x: Array, g: Array) -> Array:
    """The kernel's gradient as one convolution: samples are its channels, channels its samples."""
    if geometry.groups > 1:
        return _dw_transposed(geometry, x, g)
    return lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        _spread(geometry, g).transpose(1, 2, 0, 3),
        geometry.dilation,
        geometry.padding,
        dimension_numbers=_NHWC,
        precision=geometry.precision,
    ).transpose(1, 2, 0, 3)


# Many clients.

_PLAIN: dict[str, Callable[[_Geometry, Array, Array], Array]] = {
    "y": _y,
    "dx": _dx_plain,
    "dw": _dw_plain,
}
_TRANSPOSED = {"y": _y, "dx": _dx_transposed, "dw": _dw_transposed}


@functools.cache
def _mapped(kind: str, geometry: _Geometry) -> Callable[[Array, Array], Array]:
    """One of the three maps for one client, with a rule of its own under `vmap`."""

    @jax.custom_batching.custom_vmap
    def one_client(a: Array, b: Array) -> Array:
        form = _PLAIN if jax.default_backend() == "cpu" else _TRANSPOSED
        return form[kind](geometry, a, b)

    @one_client.def_vmap
    def many_clients(
        axis_size: int, in_batched: Sequence[bool], a: Array, b: Array
    ) -> tuple[Array, bool]:
        if all(in_batched) or geometry.groups > 1:
            a, b = (
                t if batched else jnp.broadcast_to(t, (axis_size, *t.shape))
                for t, batched in zip((a, b), in_batched, strict=True)
            )
            if jax.default_backend() == "cpu":
                return lax.map(lambda ab: one_client(*ab), (a, b)), True
            return jax.vmap(functools.partial(_TRANSPOSED[kind], geometry))(a, b), True
        return _FOLDS[kind, in_batched[0]](axis_size, geometry, a, b), True

    return one_client


# Where only one argument differs between clients, the clients fold into one convolution:
# into its samples, its input channels or its features.


def _fold_samples(kind: str) -> Callable[[int, _Geometry, Array, Array], Array]:
    def fold(size: int, geometry: _Geometry, a: Array, b: Array) -> Array:
        merged = _mapped(kind, geometry)(a.reshape(-1, *a.shape[2:]), b)
        return merged.reshape(size, -1, *merged.shape[1:])

    return fold


def _into_channels(a: Array) -> Array:
    """[K, …, C] -> […, K·C]."""
    return jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1)


def _out_of_channels(a: Array, size: int) -> Array:
    """[…, K·C] -> [K, …, C]."""
    return jnp.moveaxis(a.reshape(*a.shape[:-1], size, -1), -2, 0)


def _into_fan_in(w: Array) -> Array:
    """[K, h, w, C, O] -> [h, w, K·C, O]."""
    return jnp.moveaxis(w, 0, 2).reshape(*w.shape[1:3], -1, w.shape[-1])


def _wider_inputs(size: int, geometry: _Geometry) -> _Geometry:
    height, width, channels = geometry.inputs
    kernel = (*geometry.kernel[:2], size * channels, geometry.kernel[3])
    return dataclasses.replace(geometry, inputs=(height, width, size * channels), kernel=kernel)


def _wider_features(size: int, geometry: _Geometry) -> _Geometry:
    kernel = (*geometry.kernel[:3], size * geometry.kernel[3])
    return dataclasses.replace(geometry, kernel=kernel)


def _fold_y_kernels(size: int, geometry: _Geometry, x: Array, w: Array) -> Array:
    return _out_of_channels(
        _mapped("y", _wider_features(size, geometry))(x, _into_channels(w)), size
    )


def _fold_dx_kernels(size: int, geometry: _Geometry, g: Array, w: Array) -> Array:
    return _out_of_channels(_mapped("dx", _wider_inputs(size, geometry))(g, _into_fan_in(w)), size)


def _fold_dw_inputs(size: int, geometry: _Geometry, x: Array, g: Array) -> Array:
    joined = _mapped("dw", _wider_inputs(size, geometry))(_into_channels(x), g)
    return jnp.moveaxis(joined.reshape(*joined.shape[:2], size, -1, joined.shape[-1]), 2, 0)


def _fold_dw_outputs(size: int, geometry: _Geometry, x: Array, g: Array) -> Array:
    return _out_of_channels(
        _mapped("dw", _wider_features(size, geometry))(x, _into_channels(g)), size
    )


# By map, and whether it is the first argument that differs between clients.
_FOLDS = {
    ("y", True): _fold_samples("y"),
    ("y", False): _fold_y_kernels,
    ("dx", True): _fold_samples("dx"),
    ("dx", False): _fold_dx_kernels,
    ("dw", True): _fold_dw_inputs,
    ("dw", False): _fold_dw_outputs,
}
