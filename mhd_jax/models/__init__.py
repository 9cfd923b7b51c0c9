"""Backbones by name. A new one is a Flax module that returns an embedding, and one line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flax import linen as nn

from mhd_jax.models.client_model import ClientModel, Outputs
from mhd_jax.models.resnet import ResNet
from mhd_jax.models.small import CNN, MLP, LeNet5

NORMS = ("none", "layer", "group", "batch", "evonorm", "evonorm_s0")
CONV_NORMS = ("group", "batch", "evonorm", "evonorm_s0")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """How a name becomes a backbone.

    Attributes:
      build: `(norm, input_shape) -> module`.
      norms: the norms that it knows, its default first.
      images: whether inputs must be [height, width, channels].
      least_side: the fewest pixels of an image's height and width.
    """

    build: Callable[[str, tuple[int, ...]], nn.Module]
    norms: tuple[str, ...]
    images: bool = True
    least_side: int = 1


def _imagenet_resnet(blocks: tuple[int, ...]) -> Callable[[str, tuple[int, ...]], nn.Module]:
    def build(norm: str, input_shape: tuple[int, ...]) -> nn.Module:
        stem = "imagenet" if min(input_shape[:2]) >= 64 else "small"
        return ResNet(blocks, (64, 128, 256, 512), stem, norm, num_groups=32)

    return build


def _cifar_resnet(blocks: int) -> Callable[[str, tuple[int, ...]], nn.Module]:
    """6·blocks + 2 layers (He et al., CVPR 2016, section 4.2)."""
    return lambda norm, shape: ResNet((blocks,) * 3, (16, 32, 64), norm=norm)


MODELS: dict[str, ModelSpec] = {
    "mlp": ModelSpec(lambda norm, shape: MLP(norm=norm), ("layer", "none", "batch"), images=False),
    "cnn": ModelSpec(lambda norm, shape: CNN(norm=norm), (*CONV_NORMS, "none"), least_side=4),
    "lenet5": ModelSpec(lambda norm, shape: LeNet5(), ("none",)),
    "resnet8": ModelSpec(_cifar_resnet(1), CONV_NORMS),
    "resnet20": ModelSpec(_cifar_resnet(3), CONV_NORMS),
    "resnet18": ModelSpec(_imagenet_resnet((2, 2, 2, 2)), CONV_NORMS),
    "resnet34": ModelSpec(_imagenet_resnet((3, 4, 6, 3)), CONV_NORMS),
}

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "NORMS",
    "ClientModel",
    "LeNet5",
    "ModelSpec",
    "Outputs",
    "ResNet",
]
