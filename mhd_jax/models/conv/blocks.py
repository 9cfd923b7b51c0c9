"""Rewrites a convolution as one of stride 1 over blocks of pixels, whose pixels become channels.

They give convolutions of very few channels enough channels for fast matrix products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mhd_jax.models.conv.geometry import Geometry, Pair

Map = Callable[[Geometry, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The block layout of a convolution of stride 1, without dilation or groups.

    Attributes:
      of: the geometry of the convolution.
      size: height and width of one block in pixels; they must divide the output's.
    """

    of: Geometry
    size: Pair

    @property
    def kernel(self) -> Pair:
        """Height and width in blocks of the input that the outputs of one block depend on."""
        return tuple(  # type: ignore[return-value]
            -(-(self.of.kernel[i] + self.size[i] - 1) // self.size[i]) for i in (0, 1)
        )

    @property
    def geometry(self) -> Geometry:
        """The geometry of the convolution over blocks."""
        _, _, fan_in, features = self.of.kernel
        count = self.of.output()
        blocks = [count[i] // self.size[i] + self.kernel[i] - 1 for i in (0, 1)]
        pixels = self.size[0] * self.size[1]
        fan_in, features = fan_in * pixels, features * pixels
        return dataclasses.replace(
            self.of,
            padding=((0, 0), (0, 0)),
            inputs=(blocks[0], blocks[1], fan_in),
            kernel=(*self.kernel, fan_in, features),
        )

    def fold_inputs(self, x: Array) -> Array:
        """Arranges padded inputs [N, H, W, C] in blocks."""
        sizes = [self.geometry.inputs[i] * self.size[i] for i in (0, 1)]
        rims = [
            (low, sizes[i] - self.of.inputs[i] - low, 0)
            for i, (low, _) in enumerate(self.of.padding)
        ]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *rims, (0, 0, 0)])
        return _into_blocks(x, self.size)

    def fold_outputs(self, y: Array) -> Array:
        """Arranges outputs [N, H', W', O] in blocks."""
        return _into_blocks(y, self.size)

    def fold_kernel(self, w: Array) -> Array:
        """Returns the kernel over blocks: w [h, w, C, O] once for each output pixel of a block."""
        shifted = []
        for offset in np.ndindex(self.size):
            sizes = [self.kernel[i] * self.size[i] for i in (0, 1)]
            rims = [(offset[i], sizes[i] - self.of.kernel[i] - offset[i], 0) for i in (0, 1)]
            shifted.append(lax.pad(w, jnp.zeros((), w.dtype), [*rims, (0, 0, 0), (0, 0, 0)]))
        stacked = jnp.stack(shifted, axis=3)  # [h, w, C, pixels of a block, O]
        fan_in, features = self.of.kernel[2:]
        split = stacked.reshape(
            self.kernel[0], self.size[0], self.kernel[1], self.size[1], fan_in, -1, features
        )
        return split.transpose(0, 2, 1, 3, 4, 5, 6).reshape(self.geometry.kernel)

    def y(self, convolve: Map, x: Array, w: Array) -> Array:
        """Computes the convolution; `convolve` computes the convolution over blocks."""
        y = convolve(self.geometry, self.fold_inputs(x), self.fold_kernel(w))
        like = jax.ShapeDtypeStruct((x.shape[0], *self.of.output(), w.shape[-1]), x.dtype)
        return jax.linear_transpose(self.fold_outputs, like)(y)[0]  # inverts the permutation

    def dx(self, input_gradient: Map, g: Array, w: Array) -> Array:
        """Computes the input's gradient; `input_gradient` computes the gradient over blocks."""
        dx = input_gradient(self.geometry, self.fold_outputs(g), self.fold_kernel(w))
        like = jax.ShapeDtypeStruct((g.shape[0], *self.of.inputs), g.dtype)
        return jax.linear_transpose(self.fold_inputs, like)(dx)[0]


def _into_blocks(a: Array, size: Pair) -> Array:
    """Arranges [N, H, W, C] in blocks [N, H / h, W / w, h·w·C]."""
    n, height, width, channels = a.shape
    split = a.reshape(n, height // size[0], size[0], width // size[1], size[1], channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(n, *split.shape[1:4:2], -1)
