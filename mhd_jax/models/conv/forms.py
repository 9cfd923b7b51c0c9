"""The three maps of a convolution for one client, in the fastest form for each backend.

JAX's own transposes are the reference, and the form for accelerators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mhd_jax.models.conv.blocks import Blocks
from mhd_jax.models.conv.geometry import Geometry

NHWC = ("NHWC", "HWIO", "NHWC")
Form = Callable[[Geometry, Array, Array], Array]


def _y(geometry: Geometry, x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=NHWC,
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _dx_transposed(geometry: Geometry, g: Array, w: Array) -> Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.inputs), g.dtype)
    return jax.linear_transpose(lambda x: _y(geometry, x, w), x)(g)[0]


def _dw_transposed(geometry: Geometry, x: Array, g: Array) -> Array:
    w = jax.ShapeDtypeStruct(geometry.kernel, x.dtype)
    return jax.linear_transpose(lambda w: _y(geometry, x, w), w)(g)[0]


def _spread(geometry: Geometry, g: Array) -> Array:
    """Places the entries of `g` as in the output of stride 1, with zeros between them."""
    config = [(0, 0, 0)]
    for i, stride in enumerate(geometry.strides):
        full = geometry.inputs[i] + sum(geometry.padding[i]) - geometry.span(i) + 1
        config.append((0, full - ((g.shape[1 + i] - 1) * stride + 1), stride - 1))
    return lax.pad(g, jnp.zeros((), g.dtype), [*config, (0, 0, 0)])


def _dx_plain(geometry: Geometry, g: Array, w: Array) -> Array:
    """Computes the input's gradient as one convolution with a flipped kernel."""
    # [h, w, C / groups, O] -> [h, w, O / groups, C]: input and output channels swap by group.
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
        dimension_numbers=NHWC,
        feature_group_count=groups,
        precision=geometry.precision,
    )


def _dw_plain(geometry: Geometry, x: Array, g: Array) -> Array:
    """Computes the kernel's gradient as one convolution with samples and channels swapped."""
    if geometry.groups > 1:
        return _dw_transposed(geometry, x, g)
    return lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        _spread(geometry, g).transpose(1, 2, 0, 3),
        geometry.dilation,
        geometry.padding,
        dimension_numbers=NHWC,
        precision=geometry.precision,
    ).transpose(1, 2, 0, 3)


def _dw_product(geometry: Geometry, x: Array, g: Array) -> Array:
    """Computes the kernel's gradient as one matrix product with the taps of all positions."""
    seen = jnp.concatenate(list(_taps(geometry, x)), axis=-1)
    return jnp.einsum("nhwc,nhwo->co", seen, g, precision=geometry.precision).reshape(
        geometry.kernel
    )


def _blocks(geometry: Geometry) -> Blocks:
    return Blocks(geometry, (1, 1) if geometry.strides != (1, 1) else (2, 2))


def _y_blocks(geometry: Geometry, x: Array, w: Array) -> Array:
    return _blocks(geometry).y(_y, x, w)


def _dx_blocks(geometry: Geometry, g: Array, w: Array) -> Array:
    return _blocks(geometry).dx(_dx_plain, g, w)


# Depthwise convolutions on CPUs as sums of shifted inputs over the kernel's taps: XLA's own run
# at a hundredth of the machine's speed.


def _taps(geometry: Geometry, x: Array) -> Iterator[Array]:
    """Yields the inputs [N, H', W', C] under each position of the kernel, row by row."""
    rims = [(0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), rims)
    sizes = geometry.output()
    for position in np.ndindex(geometry.kernel[:2]):
        low = [position[i] * geometry.dilation[i] for i in (0, 1)]
        high = [low[i] + (sizes[i] - 1) * geometry.strides[i] + 1 for i in (0, 1)]
        yield x[:, low[0] : high[0] : geometry.strides[0], low[1] : high[1] : geometry.strides[1]]


def _y_depthwise(geometry: Geometry, x: Array, w: Array) -> Array:
    weights = w.reshape(-1, w.shape[-1])
    first, *others = (
        seen * weight for seen, weight in zip(_taps(geometry, x), weights, strict=True)
    )
    return sum(others, start=first)


def _dx_depthwise(geometry: Geometry, g: Array, w: Array) -> Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.inputs), g.dtype)
    return jax.linear_transpose(lambda x: _y_depthwise(geometry, x, w), x)(g)[0]


def _dw_depthwise(geometry: Geometry, x: Array, g: Array) -> Array:
    if geometry.groups < _FEW_CHANNELS:
        return _dw_transposed(geometry, x, g)
    sums = [(seen * g).sum(axis=(0, 1, 2)) for seen in _taps(geometry, x)]
    return jnp.stack(sums).reshape(geometry.kernel)


TRANSPOSED: dict[str, Form] = {"y": _y, "dx": _dx_transposed, "dw": _dw_transposed}

# The form for each shape on CPUs, by measurement (one core, inside a loop, batch 32).

_FEW_CHANNELS = 64  # with fewer channels, XLA's gradient is faster than sums over positions
_THIN = 16  # with fewer input channels, blocks of pixels are faster
_DEPTHWISE = {"y": _y_depthwise, "dx": _dx_depthwise, "dw": _dw_depthwise}
_PLAIN: dict[str, Form] = {"y": _y, "dx": _dx_plain, "dw": _dw_plain}


def cpu_form(kind: str, geometry: Geometry) -> Form:
    """Returns the fastest form of a map for one client on CPUs."""
    if geometry.is_depthwise:
        return _DEPTHWISE[kind]
    if geometry.groups > 1 or geometry.dilation != (1, 1) or not geometry.has_outputs:
        return _PLAIN[kind]
    strided, wide = geometry.strides != (1, 1), max(geometry.kernel[:2]) > 1
    if strided and kind == "dw":
        return _dw_product
    if strided and wide and kind == "dx":
        return _dx_blocks
    thin = geometry.inputs[2] < _THIN and all(size % 2 == 0 for size in geometry.output())
    if thin and wide and not strided:
        return {"y": _y_blocks, "dx": _dx_blocks, "dw": _dw_plain}[kind]
    return _PLAIN[kind]
