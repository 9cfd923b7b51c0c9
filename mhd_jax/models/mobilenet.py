"""MobileNetV2 (Sandler et al., CVPR 2018) of width 1."""

from __future__ import annotations

import functools

from flax import linen as nn
from jax import Array

from mhd_jax.models.conv import Conv
from mhd_jax.models.norms import normalise

# Expansion, channels, blocks and stride of each stage: the paper's table 2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvNorm(nn.Module):
    """A convolution of side × side pixels, a norm and, with `activate`, ReLU6."""

    channels: int
    side: int
    stride: int = 1
    groups: int = 1
    activate: bool = True
    norm: str = "group"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [N, h, w, c] to [N, h/stride, w/stride, channels]."""
        x = Conv(
            self.channels,
            (self.side, self.side),
            (self.stride, self.stride),
            padding=self.side // 2,
            feature_group_count=self.groups,
            use_bias=False,
        )(x)
        activation = nn.relu6 if self.activate else None
        # 8 groups, because all channel counts of this network are multiples of 8, but not of 16.
        return normalise(self.norm, train, num_groups=8, activation=activation)(x)


class InvertedResidual(nn.Module):
    """An inverted residual: 1×1 expansion, depthwise 3×3 and 1×1 convolution, plus the input.

    The input is added if the shapes agree. No activation follows the last convolution, except with
    EvoNorm, which always activates (as in the CCL authors' experiments).

    Attributes:
      expansion: the ratio of inner to input channels.
      channels: output channels.
      stride: the stride of the depthwise convolution.
      norm: see `mhd_jax.models.norms.normalise`.
      uniform: whether blocks with an expansion of 1 have the first convolution too, and whether the
        input is added through a 1×1 convolution if only the channels differ.
    """

    expansion: int
    channels: int
    stride: int
    norm: str
    uniform: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [N, h, w, c] to [N, h/stride, w/stride, channels]."""
        layer = functools.partial(ConvNorm, norm=self.norm)
        inner = self.expansion * x.shape[-1]
        y = layer(inner, 1)(x, train) if self.expansion > 1 or self.uniform else x
        y = layer(inner, 3, self.stride, groups=inner)(y, train)
        y = layer(self.channels, 1, activate=False)(y, train)
        if self.uniform and self.stride == 1 and x.shape != y.shape:
            x = layer(self.channels, 1, activate=False)(x, train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """A stem, stages of inverted residuals, a 1×1 convolution and a mean over positions.

    Attributes:
      stem: "imagenet", as published; or "small", in which neither the first convolution nor the
        second stage halves the resolution.
      norm: see `mhd_jax.models.norms.normalise`.
      stages: expansion, channels, blocks and stride of each; by default as published.
      uniform: see `InvertedResidual`; True is the CCL authors' form for CIFAR.
    """

    stem: str = "small"
    norm: str = "group"
    stages: tuple[tuple[int, int, int, int], ...] = _STAGES
    uniform: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images [N, h, w, c] to embeddings [N, 1280]."""
        early = 2 if self.stem == "imagenet" else 1
        x = ConvNorm(32, 3, early, norm=self.norm)(x, train)
        for stage, (expansion, channels, blocks, stride) in enumerate(self.stages):
            for block in range(blocks):
                step = 1 if block > 0 else early if stage == 1 else stride
                x = InvertedResidual(expansion, channels, step, self.norm, self.uniform)(x, train)
        x = ConvNorm(1280, 1, norm=self.norm)(x, train)
        return x.mean(axis=(1, 2))
