"""CLIP text encoder key names: OpenCLIP (fused q/k/v, CLIP-G of SDXL files) <-> HF transformers. Keys without prefix.

HF names are as in `CLIPTextModelWithProjection`; SDXL files put "transformer." before them.
"""
from __future__ import annotations

import re
from collections.abc import Iterable

Pair = tuple[str, str]                     # (OpenCLIP prefix or key, HF prefix or key)

FIXED = (("positional_embedding", "text_model.embeddings.position_embedding.weight"),
         ("token_embedding.", "text_model.embeddings.token_embedding."),
         ("ln_final.", "text_model.final_layer_norm."))
BLOCK = (("ln_1.", "layer_norm1."), ("ln_2.", "layer_norm2."), ("mlp.c_fc.", "mlp.fc1."), ("mlp.c_proj.", "mlp.fc2."),
         ("attn.out_proj.", "self_attn.out_proj."))
QKV = ("q_proj", "k_proj", "v_proj")       # order of the rows of in_proj_weight (torch.nn.MultiheadAttention)
PROJECTION = ("text_projection", "text_projection.weight")   # stored transposed in OpenCLIP: x @ P against Linear
_FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_SPLIT = re.compile(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(weight|bias)")
_LAYER = re.compile(r"(?:transformer\.resblocks|text_model\.encoder\.layers)\.(\d+)\.")


def is_openclip(keys: Iterable[str]) -> bool:
    """Whether an encoder's keys (without prefix) are OpenCLIP's."""
    return any(key.startswith("transformer.resblocks.") for key in keys)


def pairs(keys: Iterable[str]) -> list[Pair]:
    """Prefix pairs for all that is only renamed; keys may be OpenCLIP or HF names."""
    blocks = sorted({int(match[1]) for match in map(_LAYER.match, keys) if match})
    return list(FIXED) + [(f"transformer.resblocks.{n}.{a}", f"text_model.encoder.layers.{n}.{b}")
                          for n in blocks for a, b in BLOCK]


def split_names(key: str) -> tuple[str, str, str] | None:
    """OpenCLIP's fused in_proj key -> HF's q, k, v keys; None for any other key."""
    match = _FUSED.fullmatch(key)
    if match is None:
        return None
    return tuple(f"text_model.encoder.layers.{match[1]}.self_attn.{name}.{match[2]}" for name in QKV)


def fused_name(key: str) -> str | None:
    """HF's q, k or v key -> OpenCLIP's fused key; None for any other key."""
    match = _SPLIT.fullmatch(key)
    return f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}" if match else None
