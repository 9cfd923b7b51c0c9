"""A vision transformer (Dosovitskiy et al., ICLR 2021), of DeiT-Ti's size (Touvron et al., ICML 2021)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

_normal = nn.initializers.truncated_normal(0.02)
_Dense = functools.partial(nn.Dense, kernel_init=_normal)


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each behind a layer norm and added to its input."""

    num_heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[N, tokens, width], both ways."""
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attend = nn.MultiHeadDotProductAttention(self.num_heads, kernel_init=_normal)
        x = x + drop(attend(nn.LayerNorm()(x)))
        y = nn.gelu(_Dense(4 * width)(nn.LayerNorm()(x)), approximate=False)
        return x + drop(_Dense(width)(drop(y)))


class ViT(nn.Module):
    """Square patches and a class token through encoder blocks; the class token is the embedding.

    Attributes:
      patch: pixels of a patch's side, which divides those of the image.
      width: of each token.
      depth: blocks.
      num_heads: of the attention, not of the client.
      dropout: how likely an activation is dropped in training.
    """

    patch: int
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[N, h, w, c] -> [N, width]."""
        n, height, width, channels = x.shape
        side = self.patch
        # The strided convolution of the paper, which is a matrix product.
        x = x.reshape(n, height // side, side, width // side, side, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, side * side * channels)
        x = _Dense(self.width)(x)
        token = self.param("class_token", _normal, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, self.width)), x], axis=1)
        x = x + self.param("positions", _normal, (1, *x.shape[1:]))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for _ in range(self.depth):
            x = EncoderBlock(self.num_heads, self.dropout)(x, train)
        return nn.LayerNorm()(x[:, 0])
