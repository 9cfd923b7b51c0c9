"""Small backbones: an MLP, a bag of tokens, LeNet-5, and CNNs for images of 8 and of 32 pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mhd_jax.models.conv import Conv
from mhd_jax.models.norms import normalise, relu


def halve(x: Array) -> Array:
    """Returns maxima over 2×2 windows of [N, h, w, c]; an odd last row or column is left out.

    The maxima are computed by selections. The gradient of a general window is slow on CPUs. The
    gradient of a maximum over axes divides by the number of entries that equal the maximum, which
    is 0 (and gives NaN) if a compiler recomputes the entries with another rounding.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    x = jnp.where(x[:, :, 0] >= x[:, :, 1], x[:, :, 0], x[:, :, 1])
    return jnp.where(x[:, :, :, 0] >= x[:, :, :, 1], x[:, :, :, 0], x[:, :, :, 1])


class MLP(nn.Module):
    """Dense layers, each with a norm and an activation; the last output is the embedding."""

    widths: tuple[int, ...] = (128, 64)
    norm: str = "layer"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps samples [N, …] to embeddings [N, widths[-1]]."""
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = normalise(self.norm, train)(nn.Dense(width)(x))
        return x


class BagOfTokens(nn.Module):
    """The mean of tokens' embeddings, whatever their order, and a dense layer.

    Attributes:
      vocabulary_size: V; tokens are in 0 … V − 1.
      width: the width of both embeddings, of a token and of a sample.
      norm: the norm of the dense layer.
      padding: the token that fills samples up, and is left out of the mean; None if none does.
    """

    vocabulary_size: int
    width: int = 64
    norm: str = "layer"
    padding: int | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps tokens [N, L] to embeddings [N, width]."""
        embedded = nn.Embed(self.vocabulary_size, self.width)(x)
        if self.padding is None:
            mean = embedded.mean(axis=1)
        else:
            counts = (x != self.padding)[..., None]
            mean = embedded.sum(axis=1, where=counts) / jnp.maximum(counts.sum(axis=1), 1)
        return normalise(self.norm, train)(nn.Dense(self.width)(mean))


class CNN(nn.Module):
    """Two 3×3 convolutions with 2×2 pooling, and a dense layer, for images like 8×8 digits."""

    channels: tuple[int, ...] = (16, 32)
    width: int = 64
    norm: str = "group"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images [N, h, w, c] to embeddings [N, width]."""
        for channels in self.channels:
            x = Conv(channels, (3, 3), use_bias=self.norm == "none")(x)
            x = normalise(self.norm, train)(x)
            x = halve(x)
        return relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))


class StridedCNN(nn.Module):
    """3×3 convolutions of stride 2, and a mean over positions, for images like CIFAR's.

    Each layer is wider where the resolution is lower: a sample of 32×32×3 takes 2.6 million
    multiplications, a fifth of resnet8's.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    norm: str = "group"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images [N, h, w, c] to embeddings [N, channels[-1]]."""
        for channels in self.channels:
            x = Conv(channels, (3, 3), (2, 2), padding=1, use_bias=False)(x)
            x = normalise(self.norm, train)(x)
        return x.mean(axis=(1, 2))


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling.

    With one head for 10 classes it has 61,706 parameters on images of 28×28×1. Images smaller than
    28×28 are resized to this size.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images [N, h, w, c] to embeddings [N, 84]."""
        del train
        height, width = max(x.shape[1], 28), max(x.shape[2], 28)
        if x.shape[1:3] != (height, width):
            x = jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear")
        # The activation of maxima is the maximum of activations, of which there are four times as many.
        x = relu(halve(Conv(6, (5, 5), padding="SAME")(x)))
        x = relu(halve(Conv(16, (5, 5), padding="VALID")(x)))
        x = x.reshape(x.shape[0], -1)
        x = relu(nn.Dense(120)(x))
        return relu(nn.Dense(84)(x))
