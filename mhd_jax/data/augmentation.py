"""Augmentation: random changes of training images, on the device inside the step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import require_kinds
from mhd_jax.data.preprocessing import Preparation, scale

_ASPECTS = (3 / 4, 4 / 3)  # of a resized crop, as in Szegedy et al., CVPR 2015


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The random changes of a training image, applied in this order.

    Attributes:
      resized_crop: the smallest share of the image's area that a random crop of random size
        keeps, in (0, 1]; it is resized to the size that the model sees. (Szegedy et al.,
        CVPR 2015; 0.08 there.) None crops none.
      crop: pixels of black border around the image, from which a random crop of the size that
        the model sees is taken (He et al., CVPR 2016; 4 for CIFAR-10). None crops none.
      flip: whether the image is mirrored, left to right, with probability ½.
      jitter: by which share at most brightness, contrast and saturation change, in [0, 1) (as in
        Chen et al., ICML 2020; values are not cut off). 0 changes none.
      cutout: side of a square that is blanked, anywhere, in part beyond the border (DeVries and
        Taylor, 2017; 16 for CIFAR-10). 0 blanks none.
    """

    resized_crop: float | None = None
    crop: int | None = None
    flip: bool = False
    cutout: int = 0
    jitter: float = 0.0

    def __post_init__(self):
        require_kinds(self)
        if self.resized_crop is not None and not 0 < self.resized_crop <= 1:
            raise ConfigError(f"resized_crop must be in (0, 1], not {self.resized_crop}.")
        if self.crop is not None and self.crop < 0:
            raise ConfigError(f"crop must be at least 0, not {self.crop}.")
        if self.cutout < 0:
            raise ConfigError(f"cutout must be at least 0, not {self.cutout}.")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"jitter must be in [0, 1), not {self.jitter}.")
        if self.resized_crop is not None and self.crop is not None:
            raise ConfigError("resized_crop and crop both cut images out; leave one of them out.")

    def __call__(self, key: Array, image: Array, preparation: Preparation) -> Array:
        """Augments one stored image [h, w, c] and returns it in the form that models see."""
        crop_key, flip_key, cutout_key = jax.random.split(key, 3)
        image = scale(image)
        side = preparation.crop_size
        height, width = image.shape[:2] if side is None else (side, side)
        if self.resized_crop is not None:
            image = _resized_crop(crop_key, image, self.resized_crop, (height, width))
        elif self.crop is not None:
            image = _padded_crop(crop_key, image, self.crop, (height, width))
        else:
            image = preparation.crop(image)
        if self.flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        if self.jitter:
            image = _jittered(jax.random.fold_in(key, 3), image, self.jitter)
        image = preparation.standardise(image)
        return _cutout(cutout_key, image, self.cutout) if self.cutout else image


def parse(text: str) -> Augmentation | None:
    """Parses an augmentation written as "flip,crop:4"; returns None for an empty text.

    Raises:
      ConfigError: an unknown name, or a wrong number.
    """
    known = {field.name: field for field in dataclasses.fields(Augmentation)}
    options: dict[str, float | int | bool] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition(":")
        if name not in known:
            raise ConfigError(f"unknown augmentation {name!r}; choose among {', '.join(known)}.")
        if name in options:
            raise ConfigError(f"the augmentation {text!r} names {name} twice; name it once.")
        if (name == "flip") == bool(value):
            takes = (
                "takes no number" if name == "flip" else f"needs a number, like {_EXAMPLES[name]}"
            )
            raise ConfigError(f"the augmentation {name} {takes}; {part!r} was given.")
        try:
            options[name] = (
                True if name == "flip" else int(value) if name in _INTEGERS else float(value)
            )
        except ValueError:
            raise ConfigError(f"cannot read {part!r}; write {_EXAMPLES[name]}, say.") from None
    return Augmentation(**options) if options else None  # type: ignore[arg-type]


_INTEGERS = ("crop", "cutout")
_EXAMPLES = {
    "resized_crop": "resized_crop:0.25",
    "crop": "crop:4",
    "cutout": "cutout:16",
    "jitter": "jitter:0.4",
}


def _padded_crop(key: Array, image: Array, border: int, size: tuple[int, int]) -> Array:
    padded = jnp.pad(image, ((border, border), (border, border), (0, 0)))
    room = jnp.asarray(padded.shape[:2]) - jnp.asarray(size)
    top, left = jax.random.randint(key, (2,), 0, room + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (*size, image.shape[2]))


def _resized_crop(key: Array, image: Array, least: float, size: tuple[int, int]) -> Array:
    """Returns a resized crop of random area, and of a random aspect with which it is in the image."""
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    sides = jnp.asarray(image.shape[:2], jnp.float32)
    area = sides.prod() * jax.random.uniform(area_key, minval=least, maxval=1.0)
    fitting = area / sides[0] ** 2, sides[1] ** 2 / area  # for these a side is the image's
    low, high = jnp.log(jnp.clip(jnp.asarray(_ASPECTS), *fitting))
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=low, maxval=high))  # width over height
    # By rounding alone a side could be longer than the image's.
    crop = jnp.minimum(jnp.sqrt(jnp.stack([area / aspect, area * aspect])), sides)
    corner = jax.random.uniform(place_key, (2,)) * (sides - crop)
    factor = jnp.asarray(size) / crop
    return jax.image.scale_and_translate(
        image, (*size, image.shape[2]), (0, 1), factor, -corner * factor, method="linear"
    )


def _jittered(key: Array, image: Array, strength: float) -> Array:
    brightness, contrast, saturation = jax.random.uniform(
        key, (3,), minval=1 - strength, maxval=1 + strength
    )
    image = brightness * image
    image = image.mean() + contrast * (image - image.mean())
    grey = image.mean(axis=-1, keepdims=True)
    return grey + saturation * (image - grey)


def _cutout(key: Array, image: Array, side: int) -> Array:
    height, width, _ = image.shape
    centre = jax.random.randint(key, (2,), 0, jnp.asarray([height, width]))

    def inside(length: int, middle: Array) -> Array:
        offset = jnp.arange(length) - (middle - side // 2)
        return (offset >= 0) & (offset < side)

    hidden = inside(height, centre[0])[:, None] & inside(width, centre[1])
    return jnp.where(hidden[:, :, None], 0, image)
