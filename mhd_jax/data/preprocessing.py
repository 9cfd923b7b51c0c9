"""Preparation of stored samples for models: scaling, centre crop, standardisation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The deterministic preparation of samples, the same in training and in evaluation.

    uint8 arrays are pixels and become floats in [0, 1]; arrays of other types stay as they are. The
    attributes are for samples that are one image.

    Attributes:
      crop_size: the side of the centre crop; None keeps the whole image.
      mean, std: mean and deviation of each channel over the training images, scaled to [0, 1], for
        standardisation; empty for none.
    """

    crop_size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, inputs: PyTree) -> PyTree:
        """Prepares stored samples; images [..., h, w, c] become [..., crop_size, crop_size, c]."""
        scaled = scale(inputs)
        return scaled if self == PLAIN else self.standardise(self.crop(scaled))

    def crop(self, images: Array) -> Array:
        """Returns the centre crop of images [..., h, w, c]."""
        if self.crop_size is None:
            return images
        top, left = ((side - self.crop_size) // 2 for side in images.shape[-3:-1])
        return images[..., top : top + self.crop_size, left : left + self.crop_size, :]

    def standardise(self, images: Array) -> Array:
        """Standardises images [..., c] by the training images' channel means and deviations."""
        if not self.mean:
            return images
        return (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)


PLAIN = Preparation()


def scale(inputs: PyTree) -> PyTree:
    """Scales uint8 arrays (pixels) to floats in [0, 1]; arrays of other types are unchanged."""

    def of_array(a: Array) -> Array:
        return a.astype(jnp.float32) / 255 if a.dtype == jnp.uint8 else a

    return jax.tree.map(of_array, inputs)
