"""`Geometry`: the static parameters of a two-dimensional convolution."""

from __future__ import annotations

import dataclasses
from typing import Any

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static parameters of a convolution of [N, H, W, C] by [h, w, C / groups, O].

    Attributes:
      strides, padding, dilation, groups, precision: as in `jax.lax.conv_general_dilated`.
      inputs: H, W, C.
      kernel: h, w, C / groups, O.
      platform: the platform for which it is compiled, which decides on its form.
    """

    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    inputs: tuple[int, int, int]
    kernel: tuple[int, int, int, int]
    precision: Any
    platform: str

    def output(self) -> Pair:
        """Returns height and width of the output."""
        return tuple(  # type: ignore[return-value]
            (size + sum(pads) - self.span(i)) // self.strides[i] + 1
            for i, (size, pads) in enumerate(zip(self.inputs[:2], self.padding, strict=True))
        )

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel has exactly one output channel."""
        return 1 < self.groups == self.inputs[2] == self.kernel[3]

    @property
    def has_outputs(self) -> bool:
        """Whether the output has any pixels."""
        return min(self.output()) > 0

    def span(self, axis: int) -> int:
        """Returns the number of input positions that the dilated kernel covers along an axis."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1
