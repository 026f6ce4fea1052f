"""Random parts of every family, valid by construction: what the decode tests feed to every backend."""
from __future__ import annotations

import pytest
import torch


class PartFactory:
    """Makes random LutPart, AdditivePart and TrellisPart records; everything depends on `seed` alone."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def scales(self, out_features: int, channels: int, taps: int, *, group: int = 0, col: bool = False):
        from vqpack.kernels.parts import Scales

        def half(*shape):
            return torch.randn(*shape, generator=self.generator).to(torch.float16)

        rows = half(out_features)
        rows[::5] = 0
        return Scales(
            gain=torch.tensor(0.0123).item(),
            row=None if group else rows,
            group=half(out_features, -(-channels * taps // group)) if group else None,
            group_size=group,
            col=half(channels) if col else None,
        )

    def lut(self, out_features=13, channels=32, taps=3, bits=3, *, uniform=False, group=0, col=False, rotation=0):
        from vqpack.kernels import packing
        from vqpack.kernels.parts import LutPart

        cols = channels * taps
        zero_shape = (out_features, -(-cols // group)) if group else (out_features,)
        return LutPart(
            out_features, channels, taps, bits,
            packing.pack_codes(self.integers(0, 2**bits, out_features, cols), bits),
            self.scales(out_features, channels, taps, group=group, col=col),
            values=None if uniform else self.integers(-2000, 2000, 2**bits).to(torch.int16),
            zero_points=self.integers(0, 2**bits, *zero_shape).to(torch.uint8) if uniform else None,
            rotation=rotation, rotation_seed=5,
        )

    def additive(self, out_features=13, channels=32, taps=3, bits=8, group=8, num_codebooks=2, codebook_size=0,
                 blocks=1, *, scale_group=0, col=False, rotation=0, order=0):
        from vqpack.kernels import packing
        from vqpack.kernels.parts import AdditivePart

        codebook_size = codebook_size or 2**bits
        count = -(-channels * taps // group) * num_codebooks
        return AdditivePart(
            out_features, channels, taps, bits, group,
            packing.pack_codes(self.integers(0, codebook_size, out_features, count), bits),
            self.integers(-2000, 2000, blocks, num_codebooks, codebook_size, group).to(torch.int16),
            self.scales(out_features, channels, taps, group=scale_group, col=col),
            rotation=rotation, rotation_seed=6, order=order,
        )

    def trellis(self, out_features=70, channels=32, taps=1, window=12, step_bits=2, vector=1, chain=1, *,
                group=0, col=False, rotation=0):
        from vqpack.kernels.parts import TrellisPart

        units = -(-out_features // (vector * 32))
        return TrellisPart(
            out_features, channels, taps, window, step_bits, vector, chain,
            self.integers(-2**31, 2**31, units, step_bits, channels * taps).to(torch.int32),
            self.integers(-127, 128, 2**window, vector).to(torch.int8),
            self.scales(out_features, channels, taps, group=group, col=col),
            rotation=rotation, rotation_seed=7,
        )


@pytest.fixture
def make() -> PartFactory:
    return PartFactory()
