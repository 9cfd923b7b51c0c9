"""A vision transformer (Dosovitskiy et al., ICLR 2021), by default of DeiT-Ti's size.

DeiT-Ti is by Touvron et al., ICML 2021.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mhd_jax.models.norms import LayerNorm

_normal = nn.initializers.truncated_normal(0.02)
_Dense = functools.partial(nn.Dense, kernel_init=_normal)


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a layer norm, with residuals."""

    num_heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps tokens [N, tokens, width] to tokens of the same shape."""
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attend = nn.MultiHeadDotProductAttention(self.num_heads, kernel_init=_normal)
        x = x + drop(attend(LayerNorm()(x)))
        y = nn.gelu(_Dense(4 * width)(LayerNorm()(x)), approximate=False)
        return x + drop(_Dense(width)(drop(y)))


class ViT(nn.Module):
    """Encoder blocks over square patches and a class token, whose output is the embedding.

    Attributes:
      patch: the side of a patch in pixels; it must divide the image's sides.
      width: the width of each token.
      depth: the number of blocks.
      num_heads: the heads of the attention, not of the client.
      dropout: the probability that an activation is dropped in training.
    """

    patch: int
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images [N, h, w, c] to embeddings [N, width]."""
        n, height, width, channels = x.shape
        side = self.patch
        # The paper's strided convolution, computed as a matrix product over patches.
        x = x.reshape(n, height // side, side, width // side, side, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, side * side * channels)
        x = _Dense(self.width)(x)
        token = self.param("class_token", _normal, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, self.width)), x], axis=1)
        x = x + self.param("positions", _normal, (1, *x.shape[1:]))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for _ in range(self.depth):
            x = EncoderBlock(self.num_heads, self.dropout)(x, train)
        return LayerNorm()(x[:, 0])
