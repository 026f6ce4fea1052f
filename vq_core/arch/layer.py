"""The layers of a checkpoint in coding order: component, role, what is coded, how channels are split."""
from __future__ import annotations

import re
from dataclasses import dataclass

from .unet import UNET_PREFIX, Shapes, read_unet


@dataclass(frozen=True)
class Layer:
    """One tensor of a checkpoint, under its LDM key."""

    key: str
    shape: tuple[int, ...]
    component: str                         # "unet", "te1", "te2", "vae", "other"
    role: str                              # what it does, e.g. "conv1", "self_q", "ff_in", "embedding", "norm"
    dense: bool                            # kept as it is unless a plan names it
    taps: int = 1                          # kernel height x width
    splits: tuple[int, ...] = ()           # input channels of each concatenated source, () = one source

    @property
    def numel(self) -> int:
        """Number of weights."""
        count = 1
        for size in self.shape:
            count *= size
        return count


# Key prefix -> component. The refiner has one encoder (CLIP-G) under embedders.0.
COMPONENTS = ((UNET_PREFIX, "unet"), ("conditioner.embedders.0.", "te1"), ("conditioner.embedders.1.", "te2"),
              ("first_stage_model.", "vae"))

# Roles of the UNet's coded weights, in forward order: (role, what follows the block's index and submodule).
# VQDM 1.2 codes the same set: everything inside the blocks but the time projections, norms and biases.
_ATTENTION = tuple((f"{name}_{part}", rf"transformer_blocks\.\d+\.{attn}\.{leaf}\.weight")
                   for attn, name in (("attn1", "self"), ("attn2", "cross"))
                   for part, leaf in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", r"to_out\.0")))
UNET_ROLES = (("conv1", r"in_layers\.2\.weight"), ("conv2", r"out_layers\.3\.weight"),
              ("shortcut", r"skip_connection\.weight"), ("downsample", r"op\.weight"), ("proj_in", r"proj_in\.weight"),
              *_ATTENTION, ("ff_in", r"transformer_blocks\.\d+\.ff\.net\.0\.proj\.weight"),
              ("ff_out", r"transformer_blocks\.\d+\.ff\.net\.2\.weight"), ("proj_out", r"proj_out\.weight"),
              ("upsample", r"conv\.weight"))
CONCAT_FED = ("conv1", "shortcut")
_UNET_PATTERNS = tuple((role, re.compile(pattern)) for role, pattern in UNET_ROLES)
_BLOCK = re.compile(r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.\d+\.(.+)")

# The UNet's dense weights; first match names the role.
_UNET_DENSE = (("conv_in", re.compile(r"input_blocks\.0\.0\.weight")), ("conv_out", re.compile(r"out\.2\.weight")),
               ("time_embed", re.compile(r"time_embed\..*weight")), ("label_embed", re.compile(r"label_emb\..*weight")),
               ("time_proj", re.compile(r".*\.emb_layers\.1\.weight")))

# Text encoders, HF names and OpenCLIP names.
_TE_ROLES = (("attention", re.compile(r".*\.self_attn\.(q|k|v|out)_proj\.weight")),
             ("attention", re.compile(r".*\.attn\.(in_proj_weight|out_proj\.weight)")),
             ("mlp", re.compile(r".*\.mlp\.(fc1|fc2|c_fc|c_proj)\.weight")),
             ("embedding", re.compile(r".*\btoken_embedding\.weight")))
_TE_DENSE = (("position", re.compile(r".*\b(position_embedding\.weight|positional_embedding|position_ids)")),
             ("projection", re.compile(r".*\btext_projection(\.weight)?")))
_COMPONENT_ORDER = {"unet": 0, "te1": 1, "te2": 2, "vae": 3, "other": 4}


def component_of(key: str) -> str:
    """"unet", "te1", "te2", "vae" or "other" (model_ema.*, prediction markers, anything unknown)."""
    return next((name for prefix, name in COMPONENTS if key.startswith(prefix)), "other")


def make_layers(shapes: Shapes) -> list[Layer]:
    """All tensors of a checkpoint (LDM key -> shape) as layers, UNet first, each component in forward order."""
    unet = read_unet(shapes)
    splits = unet.concat_splits() if unet else {}
    found = [make_layer(key, tuple(shape), splits) for key, shape in shapes.items()]
    return sorted(found, key=coding_order)


def make_layer(key: str, shape: tuple[int, ...], splits: dict[str, tuple[int, int]] | None = None) -> Layer:
    """Describe one tensor. splits: output block prefix -> channels, from UNet.concat_splits."""
    component = component_of(key)
    if component == "unet":
        return _unet_layer(key, shape, splits or {})
    role, dense = _text_role(key, shape) if component in ("te1", "te2") else (_plain_role(key, shape), True)
    return Layer(key, shape, component, role, dense, _taps(shape))


def _unet_layer(key: str, shape: tuple[int, ...], splits: dict[str, tuple[int, int]]) -> Layer:
    name = key[len(UNET_PREFIX):]
    block = _BLOCK.fullmatch(name)
    if block and not name.startswith("input_blocks.0."):
        for role, pattern in _UNET_PATTERNS:
            if pattern.fullmatch(block[2]) and len(shape) in (2, 4):
                channels = splits.get(block[1] + ".", ()) if role in CONCAT_FED else ()
                whole = len(channels) == 2 and sum(channels) == shape[1]
                return Layer(key, shape, "unet", role, False, _taps(shape), channels if whole else ())
    role = next((role for role, pattern in _UNET_DENSE if pattern.fullmatch(name)), None)
    return Layer(key, shape, "unet", role or _plain_role(key, shape), True, _taps(shape))


def _text_role(key: str, shape: tuple[int, ...]) -> tuple[str, bool]:
    """-> (role, dense)"""
    for roles, dense in ((_TE_ROLES, False), (_TE_DENSE, True)):
        for role, pattern in roles:
            if pattern.fullmatch(key) and (dense or len(shape) == 2):
                return role, dense
    return _plain_role(key, shape), True


def _plain_role(key: str, shape: tuple[int, ...]) -> str:
    if key.endswith("bias"):
        return "bias"
    return "norm" if len(shape) == 1 and key.endswith("weight") else "other"


def _taps(shape: tuple[int, ...]) -> int:
    return shape[2] * shape[3] if len(shape) == 4 else 1


# Forward order inside a block; what is not listed sorts by name behind its siblings.
_STAGES = ("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out")
_INSIDE = ("norm", "proj_in", "in_layers", "emb_layers", "out_layers", "skip_connection", "op", "transformer_blocks",
           "norm1", "attn1", "norm2", "attn2", "norm3", "ff", "to_q", "to_k", "to_v", "to_out", "proj_out", "conv",
           "embeddings", "encoder", "token_embedding", "layer_norm1", "self_attn", "layer_norm2", "mlp",
           "ln_1", "attn", "ln_2", "q_proj", "k_proj", "v_proj", "out_proj", "in_proj_weight", "in_proj_bias",
           "final_layer_norm", "weight", "bias")
_RANK = {name: i for i, name in enumerate((*_STAGES, *_INSIDE))}


def coding_order(layer: Layer) -> tuple:
    """Sort key: UNet, text encoders, VAE, rest; each in forward order."""
    parts = layer.key.split(".")
    if layer.component == "unet":
        parts = parts[2:]
    rank = [(0, int(p), "") if p.isdigit() else (1, _RANK.get(p, len(_RANK)), p) for p in parts]
    return _COMPONENT_ORDER[layer.component], rank
