"""VGG's convolutions (Simonyan and Zisserman, ICLR 2015), without the wide classifier."""

from __future__ import annotations

from flax import linen as nn
from jax import Array

from mhd_jax.models.conv import Conv
from mhd_jax.models.norms import normalise
from mhd_jax.models.small import halve


class VGG(nn.Module):
    """Stages of 3×3 convolutions that end in 2×2 max pooling, and a mean over positions.

    Unlike in the paper, no 4096-wide layers follow; these hold 119.5 of configuration A's 132.9
    million parameters for images of 224 × 224. The rest is the common form for CIFAR, where one
    position remains after five poolings.

    Attributes:
      stages: channels of each convolution, by stage; by default configuration A (VGG-11).
      norm: see `mhd_jax.models.norms.normalise`; "none" is the paper's.
      num_groups: the groups of GroupNorm and EvoNorm.
    """

    stages: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    norm: str = "group"
    num_groups: int = 32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images [N, h, w, c] to embeddings [N, stages[-1][-1]]."""
        for stage in self.stages:
            for channels in stage:
                # He's initialisation keeps the signal from fading over layers without a norm.
                x = Conv(channels, (3, 3), padding=1, kernel_init=nn.initializers.he_normal())(x)
                x = normalise(self.norm, train, num_groups=self.num_groups)(x)
            x = halve(x)
        return x.mean(axis=(1, 2))
