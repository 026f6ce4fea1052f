"""UNet key names: LDM <-> diffusers, as prefix pairs derived from the blocks a checkpoint has.

Keys here are without the UNet's own prefix. Both directions give the same pairs, so one is the other's inverse.
"""
from __future__ import annotations

import re
from collections.abc import Iterable

Pair = tuple[str, str]                     # (LDM prefix, diffusers prefix)

FIXED = (("time_embed.0.", "time_embedding.linear_1."), ("time_embed.2.", "time_embedding.linear_2."),
         ("label_emb.0.0.", "add_embedding.linear_1."), ("label_emb.0.2.", "add_embedding.linear_2."),
         ("input_blocks.0.0.", "conv_in."), ("out.0.", "conv_norm_out."), ("out.2.", "conv_out."))
RESNET = (("in_layers.0.", "norm1."), ("in_layers.2.", "conv1."), ("emb_layers.1.", "time_emb_proj."),
          ("out_layers.0.", "norm2."), ("out_layers.3.", "conv2."), ("skip_connection.", "conv_shortcut."))
LDM_ROOTS = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
DIFFUSERS_ROOTS = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.", "up_blocks.",
                   "conv_norm_out.", "conv_out.")


def pairs_from_ldm(keys: Iterable[str]) -> list[Pair]:
    """Prefix pairs of a UNet given by its LDM keys."""
    names = _modules(keys)
    pairs = list(FIXED) + _middle(lambda i: f"middle_block.{i}." in names)
    level = within = 0
    for index in range(1, _count(names, "input_blocks")):
        block = f"input_blocks.{index}."
        if f"{block}0.op." in names:
            pairs.append((f"{block}0.op.", f"down_blocks.{level}.downsamplers.0.conv."))
            level, within = level + 1, 0
            continue
        pairs += _resnet(f"{block}0.", f"down_blocks.{level}.resnets.{within}.")
        if f"{block}1." in names:
            pairs.append((f"{block}1.", f"down_blocks.{level}.attentions.{within}."))
        within += 1
    level = within = 0
    for index in range(_count(names, "output_blocks")):
        block = f"output_blocks.{index}."
        upsample = next((i for i in (1, 2) if f"{block}{i}.conv." in names), None)
        pairs += _resnet(f"{block}0.", f"up_blocks.{level}.resnets.{within}.")
        if f"{block}1." in names and upsample != 1:
            pairs.append((f"{block}1.", f"up_blocks.{level}.attentions.{within}."))
        within += 1
        if upsample is not None:
            pairs.append((f"{block}{upsample}.conv.", f"up_blocks.{level}.upsamplers.0.conv."))
            level, within = level + 1, 0
    return pairs


def pairs_from_diffusers(keys: Iterable[str]) -> list[Pair]:
    """Prefix pairs of a UNet given by its diffusers keys."""
    names = _modules(keys)
    pairs = list(FIXED) + _middle(lambda i: ("mid_block.resnets.0.", "mid_block.attentions.0.",
                                             "mid_block.resnets.1.")[i] in names)
    index = 1
    for level in range(_count(names, "down_blocks")):
        side = f"down_blocks.{level}."
        for within in range(_count(names, f"{side}resnets")):
            pairs += _resnet(f"input_blocks.{index}.0.", f"{side}resnets.{within}.")
            if f"{side}attentions.{within}." in names:
                pairs.append((f"input_blocks.{index}.1.", f"{side}attentions.{within}."))
            index += 1
        if f"{side}downsamplers.0." in names:
            pairs.append((f"input_blocks.{index}.0.op.", f"{side}downsamplers.0.conv."))
            index += 1
    index = 0
    for level in range(_count(names, "up_blocks")):
        side = f"up_blocks.{level}."
        resnets = _count(names, f"{side}resnets")
        for within in range(resnets):
            attention = f"{side}attentions.{within}." in names
            pairs += _resnet(f"output_blocks.{index}.0.", f"{side}resnets.{within}.")
            if attention:
                pairs.append((f"output_blocks.{index}.1.", f"{side}attentions.{within}."))
            if within == resnets - 1 and f"{side}upsamplers.0." in names:
                pairs.append((f"output_blocks.{index}.{1 + attention}.conv.", f"{side}upsamplers.0.conv."))
            index += 1
    return pairs


def _resnet(ldm: str, diffusers: str) -> list[Pair]:
    return [(ldm + a, diffusers + b) for a, b in RESNET]


def _middle(present) -> list[Pair]:
    pairs = _resnet("middle_block.0.", "mid_block.resnets.0.") if present(0) else []
    if present(1):
        pairs.append(("middle_block.1.", "mid_block.attentions.0."))
    return pairs + (_resnet("middle_block.2.", "mid_block.resnets.1.") if present(2) else [])


def _modules(keys: Iterable[str]) -> set[str]:
    """All module prefixes ("a.", "a.b.", ...) of a list of keys."""
    names = set()
    for key in keys:
        names.update(key[:match.end()] for match in re.finditer(r"\.", key))
    return names


def _count(names: set[str], root: str) -> int:
    """Number of consecutive blocks root.0., root.1., ..."""
    count = 0
    while f"{root}.{count}." in names:
        count += 1
    return count
