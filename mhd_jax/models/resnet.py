"""Residual networks (He et al., CVPR 2016), with basic or bottleneck blocks."""

from __future__ import annotations

from flax import linen as nn
from jax import Array

from mhd_jax.models.conv import Conv
from mhd_jax.models.norms import normalise, relu

_EXPANSION = 4  # the ratio of a bottleneck's output to its inner channels


class Block(nn.Module):
    """A residual block: convolutions and a shortcut, a strided 1×1 convolution if shapes change.

    A basic block has two 3×3 convolutions, the first one strided. A bottleneck has 1×1, 3×3 and
    1×1 convolutions, with a strided 3×3 as in torchvision ("V1.5"; the paper strides the first
    1×1). With EvoNorm, which includes an activation, none follows the addition.

    Attributes:
      channels: the channels of the 3×3 convolutions.
      stride: the stride from input to output.
      bottleneck: whether the block is a bottleneck.
      norm: see `mhd_jax.models.norms.normalise`.
      num_groups: the groups of GroupNorm and EvoNorm.
    """

    channels: int
    stride: int
    bottleneck: bool
    norm: str
    num_groups: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [N, h, w, c] to [N, h/stride, w/stride, D].

        D is `channels`, or 4·`channels` for a bottleneck.
        """

        def convolve(x: Array, channels: int, side: int, stride: int, activate: bool) -> Array:
            sides, strides = (side, side), (stride, stride)
            x = Conv(channels, sides, strides, padding=side // 2, use_bias=False)(x)
            activation = relu if activate else None
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
        return x + y if self.norm.startswith("evonorm") else relu(x + y)


class ResNet(nn.Module):
    """A stem, stages of blocks that halve the resolution, and a mean over positions.

    Attributes:
      blocks: the number of blocks in each stage.
      channels: the channels of each stage's 3×3 convolutions.
      stem: "small" (3×3, stride 1) or "imagenet" (7×7, stride 2, and 3×3 max pooling).
      norm: see `mhd_jax.models.norms.normalise`.
      num_groups: the groups of GroupNorm and EvoNorm.
      bottleneck: whether blocks are bottlenecks, with four times as many output channels.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    stem: str = "small"
    norm: str = "group"
    num_groups: int = 8
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images [N, h, w, c] to embeddings [N, D].

        D is the number of the last stage's channels, or four times as many for bottlenecks.
        """
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
