"""SDXL's UNet with random weights, dense or coded, and inputs for a call: for speed and memory, never for pictures."""
from __future__ import annotations

import torch
from torch import nn

from ..configs import read_config
from ..layers import replace_layers
from ..spec import Spec
from .parts import other_codes, random_weight

# Coded in a file: everything inside the blocks but the time projections (arch/layer.py); diffusers' names.
DENSE_PREFIXES = ("time_embedding", "add_embedding", "conv_in", "conv_out")
BASE = {"in_channels": 4, "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20), "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
TINY = {"block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": 64, "projection_class_embeddings_input_dim": 6 * 8 + 64, "norm_num_groups": 8,
        "addition_time_embed_dim": 8}


def random_unet(device: str, dtype: torch.dtype, tiny: bool = False) -> nn.Module:
    """diffusers' UNet2DConditionModel of SDXL base's shapes, weights normal with std 1/sqrt(fan_in)."""
    from diffusers import UNet2DConditionModel

    config = {**read_config("unet"), **BASE, **(TINY if tiny else {})}
    with torch.device("meta"):
        model = nn.Module.to(UNet2DConditionModel.from_config(config), dtype)       # diffusers' own warns
    if device == "meta":
        return model.requires_grad_(False).eval()
    with torch.inference_mode(False), torch.no_grad():
        model = model.to_empty(device=device).requires_grad_(False).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model


def inputs(pixels: int, batch: int, device: str, dtype: torch.dtype, tiny: bool = False) -> dict:
    """Arguments of one call: a noisy latent, a step, 77 tokens of text."""
    context, pooled = (TINY["cross_attention_dim"], 64) if tiny else (2048, 1280)

    def random(*shape):
        return torch.randn(shape, device=device, dtype=dtype) if device != "meta" else torch.empty(
            shape, device=device, dtype=dtype)

    side = pixels // 8
    return {"sample": random(batch, 4, side, side), "timestep": torch.tensor(500, device=device),
            "encoder_hidden_states": random(batch, 77, context),
            "added_cond_kwargs": {"text_embeds": random(batch, pooled),
                                  "time_ids": torch.zeros(batch, 6, device=device, dtype=dtype)}}


def coded_names(model: nn.Module) -> list[str]:
    """Paths of the layers a vqpack file codes."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
            and not name.startswith(DENSE_PREFIXES) and "time_emb_proj" not in name]


def make_coded(model: nn.Module, spec: Spec, device: str, dtype: torch.dtype, keep_bytes: int = 0) -> nn.Module:
    """The same model, in place, with random codes in its coded layers; keep_bytes of them stay decoded."""
    from ..cost_model import worth_keeping

    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in coded_names(model)}
    first = {shape: random_weight(shape, spec, 0, device) for shape in set(shapes.values())}
    weights = {name: other_codes(first[shape]) for name, shape in shapes.items()}
    kept = worth_keeping([(name, weight.layout, dtype.itemsize) for name, weight in weights.items()], keep_bytes)
    return replace_layers(model, weights, set(kept), dtype)
