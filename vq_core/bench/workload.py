"""The shapes that SDXL's UNet multiplies, and how many of each a call has. Costs of one are in cost_model.py.

Tokens are those of 1024 px with both halves of guidance (batch 2): 2048 on the 1280-channel level, 8192 on the 640 one,
32768 pixels on the 320 one, 154 of text. Six shapes hold 90 % of the parameters.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearShape:
    """y [tokens, out] = x [tokens, in] W^T."""

    name: str
    tokens: int
    out_features: int
    in_features: int
    count: int                             # in the UNet

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return self.out_features, self.in_features

    @property
    def operations(self) -> int:
        """Of one call."""
        return 2 * self.tokens * self.out_features * self.in_features


@dataclass(frozen=True)
class ConvShape:
    """A 3x3 convolution of maps of side x side pixels, batch 2."""

    name: str
    side: int
    out_channels: int
    in_channels: int
    count: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the weight."""
        return self.out_channels, self.in_channels, 3, 3

    @property
    def operations(self) -> int:
        """Of one call."""
        return 2 * 2 * self.side**2 * self.out_channels * self.in_channels * 9


BATCH = 2
LINEARS = (LinearShape("ff_in 1280", 2048, 10240, 1280, 60), LinearShape("ff_out 1280", 2048, 1280, 5120, 60),
           LinearShape("attention 1280", 2048, 1280, 1280, 372), LinearShape("text k, v", 154, 1280, 2048, 120),
           LinearShape("ff_in 640", 8192, 5120, 640, 10), LinearShape("ff_out 640", 8192, 640, 2560, 10),
           LinearShape("attention 640", 8192, 640, 640, 70))
SELF_ATTENTION = (LINEARS[2], LINEARS[6])  # whose q, k and v share an input
CONVS = (ConvShape("conv 1280", 32, 1280, 1280, 15), ConvShape("conv 640", 64, 640, 640, 12),
         ConvShape("conv 320", 128, 320, 320, 13))
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048)       # of the sweep over ff_in 1280
RANK = 32                                  # of the LoRA that is added


def scaled(shape: LinearShape | ConvShape, by: int) -> LinearShape | ConvShape:
    """The same shape with sides, channels and tokens divided, for machines that would take minutes for one call."""
    if isinstance(shape, LinearShape):
        return LinearShape(f"{shape.name} / {by}", max(1, shape.tokens // by), _channels(shape.out_features, by),
                           _channels(shape.in_features, by), shape.count)
    return ConvShape(f"{shape.name} / {by}", max(4, shape.side // by), _channels(shape.out_channels, by),
                     _channels(shape.in_channels, by), shape.count)


def _channels(count: int, by: int) -> int:
    """Divided, and still a multiple of 64, which rotations and kernels want."""
    return max(64, count // by // 64 * 64)
