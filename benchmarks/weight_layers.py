"""The layers weight_error.py codes, and the correlated inputs it weighs their errors with."""
from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from alias import ROOT, load_vqpack
from make_checkpoint import read_shapes, weights

load_vqpack()
SETS = ("sdxl-normal", "sdxl-trained-like", "testbed")
# SDXL's true shapes, each kind of layer, five linears and five convolutions, up to 1.6 M weights: attention, output
# projection, text, feed-forward, 1280-wide attention; 3x3 and 1x1 convolutions. The larger layers have longer rows.
SDXL_LAYERS = ("input_blocks.4.0.skip_connection", "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
               "output_blocks.7.0.skip_connection", "output_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
               "output_blocks.6.0.skip_connection", "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
               "input_blocks.7.0.skip_connection", "input_blocks.4.1.transformer_blocks.0.ff.net.2",
               "input_blocks.2.0.in_layers.2", "output_blocks.0.1.transformer_blocks.0.attn1.to_q")
TESTBED_LAYERS = 20
# The inputs: neighboring channels (after a fixed shuffle) correlate by .9, neighboring pixels by .8, and channel
# magnitudes are log-normal (sigma .5). The gram's largest eigenvalue is some 50 times its mean.
CHANNEL_CORRELATION, PIXEL_CORRELATION, MAGNITUDE_SPREAD, SAMPLES = 0.9, 0.8, 0.5, 512


@dataclass(frozen=True)
class NamedWeight:
    """One layer: float32 [out, in] or [out, in, kh, kw]."""

    set: str
    name: str
    weight: torch.Tensor


def load_layers(name: str, count: int = 0) -> list[NamedWeight]:
    """The layers of one of SETS; count: at most so many, 0 = all."""
    found = _testbed(count or TESTBED_LAYERS) if name == "testbed" else _sdxl(name, count or len(SDXL_LAYERS))
    return sorted(found, key=lambda layer: layer.weight.numel())


def _sdxl(name: str, count: int) -> list[NamedWeight]:
    """make_checkpoint.py's weights: normal rows of std 1 / sqrt(inputs); trained-like: log-normal rows, outliers."""
    shapes = read_shapes("base")
    keys = [f"model.diffusion_model.{layer}.weight" for layer in SDXL_LAYERS[:count]]
    return [NamedWeight(name, key, torch.from_numpy(weights(key, shapes[key], 0, name == "sdxl-trained-like"))
                        .half().float()) for key in keys]


def _testbed(count: int) -> list[NamedWeight]:
    """Coded layers of the small trained UNet, evenly spread over its depth."""
    from vqpack.vq_core.arch import layers as arch_layers
    from vqpack.vq_core.source import open_source

    with open_source(ROOT / "testbed" / "pipe") as source:
        coded = [layer for layer in arch_layers(source) if layer.component == "unet" and not layer.dense]
        chosen = [coded[i * len(coded) // count] for i in range(count)]
        return [NamedWeight("testbed", layer.key, source.load(layer.key).float()) for layer in chosen]


def correlated_inputs(shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Inputs float32 [in * taps, SAMPLES] for a weight of this shape, in the order of its flattened columns."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    generator = torch.Generator().manual_seed(seed)
    channels, taps = shape[1], math.prod(shape[2:])
    x = torch.randn(channels, taps, SAMPLES, generator=generator)
    for i in range(1, channels):
        x[i] = CHANNEL_CORRELATION * x[i - 1] + math.sqrt(1 - CHANNEL_CORRELATION**2) * x[i]
    x = x[torch.randperm(channels, generator=generator)]
    x *= torch.exp(MAGNITUDE_SPREAD * torch.randn(channels, 1, 1, generator=generator))
    return (_pixel_factor(shape[2:]) @ x).reshape(channels * taps, SAMPLES)


def _pixel_factor(kernel: tuple[int, ...]) -> torch.Tensor:
    """Cholesky factor [taps, taps] of the correlation of a window's pixels, PIXEL_CORRELATION^distance."""
    grid = torch.cartesian_prod(*(torch.arange(size) for size in kernel)).reshape(-1, len(kernel)) if kernel \
        else torch.zeros(1, 1)
    distance = torch.cdist(grid.float(), grid.float(), p=1)
    return torch.linalg.cholesky(PIXEL_CORRELATION**distance)


def sdxl_share(method) -> tuple[float, float]:
    """Share of SDXL's UNet weights that a method codes by its rule for shapes, and their number."""
    total = coded = 0
    for key, shape in read_shapes("base").items():
        if key.startswith("model.diffusion_model.") and len(shape) >= 2:
            total += math.prod(shape)
            coded += math.prod(shape) * method.codes(tuple(shape))
    return coded / total, total
