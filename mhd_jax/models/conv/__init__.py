"""Convolutions that are fast for many clients at once, on every backend."""

from mhd_jax.models.conv.conv import Conv, conv_general_dilated

__all__ = ["Conv", "conv_general_dilated"]
