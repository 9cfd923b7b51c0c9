"""Residual networks (He et al., CVPR 2016) with basic blocks: ResNet-20 for CIFAR, ResNet-18 and -34."""

from __future__ import annotations

from flax import linen as nn
from jax import Array

from mhd_jax.models.norms import Layer, normalise
from mhd_jax.ops import Conv


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, projected by a strided 1×1 convolution where shapes change.

    With EvoNorm, which activates by itself, nothing follows the addition.
    """

    channels: int
    stride: int
    norm: str
    num_groups: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[N, h, w, c] -> [N, h/stride, w/stride, channels]."""

        def norm(activate: bool) -> Layer:
            return normalise(self.norm, train, num_groups=self.num_groups, activate=activate)

        strides = (self.stride, self.stride)
        y = Conv(self.channels, (3, 3), strides, padding=1, use_bias=False)(x)
        y = norm(activate=True)(y)
        y = Conv(self.channels, (3, 3), padding=1, use_bias=False)(y)
        y = norm(activate=False)(y)
        if x.shape != y.shape:
            x = norm(activate=False)(Conv(self.channels, (1, 1), strides, use_bias=False)(x))
        return x + y if self.norm.startswith("evonorm") else nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, stages of basic blocks that halve the resolution, mean over positions.

    Attributes:
      blocks: blocks in each stage.
      channels: channels of each stage.
      stem: "small" (3×3, stride 1) or "imagenet" (7×7, stride 2, and 3×3 max pooling).
      norm: see `mhd_jax.models.norms.normalise`.
      num_groups: of GroupNorm and EvoNorm.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    stem: str = "small"
    norm: str = "group"
    num_groups: int = 8

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[N, h, w, c] -> [N, channels[-1]]."""
        if self.stem == "imagenet":
            x = Conv(self.channels[0], (7, 7), (2, 2), padding=3, use_bias=False)(x)
        else:
            x = Conv(self.channels[0], (3, 3), padding=1, use_bias=False)(x)
        x = normalise(self.norm, train, num_groups=self.num_groups)(x)
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (blocks, channels) in enumerate(zip(self.blocks, self.channels, strict=True)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(channels, stride, self.norm, self.num_groups)(x, train)
        return x.mean(axis=(1, 2))
