"""How stored samples become what models see: scaled, cropped, standardised."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The same for every sample, in training and evaluation alike.

    uint8 arrays are pixels and become floats in [0, 1]; whatever else a sample holds stays. The
    attributes are for samples that are one image.

    Attributes:
      crop_size: side of the centre crop; None takes images whole.
      mean, std: of each channel over the training images, scaled to [0, 1], from which it is
        standardised; empty leaves it.
    """

    crop_size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, inputs: PyTree) -> PyTree:
        """Samples [..., h, w, c] as stored -> [..., crop_size, crop_size, c]."""
        scaled = scale(inputs)
        return scaled if self == PLAIN else self.standardise(self.crop(scaled))

    def crop(self, images: Array) -> Array:
        """The middle of images [..., h, w, c]."""
        if self.crop_size is None:
            return images
        top, left = ((side - self.crop_size) // 2 for side in images.shape[-3:-1])
        return images[..., top : top + self.crop_size, left : left + self.crop_size, :]

    def standardise(self, images: Array) -> Array:
        """Images [..., c] with mean 0 and deviation 1 in each channel, over the training images."""
        if not self.mean:
            return images
        return (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)


PLAIN = Preparation()


def scale(inputs: PyTree) -> PyTree:
    """Pixels (uint8) as floats in [0, 1]; the rest stays."""

    def of_array(a: Array) -> Array:
        return a.astype(jnp.float32) / 255 if a.dtype == jnp.uint8 else a

    return jax.tree.map(of_array, inputs)
