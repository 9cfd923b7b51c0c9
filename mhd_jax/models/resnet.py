"""Residual networks (He et al., CVPR 2016), with basic or bottleneck blocks."""

from __future__ import annotations

from flax import linen as nn
from jax import Array

from mhd_jax.models.conv import Conv
from mhd_jax.models.norms import normalise

_EXPANSION = 4  # a bottleneck's output channels over its inner ones


class Block(nn.Module):
    """Convolutions and a shortcut, projected by a strided 1×1 convolution where shapes change.

    A basic block has two 3×3 convolutions, the first one strided. A bottleneck has 1×1, 3×3 and
    1×1, and its 3×3 is strided, as in torchvision ("V1.5"; the paper strides the first 1×1).
    With EvoNorm, which activates by itself, nothing follows the addition.

    Attributes:
      channels: of the 3×3 convolutions.
      stride: from input to output.
      bottleneck: whether it is one.
      norm: see `mhd_jax.models.norms.normalise`.
      num_groups: of GroupNorm and EvoNorm.
    """

    channels: int
    stride: int
    bottleneck: bool
    norm: str
    num_groups: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[N, h, w, c] -> [N, h/stride, w/stride, channels or, of a bottleneck, 4·channels]."""

        def convolve(x: Array, channels: int, side: int, stride: int, activate: bool) -> Array:
            sides, strides = (side, side), (stride, stride)
            x = Conv(channels, sides, strides, padding=side // 2, use_bias=False)(x)
            activation = nn.relu if activate else None
            return normalise(self.norm, train, num_groups=self.num_groups, activation=activation)(x)

        if self.bottleneck:
            y = convolve(x, self.channels, 1, 1, activate=True)
            y = convolve(y, self.channels, 3, self.stride, activate=True)
            y = convolve(y, _EXPANSION * self.channels, 1, 1, activate=False)
        else:
            y = convolve(x, self.channels, 3, self.stride, activate=True)
            y = convolve(y, self.channels, 3, 1, activate=False)
        if x.shape != y.shape:
            x = convolve(x, y.shape[-1], 1, self.stride, activate=False)
        return x + y if self.norm.startswith("evonorm") else nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, stages of blocks that halve the resolution, mean over positions.

    Attributes:
      blocks: blocks in each stage.
      channels: of the 3×3 convolutions of each stage.
      stem: "small" (3×3, stride 1) or "imagenet" (7×7, stride 2, and 3×3 max pooling).
      norm: see `mhd_jax.models.norms.normalise`.
      num_groups: of GroupNorm and EvoNorm.
      bottleneck: whether blocks are bottlenecks, which have four times the channels outside.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    stem: str = "small"
    norm: str = "group"
    num_groups: int = 8
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[N, h, w, c] -> [N, D]; D is the last stage's channels, of bottlenecks four times these."""
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
                x = Block(channels, stride, self.bottleneck, self.norm, self.num_groups)(x, train)
        return x.mean(axis=(1, 2))
