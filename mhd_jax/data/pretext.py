"""Pretext tasks: what a client without labels learns from its private images.

Each is a classification whose labels come from the images themselves. The client's own head for
it sits on the embedding beside the others, and nobody else has it: what the task teaches crosses
edges through embeddings and, by distillation, through the other heads.
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
    """A pretext task of one client; hashable, as a part of its architecture.

    Attributes:
      name: in settings and on the command line.
      views: how many images it makes of one.
      square: whether images must be.
      head: a Flax module from embeddings [N, D] to what `logits` takes.
    """

    name: str
    views: int
    square: bool

    @property
    def head(self) -> nn.Module:
        """The task's own head."""

    def samples(self, key: Array, images: Array) -> tuple[Array, Array]:
        """Images [B, h, w, c] as models see them -> others [views·B, h, w, c] and labels, int32."""

    def logits(self, outputs: Array) -> Array:
        """The head's outputs on all images of a batch [N, …] -> a logit for each label [N, …]."""


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotation prediction (Gidaris et al., ICLR 2018): by how many quarter turns is it turned?

    The paper shows all four turns of an image in one batch; here each image is turned once, at
    random: the same loss in expectation, at the cost of a supervised client's step.
    """

    name = "rotation"
    views = 1
    square = True

    @property
    def head(self) -> nn.Module:
        """Linear, to the four turns."""
        return nn.Dense(4)

    def samples(self, key: Array, images: Array) -> tuple[Array, Array]:
        """Each image turned."""
        turns = jax.random.randint(key, images.shape[:1], 0, 4, jnp.int32)
        turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)])
        return turned[turns, jnp.arange(len(images))], turns

    def logits(self, outputs: Array) -> Array:
        """The head's output [B, 4]."""
        return outputs


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """Contrastive learning (Chen et al., ICML 2020): which image is the other view of this one?

    With the two views of B images, z their normalised projections and τ the temperature, the
    loss is NT-Xent: the mean over all 2B of −log softmax over the others of z_i·z_j / τ, at j = the
    same image's other view.

    Attributes:
      transform: how an image becomes a view; the paper's also blurs.
      temperature: τ.
      width: of the projection; the head has one hidden layer, as wide as the embedding.
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
        """The projection."""
        return _Projection(self.width)

    def samples(self, key: Array, images: Array) -> tuple[Array, Array]:
        """First views of all, then their second ones, whose places are each other's labels."""
        twice = jnp.concatenate([images, images])
        keys = jax.random.split(key, len(twice))
        views = jax.vmap(lambda key, image: self.transform(key, image, PLAIN))(keys, twice)
        return views, jnp.roll(jnp.arange(len(twice)), len(images))

    def logits(self, outputs: Array) -> Array:
        """z_i·z_j / τ [2B, 2B] of projections [2B, width]; an image is not its own other view."""
        similarities = outputs @ outputs.T / self.temperature
        return jnp.where(jnp.eye(len(outputs), dtype=bool), -jnp.inf, similarities)


class _Projection(nn.Module):
    """Embeddings [N, D] -> points on the unit sphere [N, width]."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Dense(x.shape[-1])(x))
        x = nn.Dense(self.width)(x)
        return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)


PRETEXTS = {"rotation": Rotation, "simclr": SimCLR}
