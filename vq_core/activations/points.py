"""Where a UNet's activations are looked at and changed: inputs of its layers, and queries, keys and values."""
from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from ..arch import UNET_PREFIX, unet_names
from ..keymap import PrefixTable
from ..layers import VQEmbedding
from ..weight import CodedWeight

_ATTENTION = re.compile(r"\.attn[12]\.to_[qkv]\.weight$")
_TEXT = re.compile(r"\.attn2\.to_[kv]\.weight$")


@dataclass(frozen=True)
class Point:
    """The input of a layer or, of those that make queries, keys and values, its output."""

    key: str                               # LDM key of the layer's weight
    module: str                            # path in diffusers' UNet
    side: str                              # "input" or "output"
    channels: int
    taps: int                              # of the kernel, 1 for linear layers
    convolution: bool

    @property
    def name(self) -> str:
        """Unique among a UNet's points."""
        return self.key if self.side == "input" else f"{self.key}:output"

    @property
    def text(self) -> bool:
        """Whether its tokens are the prompt's."""
        return bool(_TEXT.search(self.key))


def find_points(unet: nn.Module) -> list[Point]:
    """All of them, in the order of the modules. unet: diffusers' UNet2DConditionModel, its layers coded or not."""
    layers = {name: weight_shape(module) for name, module in unet.named_modules() if is_layer(module)}
    pairs = unet_names.pairs_from_diffusers(f"{module}.weight" for module in layers)
    table = PrefixTable([(theirs, ours) for ours, theirs in pairs])
    found = []
    for module, shape in layers.items():
        key = UNET_PREFIX + table.apply(f"{module}.weight")
        kind = {"taps": math.prod(shape[2:]), "convolution": len(shape) == 4}
        found.append(Point(key, module, "input", shape[1], **kind))
        if _ATTENTION.search(key):
            found.append(Point(key, module, "output", shape[0], **kind))
    return found


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution, ours included."""
    coded = isinstance(getattr(module, "coded", None), CodedWeight)
    return isinstance(module, nn.Linear | nn.Conv2d) or coded and not isinstance(module, VQEmbedding)


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Of a layer's weight, without decoding it."""
    coded = getattr(module, "coded", None)
    return tuple(coded.shape if coded is not None else module.weight.shape)


def tokens_first(x: torch.Tensor, convolution: bool) -> torch.Tensor:
    """[n, channels, h, w] of a convolution, [n, ..., channels] of a linear layer -> float32 [n, tokens, channels]"""
    if convolution:
        return x.flatten(2).transpose(1, 2).float()
    return x.reshape(x.shape[0], -1, x.shape[-1]).float()


def as_before(tokens: torch.Tensor, like: torch.Tensor, convolution: bool) -> torch.Tensor:
    """Inverse of tokens_first, in the shape and dtype of `like`."""
    if convolution:
        tokens = tokens.transpose(1, 2)
    return tokens.reshape(like.shape).to(like.dtype)
