"""The UNet as its own keys and shapes describe it: blocks in forward order, channels, depths, concat splits."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .families import FALLBACK, FAMILIES

UNET_PREFIX = "model.diffusion_model."
Shapes = Mapping[str, tuple[int, ...]]
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.")


@dataclass(frozen=True)
class Block:
    """One entry of input_blocks, middle_block or output_blocks (keys without the UNet's prefix)."""

    prefix: str                            # "input_blocks.4."
    kind: str                              # "conv_in", "resnet", "downsample", "middle"
    channels: int                          # it puts out
    depth: int                             # transformer blocks, 0 = no attention
    upsample: int | None = None            # index of the upsampler inside the block


@dataclass(frozen=True)
class UNet:
    """Everything naming, splitting and detection need to know about one UNet."""

    in_channels: int
    model_channels: int
    context_dim: int | None
    adm_in_channels: int | None
    linear_projections: bool
    inputs: tuple[Block, ...]
    middle: int | None                     # as Family.depth_middle
    outputs: tuple[Block, ...]

    @property
    def levels(self) -> tuple[tuple[Block, ...], ...]:
        """Resnet blocks of the input side, one tuple per resolution."""
        levels: list[list[Block]] = [[]]
        for block in self.inputs[1:]:
            if block.kind == "downsample":
                levels.append([])
            else:
                levels[-1].append(block)
        return tuple(tuple(level) for level in levels)

    @property
    def channel_mult(self) -> tuple[int, ...]:
        """Channels of each resolution over model_channels."""
        return tuple(level[-1].channels // self.model_channels if level else 0 for level in self.levels)

    @property
    def depth_in(self) -> tuple[int, ...]:
        """Transformer blocks behind each input resnet."""
        return tuple(block.depth for block in self.inputs if block.kind == "resnet")

    @property
    def depth_out(self) -> tuple[int, ...]:
        """Transformer blocks behind each output resnet."""
        return tuple(block.depth for block in self.outputs)

    def concat_splits(self) -> dict[str, tuple[int, int]]:
        """Output block prefix -> (channels from below, channels from the skip) of the concatenation feeding it."""
        stack = [block.channels for block in self.inputs]
        current, splits = (stack[-1] if stack else 0), {}
        for block in self.outputs:
            if not stack:
                break
            splits[block.prefix] = (current, stack.pop())
            current = block.channels
        return splits


def read_unet(shapes: Shapes, prefix: str = UNET_PREFIX) -> UNet | None:
    """Describe the UNet under `prefix`; None where there is none. shapes: LDM key -> shape."""
    own = {key[len(prefix):]: tuple(shape) for key, shape in shapes.items() if key.startswith(prefix)}
    first = own.get("input_blocks.0.0.weight", ())
    if len(first) != 4:
        return None
    counts = {"input": 0, "output": 0}
    for match in filter(None, map(_BLOCK.match, own)):
        counts[match[1]] = max(counts[match[1]], int(match[2]) + 1)
    depths = _depths(own)
    inputs = [_block(own, depths, f"input_blocks.{i}.", first[0]) for i in range(counts["input"])]
    outputs = [_block(own, depths, f"output_blocks.{i}.", 0) for i in range(counts["output"])]
    return UNet(first[1], first[0], _context(own), _second(own.get("label_emb.0.0.weight")),
                _linear_projections(own), tuple(inputs), _middle(own, depths), tuple(outputs))


def family_of(unet: UNet) -> str:
    """The family's name, FALLBACK for an SDXL-like UNet of other numbers."""
    for family in FAMILIES:
        if all(getattr(unet, name) == getattr(family, name) for name in (
                "in_channels", "model_channels", "channel_mult", "depth_in", "depth_out", "context_dim",
                "adm_in_channels")) and unet.middle == family.depth_middle:
            return family.name
    return FALLBACK


def _depths(own: Shapes) -> dict[str, int]:
    """Block prefix -> number of transformer blocks in its submodule 1."""
    depths: dict[str, int] = {}
    for key in own:
        match = re.match(r"((?:input_blocks|output_blocks)\.\d+\.|middle_block\.)1\.transformer_blocks\.(\d+)\.", key)
        if match:
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths


def _block(own: Shapes, depths: dict[str, int], prefix: str, first: int) -> Block:
    if prefix + "0.op.weight" in own:
        return Block(prefix, "downsample", own[prefix + "0.op.weight"][0], 0)
    if prefix + "0.out_layers.3.weight" in own:
        upsample = next((i for i in (1, 2) if f"{prefix}{i}.conv.weight" in own), None)
        return Block(prefix, "resnet", own[prefix + "0.out_layers.3.weight"][0], depths.get(prefix, 0), upsample)
    return Block(prefix, "conv_in", first, 0)


def _middle(own: Shapes, depths: dict[str, int]) -> int | None:
    if "middle_block.0.in_layers.2.weight" not in own:
        return None
    return depths.get("middle_block.", -1)


def _second(shape: tuple[int, ...] | None) -> int | None:
    return shape[1] if shape is not None and len(shape) > 1 else None


def _context(own: Shapes) -> int | None:
    return next((shape[1] for key, shape in own.items() if key.endswith("attn2.to_k.weight") and len(shape) == 2), None)


def _linear_projections(own: Shapes) -> bool:
    return any(key.endswith("1.proj_in.weight") and len(shape) == 2 for key, shape in own.items())
