"""The three maps of a convolution for one client, in the fastest form for each backend.

JAX's own transposes are the reference, and the form for accelerators.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mhd_jax.core.client_axis import even_part
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


def _dx_flipped(geometry: Geometry, g: Array, w: Array) -> Array:
    """Computes the input's gradient as one convolution with a flipped kernel."""
    # [h, w, C / groups, O] -> [h, w, O / groups, C]: input and output channels swap by group.
    height, width, fan_in, features = geometry.kernel
    groups = geometry.groups
    flipped = w[::-1, ::-1].reshape(height, width, fan_in, groups, features // groups)
    flipped = flipped.transpose(0, 1, 4, 3, 2).reshape(
        height, width, features // groups, groups * fan_in
    )
    spread = _spread(geometry, g)
    rims = [geometry.span(i) - 1 for i in (0, 1)]
    backwards: Geometry = dataclasses.replace(
        geometry,
        strides=(1, 1),
        padding=tuple(
            (rim - low, rim - high) for rim, (low, high) in zip(rims, geometry.padding, strict=True)
        ),  # type: ignore[arg-type]
        inputs=spread.shape[1:],  # type: ignore[arg-type]
        kernel=flipped.shape,  # type: ignore[arg-type]
    )
    return _y_cpu(backwards, spread, flipped)


def _dx_product(geometry: Geometry, g: Array, w: Array) -> Array:
    """Computes the input's gradient of a strided convolution as one matrix product, without zeros.

    The product has what each output gives to the input under each position of the kernel. A pixel
    adds up what it gets; pixels at one place of their blocks of the strides' size get it from the
    same positions.
    """
    n, *counts = g.shape[:3]
    seen = jnp.einsum("nhwo,klco->nhwklc", g, w, precision=geometry.precision)
    strides = geometry.strides
    blocks = [-(-geometry.inputs[i] // strides[i]) for i in (0, 1)]

    def seen_by(phase: tuple[int, ...]) -> Array:
        """Returns the gradient of the pixels at this place of each block of the strides' size."""
        total = jnp.zeros((n, *blocks, geometry.inputs[2]), g.dtype)
        for position in np.ndindex(geometry.kernel[:2]):
            ahead = [phase[i] + geometry.padding[i][0] - position[i] for i in (0, 1)]
            if any(ahead[i] % strides[i] for i in (0, 1)):
                continue
            by = [ahead[i] // strides[i] for i in (0, 1)]
            rims = [(-by[i], blocks[i] + by[i] - counts[i], 0) for i in (0, 1)]
            part = seen[:, :, :, position[0], position[1]]
            total += lax.pad(part, jnp.zeros((), g.dtype), [(0, 0, 0), *rims, (0, 0, 0)])
        return total

    phases = [[seen_by((row, column)) for column in range(strides[1])] for row in range(strides[0])]
    dx = jnp.stack([jnp.stack(of_row, axis=3) for of_row in phases], axis=2)
    whole = [blocks[i] * strides[i] for i in (0, 1)]
    return dx.reshape(n, *whole, -1)[:, : geometry.inputs[0], : geometry.inputs[1]]


def _dw_swapped(geometry: Geometry, x: Array, g: Array) -> Array:
    """Computes the kernel's gradient as one convolution with samples and channels swapped."""
    if geometry.groups > 1:
        return _dw_transposed(geometry, x, g)
    pads = []
    for i, (low, _) in enumerate(geometry.padding):
        seen = (g.shape[1 + i] - 1) * geometry.strides[i] + geometry.span(i)
        used = min(max(seen - low, 0), x.shape[1 + i])  # the last pixels may reach no output
        x = lax.slice_in_dim(x, 0, used, axis=1 + i)
        pads.append((low, seen - low - used))
    return lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        geometry.dilation,
        pads,
        rhs_dilation=geometry.strides,
        dimension_numbers=NHWC,
        precision=geometry.precision,
    ).transpose(1, 2, 0, 3)


def _dw_product(geometry: Geometry, x: Array, g: Array) -> Array:
    """Computes the gradient of a kernel of one pixel as one matrix product."""
    (seen,) = _taps(geometry, x)
    dw = jnp.einsum("nhwc,nhwo->co", seen, g, precision=geometry.precision)
    return dw.reshape(geometry.kernel)


def _dw_in_parts(geometry: Geometry, x: Array, g: Array) -> Array:
    """Computes the kernel's gradient of a few samples at a time, whose copies stay in the cache."""
    if max(geometry.kernel[:2]) == 1:
        return _dw_product(geometry, x, g)
    part = x.shape[0] if x.size < _SMALL else _part(geometry, x.shape[0])
    few = part <= 10  # of more samples, pairs no longer stay in the cache
    form = _dw_pairs if few and _is_thin(geometry) else _dw_swapped
    if part == x.shape[0]:
        return form(geometry, x, g)
    parts = [a.reshape(-1, part, *a.shape[1:]) for a in (x, g)]

    def add(total: Array, part: list[Array]) -> tuple[Array, None]:
        return total + form(geometry, *part), None

    return lax.scan(add, jnp.zeros(geometry.kernel, x.dtype), parts)[0]


def _part(geometry: Geometry, count: int) -> int:
    """Returns how many of the samples are computed together.

    They are the channels of swapped convolutions, which are fast in multiples of four, and slow
    in odd numbers.
    """
    floats = math.prod(geometry.output()) * max(geometry.kernel[2:])  # of one sample
    most = min(16, max(_CACHED // floats, 2))
    if count % 4 == 0:
        return 8 if count % 8 == 0 and most == 16 else 4
    return count if count % 2 else 2 * even_part(count // 2, most // 2)


def _in_pairs(geometry: Geometry) -> Geometry:
    """The geometry of neighbouring columns of the output as channels of one wider kernel."""
    height, width, fan_in, features = geometry.kernel
    by_row, by_column = geometry.strides
    return dataclasses.replace(
        geometry,
        strides=(by_row, 2 * by_column),
        kernel=(height, width + by_column, fan_in, 2 * features),
    )


def _y_pairs(geometry: Geometry, x: Array, w: Array) -> Array:
    """Computes neighbouring columns of the output together, as channels of one wider kernel."""
    stride, pairs = geometry.strides[1], _in_pairs(geometry)
    shifted = [
        lax.pad(w, jnp.zeros((), w.dtype), [(0, 0, 0), (left, stride - left, 0), *[(0, 0, 0)] * 2])
        for left in (0, stride)
    ]
    y = _y(pairs, x, jnp.stack(shifted, axis=3).reshape(pairs.kernel))
    return y.reshape(x.shape[0], *geometry.output(), w.shape[-1])


def _dw_pairs(geometry: Geometry, x: Array, g: Array) -> Array:
    """Computes the kernel's gradient by that of the wider kernel, whose halves are its shifts."""
    stride, pairs = geometry.strides[1], _in_pairs(geometry)
    dw = _dw_swapped(pairs, x, g.reshape(x.shape[0], *pairs.output(), -1))
    dw = dw.reshape(*pairs.kernel[:3], 2, geometry.kernel[3])
    return dw[:, : geometry.kernel[1], :, 0] + dw[:, stride:, :, 1]


def _y_blocks(geometry: Geometry, x: Array, w: Array) -> Array:
    return Blocks(geometry, (2, 2)).y(_y, x, w)


def _dx_blocks(geometry: Geometry, g: Array, w: Array) -> Array:
    return Blocks(geometry, (2, 2)).dx(_dx_flipped, g, w)


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


# JAX's own transposes, for accelerators.

TRANSPOSED: dict[str, Form] = {"y": _y, "dx": _dx_transposed, "dw": _dw_transposed}

# Images smaller than the kernel on TPUs. Their compiler lets the kernel pass over the image as if
# it were the larger image, and for that reverses the whole kernel in memory, which takes longer
# than the convolution. Here the outputs or their gradient are reversed instead.


def _over_kernel(geometry: Geometry, w: Array, a: Array, axes_of_w: str) -> Array:
    """Correlates the kernel, as samples with channels, with `a` [N, H, W, C], as the kernel.

    With indices of y = Σ_k x[t] w[k], t = i + k − padding, along each axis, the result at j is the
    sum of w[j + t + padding − (outputs − 1)] a[t].
    """
    pads = [
        (outputs - 1 - low, inputs + low - size)
        for outputs, inputs, size, (low, _) in zip(
            geometry.output(),
            geometry.inputs[:2],
            geometry.kernel[:2],
            geometry.padding,
            strict=True,
        )
    ]
    return lax.conv_general_dilated(
        w,
        a,
        (1, 1),
        pads,
        dimension_numbers=(axes_of_w, "OHWI", "CHWN"),
        precision=geometry.precision,
    )


def _y_of_small(geometry: Geometry, x: Array, w: Array) -> Array:
    return lax.rev(_over_kernel(geometry, w, x, "HWCN"), (1, 2))


def _dx_of_small(geometry: Geometry, g: Array, w: Array) -> Array:
    return _over_kernel(geometry, w, lax.rev(g, (1, 2)), "HWNC")


def tpu_form(kind: str, geometry: Geometry) -> Form:
    """Returns the fastest form of a map for one client on TPUs, by their compiler's estimates."""
    small = all(geometry.kernel[i] > geometry.inputs[i] for i in (0, 1))
    if not small or geometry.groups > 1 or not geometry.has_outputs:
        return TRANSPOSED[kind]
    if (geometry.strides, geometry.dilation) != ((1, 1), (1, 1)):
        return TRANSPOSED[kind]
    return {"y": _y_of_small, "dx": _dx_of_small, "dw": _dw_transposed}[kind]


# The form for each shape on CPUs, by measurement (one core, inside a loop, 16 to 64 samples).

_FEW_CHANNELS = 64  # with fewer channels, XLA's gradient is faster than sums over positions
_THIN = 16  # with about as many channels, blocks or pairs of pixels are faster
_CACHED = 2**18  # numbers of one array that should stay in the cache
_SMALL = 2**16  # inputs so small are not worth parts
_DEPTHWISE = {"y": _y_depthwise, "dx": _dx_depthwise, "dw": _dw_depthwise}
_PLAIN: dict[str, Form] = {"y": _y, "dx": _dx_flipped, "dw": _dw_swapped}


def cpu_form(kind: str, geometry: Geometry) -> Form:
    """Returns the fastest form of a map for one client on CPUs."""
    if geometry.is_depthwise:
        return _DEPTHWISE[kind]
    if geometry.groups > 1 or geometry.dilation != (1, 1) or not geometry.has_outputs:
        return _PLAIN[kind]
    return {"y": _y_cpu, "dx": _dx_cpu, "dw": _dw_in_parts}[kind]


def _is_thin(geometry: Geometry) -> bool:
    """Whether the kernel's gradient has so few channels that pairs of columns are faster."""
    few = geometry.kernel[3] <= _THIN and max(geometry.kernel[:2]) <= 3
    return few and geometry.strides == (1, 1) and geometry.output()[1] % 2 == 0


def _y_cpu(geometry: Geometry, x: Array, w: Array) -> Array:
    height, width = geometry.output()
    fan_in, features = geometry.kernel[2:]
    thin = fan_in < _THIN
    plain = geometry.groups > 1 or geometry.dilation != (1, 1) or max(geometry.kernel[:2]) == 1
    if plain or width % 2:
        return _y(geometry, x, w)
    if thin and geometry.strides == (1, 1) and height % 2 == 0:
        return _y_blocks(geometry, x, w)
    if features <= (2 * _THIN if thin else _THIN) and fan_in < 2 * _THIN:
        return _y_pairs(geometry, x, w)
    return _y(geometry, x, w)


def _dx_cpu(geometry: Geometry, g: Array, w: Array) -> Array:
    if geometry.strides != (1, 1):
        return _dx_product(geometry, g, w)
    even = all(size % 2 == 0 for size in geometry.output())
    if max(geometry.kernel[:2]) > 1 and geometry.inputs[2] < _THIN and even:
        return _dx_blocks(geometry, g, w)
    return _dx_flipped(geometry, g, w)
