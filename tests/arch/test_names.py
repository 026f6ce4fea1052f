"""Key names LDM <-> diffusers: bijections, inverses of each other, equal to what diffusers itself builds."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from arch_shapes import FAMILY, SMALL, UNET, listed, unet_shapes
from vqpack.vq_core.arch import clip_names, unet_names, vae_names
from vqpack.vq_core.keymap import PrefixTable

FAMILIES = {**FAMILY, "small": SMALL, "irregular": replace(SMALL, depth_in=(1, 0), depth_out=(0, 2, 1, 0))}
VAE = "first_stage_model."


def diffusers_config(family) -> dict:
    """UNet2DConditionModel's configuration of a family."""
    levels = len(family.channel_mult)
    per_level = len(family.depth_in) // levels
    depths = [family.depth_in[level * per_level:(level + 1) * per_level] for level in range(levels)]
    ups = [family.depth_out[level * (per_level + 1):(level + 1) * (per_level + 1)] for level in range(levels)]
    middle = {None: None, -1: "UNetMidBlock2D"}.get(family.depth_middle, "UNetMidBlock2DCrossAttn")
    layers = [list(d) if any(d) else 1 for d in depths]
    if middle == "UNetMidBlock2DCrossAttn":                # diffusers takes the middle's depth from the last level
        assert family.depth_middle == family.depth_in[-1] or family.name == "sdxl-refiner"
        layers[-1] = family.depth_middle
    return {
        "in_channels": family.in_channels, "out_channels": 4, "layers_per_block": per_level,
        "block_out_channels": [family.model_channels * m for m in family.channel_mult],
        "down_block_types": ["CrossAttnDownBlock2D" if any(d) else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if any(u) else "UpBlock2D" for u in ups],
        "mid_block_type": middle, "transformer_layers_per_block": layers,
        "reverse_transformer_layers_per_block": [list(u) if any(u) else 1 for u in ups],
        "cross_attention_dim": family.context_dim, "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": family.adm_in_channels,
        "attention_head_dim": [m * family.model_channels // 16 for m in family.channel_mult], "norm_num_groups": 16,
    }


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_unet_names_are_a_bijection(name):
    ldm = set(unet_shapes(FAMILIES[name], prefix=""))
    to_diffusers = PrefixTable(unet_names.pairs_from_ldm(ldm))
    diffusers = {key: to_diffusers.apply(key) for key in ldm}
    assert len(set(diffusers.values())) == len(ldm)
    back = PrefixTable((b, a) for a, b in unet_names.pairs_from_diffusers(diffusers.values()))
    assert all(back.apply(new) == key for key, new in diffusers.items())
    assert not any(new.startswith(unet_names.LDM_ROOTS) and not new.startswith("out.") for new in diffusers.values())


@pytest.mark.parametrize("name", ["sdxl", "sdxl-refiner", "ssd-1b", "segmind-vega", "koala-700m", "koala-1b", "small"])
def test_unet_names_are_those_of_diffusers(name):
    from diffusers import UNet2DConditionModel

    family = FAMILIES[name]
    with torch.device("meta"):
        model = UNet2DConditionModel(**diffusers_config(family))
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    ldm = unet_shapes(family, prefix="")
    table = PrefixTable(unet_names.pairs_from_ldm(ldm))
    assert {table.apply(key): shape for key, shape in ldm.items()} == wanted


def test_vega_list_is_a_bijection():
    ldm = [key[len(UNET):] for key in listed("vega") if key.startswith(UNET)]
    table = PrefixTable(unet_names.pairs_from_ldm(ldm))
    back = PrefixTable((b, a) for a, b in unet_names.pairs_from_diffusers(map(table.apply, ldm)))
    assert all(back.apply(table.apply(key)) == key and table.apply(key) != key for key in ldm)


@pytest.mark.parametrize("levels, attention", [((128, 256, 512, 512), True), ((16, 32, 64), False)])
def test_vae_names_are_those_of_diffusers(levels, attention):
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        model = AutoencoderKL(block_out_channels=levels, down_block_types=["DownEncoderBlock2D"] * len(levels),
                              up_block_types=["UpDecoderBlock2D"] * len(levels), layers_per_block=2, latent_channels=4,
                              norm_num_groups=8, mid_block_add_attention=attention)
    diffusers = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    table = PrefixTable((b, a) for a, b in vae_names.pairs_from_diffusers(diffusers))
    ldm = {table.apply(key): vae_names.ldm_shape(table.apply(key), shape) for key, shape in diffusers.items()}
    assert len(ldm) == len(diffusers)
    if attention:
        assert ldm == {key[len(VAE):]: shape for key, shape in listed("base").items() if key.startswith(VAE)}
    back = PrefixTable(vae_names.pairs_from_ldm(ldm))
    assert {back.apply(key): vae_names.diffusers_shape(key, shape) for key, shape in ldm.items()} == diffusers


def test_old_vae_attention_names():
    new = {"decoder.mid_block.attentions.0.query.weight": "decoder.mid.attn_1.q.weight",
           "encoder.mid_block.attentions.0.proj_attn.bias": "encoder.mid.attn_1.proj_out.bias",
           "encoder.mid_block.attentions.0.group_norm.bias": "encoder.mid.attn_1.norm.bias"}
    table = PrefixTable((b, a) for a, b in vae_names.pairs_from_diffusers(new))
    assert {key: table.apply(key) for key in new} == new


def test_clip_names_are_those_of_transformers():
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                            vocab_size=21, projection_dim=16)
    with torch.device("meta"):
        hf = {key for key in CLIPTextModelWithProjection(config).state_dict() if not key.endswith("position_ids")}
    ldm = [key.split("embedders.1.model.")[1] for key in listed("base") if key.startswith("conditioner.embedders.1.")]
    ldm = [key for key in ldm if "resblocks" not in key or "resblocks.0." in key or "resblocks.1." in key]
    table = PrefixTable(clip_names.pairs(ldm))
    made = set()
    for key in ldm:
        parts = clip_names.split_names(key)
        made.update(parts if parts else [table.apply(key)])
        for part in parts or ():
            assert clip_names.fused_name(part) == key
    assert made - {"logit_scale", "text_projection"} == hf - {"text_projection.weight"}


@pytest.mark.parametrize("key, expected", [("a.b.c", "x.c"), ("a.bc", "y.bc"), ("a.b", "y.b"), ("b.a.", "b.a.")])
def test_the_longest_prefix_wins(key, expected):
    assert PrefixTable([("a.", "y."), ("a.b.", "x.")]).apply(key) == expected
