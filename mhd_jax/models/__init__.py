"""Models of clients: backbones with heads, and convolutions that are fast for many clients."""

from mhd_jax.core.types import Outputs
from mhd_jax.models.client_model import ClientModel
from mhd_jax.models.from_nnx import from_nnx
from mhd_jax.models.initialization import INITIALIZATIONS
from mhd_jax.models.mobilenet import MobileNetV2
from mhd_jax.models.pretrained import Pretrained, pretrained
from mhd_jax.models.registry import (
    MODELS,
    NORMS,
    ModelSpec,
    build_backbone,
    default_name,
    names,
)
from mhd_jax.models.resnet import ResNet
from mhd_jax.models.small import CNN, MLP, BagOfTokens, LeNet5, StridedCNN
from mhd_jax.models.vgg import VGG
from mhd_jax.models.vit import ViT
