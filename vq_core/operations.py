"""Multiplications and additions of a UNet's coded layers, by formula: dense products and those from look-up tables."""
from __future__ import annotations

import math
import re
from collections.abc import Mapping

from .arch import UNET_PREFIX, make_layers
from .arch.layer import Layer
from .arch.unet import UNet, read_unet

TEXT_ROLES = ("cross_k", "cross_v")
TEXT_TOKENS = 77
_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?")


def dense_operations(out_features: int, columns: int) -> int:
    """Of one input vector: 2 d_in d_out."""
    return 2 * out_features * columns


def table_operations(out_features: int, columns: int, num_codebooks: int, codebook_size: int = 256, group: int = 8
                     ) -> int:
    """Of one input vector: 2 M K d_in for the tables <x_group, entry>, M d_out ceil(d_in / g) additions of what is
    looked up (AQ thesis, arXiv 2506.05960). Over dense_operations that is M K / d_out + M / (2 g).
    """
    return 2 * num_codebooks * codebook_size * columns + num_codebooks * out_features * -(-columns // group)


def input_vectors(shapes: Mapping[str, tuple[int, ...]], height: int, width: int, text_tokens: int = TEXT_TOKENS
                  ) -> dict[Layer, int]:
    """Coded layers of a checkpoint's UNet -> input vectors of one picture. height, width: of the latents."""
    unet = read_unet(shapes)
    levels = _levels(unet)
    found = {}
    for layer in make_layers(shapes):
        if layer.component == "unet" and not layer.dense:
            side = 2 ** _level(layer, unet, levels)
            pixels = -(-height // side) * -(-width // side)
            found[layer] = text_tokens if layer.role in TEXT_ROLES else pixels
    return found


def unet_operations(vectors: Mapping[Layer, int], num_codebooks: int, choose: bool = False) -> tuple[int, int]:
    """(from look-up tables, dense) of all layers, groups of 8 weights, books of 256; choose: where dense takes fewer it
    is taken."""
    tables = dense = 0
    for layer, count in vectors.items():
        out_features, columns = layer.shape[0], math.prod(layer.shape[1:])
        plain = dense_operations(out_features, columns)
        looked_up = table_operations(out_features, columns, num_codebooks)
        tables += count * (min(plain, looked_up) if choose else looked_up)
        dense += count * plain
    return tables, dense


def _levels(unet: UNet) -> dict[str, int]:
    """Block prefix -> how often its output's sides were halved (an upsampler inside it not counted)."""
    level, found = 0, {}
    for block in unet.inputs:
        level += block.kind == "downsample"
        found[block.prefix] = level
    found["middle_block."] = level
    for block in unet.outputs:
        found[block.prefix] = level
        level -= block.upsample is not None
    return found


def _level(layer: Layer, unet: UNet, levels: Mapping[str, int]) -> int:
    name = layer.key[len(UNET_PREFIX):]
    kind, index, _ = _BLOCK.match(name).groups()
    prefix = "middle_block." if kind == "middle_block" else f"{kind}.{index}."
    return levels[prefix] - (layer.role == "upsample")
