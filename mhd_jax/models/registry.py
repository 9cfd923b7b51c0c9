"""Backbones by name; a new one needs a Flax module that returns an embedding, and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from mhd_jax.core.errors import ConfigError
from mhd_jax.data.kinds import wrong_layout
from mhd_jax.models.initialization import INITIALIZATIONS
from mhd_jax.models.mobilenet import MobileNetV2
from mhd_jax.models.resnet import ResNet
from mhd_jax.models.small import CNN, MLP, BagOfTokens, LeNet5, StridedCNN
from mhd_jax.models.vgg import VGG
from mhd_jax.models.vit import ViT

NORMS = ("none", "layer", "group", "batch", "evonorm", "evonorm_s0")
CONV_NORMS = ("group", "batch", "evonorm", "evonorm_s0")

Builder = Callable[[str, Any], nn.Module]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The builder of a named backbone, and the choices that it allows.

    Attributes:
      build: `(norm, input_shape) -> module`; of tokens, `(norm, vocabulary_size) -> module`, which
        has an attribute `padding`.
      norms: the norms that the backbone knows, the default first.
      images: whether inputs must be [height, width, channels].
      tokens: whether inputs must be tokens, [length].
      least_side: the least height and width of images in pixels.
      initializations: the initialisations beside the backbone's own.
    """

    build: Builder
    norms: tuple[str, ...]
    images: bool = True
    tokens: bool = False
    least_side: int = 1
    initializations: tuple[str, ...] = tuple(INITIALIZATIONS)


def _stem(input_shape: tuple[int, ...]) -> str:
    return "imagenet" if min(input_shape[:2]) >= 64 else "small"


def _imagenet_resnet(blocks: tuple[int, ...], bottleneck: bool = False) -> Builder:
    channels = (64, 128, 256, 512)
    return lambda norm, shape: ResNet(
        blocks, channels, _stem(shape), norm, num_groups=32, bottleneck=bottleneck
    )


def _cifar_resnet(blocks: int) -> Builder:
    """Builds a ResNet of 6·blocks + 2 layers (He et al., CVPR 2016, section 4.2)."""
    return lambda norm, shape: ResNet((blocks,) * 3, (16, 32, 64), norm=norm)


# The CCL authors' VGG for CIFAR: a quarter of the published width, and less in the last stage.
_THIN_VGG11 = ((16,), (32,), (64, 64), (128, 128), (128, 128))


def _vit_tiny(norm: str, input_shape: tuple[int, ...]) -> nn.Module:
    """Builds DeiT-Ti; images of up to 64 pixels have patches of 4 × 4 instead of 16 × 16."""
    height, width = input_shape[:2]
    patch = 4 if min(height, width) <= 64 else 16
    if height % patch or width % patch:
        raise ConfigError(
            f"vit_tiny cuts images of this size into patches of {patch} × {patch} pixels, which do "
            f"not divide {height} × {width}; resize them."
        )
    return ViT(patch)


MODELS: dict[str, ModelSpec] = {
    "mlp": ModelSpec(lambda norm, shape: MLP(norm=norm), ("layer", "none", "batch"), images=False),
    # Two MLPs of the same embedding width, for studies of heterogeneous clients.
    "mlp_small": ModelSpec(
        lambda norm, shape: MLP((8, 64), norm), ("layer", "none", "batch"), images=False
    ),
    "mlp_large": ModelSpec(
        lambda norm, shape: MLP((512, 64), norm), ("layer", "none", "batch"), images=False
    ),
    "bag_of_tokens": ModelSpec(
        lambda norm, vocabulary_size: BagOfTokens(vocabulary_size, norm=norm),
        ("layer", "none", "batch"),
        images=False,
        tokens=True,
        initializations=(),
    ),
    "cnn": ModelSpec(lambda norm, shape: CNN(norm=norm), (*CONV_NORMS, "none"), least_side=4),
    "cnn_strided": ModelSpec(lambda norm, shape: StridedCNN(norm=norm), CONV_NORMS),
    "cnn_strided_thin": ModelSpec(lambda norm, shape: StridedCNN((16, 32, 64), norm), CONV_NORMS),
    "lenet5": ModelSpec(lambda norm, shape: LeNet5(), ("none",)),
    "resnet8": ModelSpec(_cifar_resnet(1), CONV_NORMS),
    "resnet20": ModelSpec(_cifar_resnet(3), CONV_NORMS),
    "resnet32": ModelSpec(_cifar_resnet(5), CONV_NORMS),
    "resnet56": ModelSpec(_cifar_resnet(9), CONV_NORMS),
    "resnet18": ModelSpec(_imagenet_resnet((2, 2, 2, 2)), CONV_NORMS),
    "resnet34": ModelSpec(_imagenet_resnet((3, 4, 6, 3)), CONV_NORMS),
    "resnet50": ModelSpec(_imagenet_resnet((3, 4, 6, 3), bottleneck=True), CONV_NORMS),
    "vgg11": ModelSpec(lambda norm, shape: VGG(norm=norm), (*CONV_NORMS, "none"), least_side=32),
    "vgg11_thin": ModelSpec(
        lambda norm, shape: VGG(_THIN_VGG11, norm, num_groups=8),
        ("evonorm", *(norm for norm in CONV_NORMS if norm != "evonorm"), "none"),
        least_side=32,
    ),
    "mobilenetv2": ModelSpec(lambda norm, shape: MobileNetV2(_stem(shape), norm), CONV_NORMS),
    "mobilenetv2_cifar": ModelSpec(
        lambda norm, shape: MobileNetV2("small", norm, uniform=True),
        ("evonorm", *(norm for norm in CONV_NORMS if norm != "evonorm")),
    ),
    "vit_tiny": ModelSpec(_vit_tiny, ("layer",), least_side=4, initializations=()),
}


def names() -> list[str]:
    """Returns the names of the models that `mhd_jax.make_clients` builds, like "resnet18"."""
    return list(MODELS)


def default_name(of_tokens: bool) -> str:
    """Returns the name of the model that clients have by default, of tokens or of other samples."""
    return "bag_of_tokens" if of_tokens else "mlp"


def build_backbone(
    name: str,
    norm: str | None,
    input_shape: tuple[int, ...] | None,
    vocabulary_size: int | None = None,
    padding: int | None = None,
) -> nn.Module:
    """Builds the backbone of that name for samples of `input_shape` (None: of several arrays).

    Samples are tokens in 0 … V − 1 if there is a `vocabulary_size`, V; if there is a `padding`, this
    token fills up samples of fewer than others.

    Raises:
      ConfigError: an unknown name, a norm that the backbone does not know, or unsuitable inputs.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; choose one of {', '.join(names())}.")
    spec = MODELS[name]
    norm = norm or spec.norms[0]
    if norm not in spec.norms:
        raise ConfigError(
            f"{name} does not know the norm {norm!r}; choose one of {', '.join(spec.norms)}."
        )
    if input_shape is None:
        raise ConfigError(
            f"{name} takes one array, but samples have several parts; give your own module."
        )
    if spec.tokens:
        if vocabulary_size is None or len(input_shape) != 1:
            raise ConfigError(
                f"{name} reads tokens [length], but samples have shape {list(input_shape)}"
                f"{'' if vocabulary_size else ' and are not said to be tokens'}; give integers with "
                "tokens=True, or choose another model."
            )
        return spec.build(norm, vocabulary_size).clone(padding=padding)
    if vocabulary_size is not None:
        raise ConfigError(
            f"{name} would take tokens for quantities; use bag_of_tokens or your own module, which embeds "
            "them."
        )
    if spec.images and (wrong := wrong_layout(input_shape)):
        raise ConfigError(f"{name} needs images [height, width, channels], but {wrong}.")
    if spec.images and len(input_shape) != 3:
        raise ConfigError(
            f"{name} needs images [height, width, channels], but samples have shape "
            f"{list(input_shape)}; use mlp or your own module."
        )
    if spec.images and min(input_shape[:2]) < spec.least_side:
        raise ConfigError(
            f"{name} needs images of at least {spec.least_side} × {spec.least_side} pixels, but "
            f"samples have {input_shape[0]} × {input_shape[1]}; use mlp or enlarge them."
        )
    return spec.build(norm, input_shape)
