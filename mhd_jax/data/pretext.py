"""Pretext tasks: self-supervised objectives for clients without labels on their private images.

Each task is a classification whose labels come from the images themselves. The client has its own
head for the task, on the embedding beside the other heads, and shares it with nobody: the task
affects other clients through embeddings and, by distillation, through the other heads.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import require_kinds
from mhd_jax.data.augmentation import Augmentation
from mhd_jax.data.preprocessing import PLAIN

_VIEWS = Augmentation(resized_crop=0.5, jitter=0.4)


@runtime_checkable
class Pretext(Protocol):
    """The protocol of a pretext task; hashable, as a task is part of a client's architecture.

    Attributes:
      name: the name in settings and on the command line.
      views: the number of images made from each image.
      square: whether images must be square.
      head: a Flax module from embeddings [N, D] to the input of `logits`.
    """

    name: str
    views: int
    square: bool

    @property
    def head(self) -> nn.Module:
        """The task's own head."""

    def samples(self, key: Array, images: Array) -> tuple[Array, Array]:
        """Makes the task's images [views·B, h, w, c] and int32 labels from images [B, h, w, c]."""

    def logits(self, outputs: Array) -> Array:
        """Returns a logit for each label [N, …] from the head's outputs on a batch [N, …]."""


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotation prediction (Gidaris et al., ICLR 2018): the number of quarter turns of an image.

    In the paper a batch contains all four turns of an image; here each image is turned once, at
    random. The expected loss is the same, and a step costs as much as a supervised client's.
    """

    name = "rotation"
    views = 1
    square = True

    @property
    def head(self) -> nn.Module:
        """A linear layer with an output for each of the four turns."""
        return nn.Dense(4)

    def samples(self, key: Array, images: Array) -> tuple[Array, Array]:
        """Turns each image [B, h, w, c] at random; labels are numbers of quarter turns [B]."""
        turns = jax.random.randint(key, images.shape[:1], 0, 4, jnp.int32)
        turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)])
        return turned[turns, jnp.arange(len(images))], turns

    def logits(self, outputs: Array) -> Array:
        """Returns the head's outputs [B, 4] unchanged."""
        return outputs


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """Contrastive learning (SimCLR; Chen et al., ICML 2020): find the other view of an image.

    The loss is NT-Xent. With z the normalised projections of the 2B views of B images, and τ the
    temperature, it is the mean over i of −log softmax of z_i·z_j / τ over j ≠ i, at the j of the
    same image's other view.

    Attributes:
      transform: the augmentation that makes views; the paper's also blurs.
      temperature: τ.
      width: the width of the projection; the head has one hidden layer, as wide as the embedding.
    """

    transform: Augmentation = _VIEWS
    temperature: float = 0.5
    width: int = 64

    name = "simclr"
    views = 2
    square = False

    def __post_init__(self):
        require_kinds(self)
        if self.temperature <= 0:
            raise ConfigError(f"the temperature must be positive, not {self.temperature}.")
        if self.width < 1:
            raise ConfigError(f"the width must be at least 1, not {self.width}.")

    @property
    def head(self) -> nn.Module:
        """The projection to the unit sphere."""
        return _Projection(self.width)

    def samples(self, key: Array, images: Array) -> tuple[Array, Array]:
        """Makes first views of all images, then second views; a label is the other view's index."""
        twice = jnp.concatenate([images, images])
        keys = jax.random.split(key, len(twice))
        views = jax.vmap(lambda key, image: self.transform(key, image, PLAIN))(keys, twice)
        return views, jnp.roll(jnp.arange(len(twice)), len(images))

    def logits(self, outputs: Array) -> Array:
        """Returns z_i·z_j / τ [2B, 2B] of projections [2B, width], with −∞ on the diagonal."""
        similarities = outputs @ outputs.T / self.temperature
        return jnp.where(jnp.eye(len(outputs), dtype=bool), -jnp.inf, similarities)


class _Projection(nn.Module):
    """A two-layer perceptron from embeddings [N, D] to the unit sphere [N, width]."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Dense(x.shape[-1])(x))
        x = nn.Dense(self.width)(x)
        return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)


PRETEXTS = {"rotation": Rotation, "simclr": SimCLR}
