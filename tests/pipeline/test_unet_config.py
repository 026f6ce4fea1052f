"""The UNet's configuration follows from its shapes, for every published family."""
from __future__ import annotations

import csv
import gzip

import pytest
import torch
from vqpack.vq_core.arch import UNET_PREFIX, detect, read_unet, unet_names
from vqpack.vq_core.configs import read_config
from vqpack.vq_core.configs.unet import unet_config
from vqpack.vq_core.errors import UnsupportedError
from vqpack.vq_core.keymap import PrefixTable

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
THREE = {"down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN], "up_block_types": [CROSS_UP, CROSS_UP, UP],
         "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20]}
# As published with the models (unet/config.json of each), what differs from SDXL base only.
PUBLISHED = {
    "sdxl": {**THREE, "transformer_layers_per_block": [1, 2, 10]},
    "sdxl-inpaint": {**THREE, "transformer_layers_per_block": [1, 2, 10], "in_channels": 9},
    "sdxl-refiner": {"down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
                     "up_block_types": [UP, CROSS_UP, CROSS_UP, UP], "block_out_channels": [384, 768, 1536, 1536],
                     "attention_head_dim": [6, 12, 24, 24], "transformer_layers_per_block": 4,
                     "cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560},
    "ssd-1b": {**THREE, "transformer_layers_per_block": [1, 2, 4], "mid_block_type": "UNetMidBlock2D",
               "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]},
    "segmind-vega": {**THREE, "transformer_layers_per_block": [1, 1, 2], "mid_block_type": "UNetMidBlock2D",
                     "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1]},
    "koala-700m": {**THREE, "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 5], "mid_block_type": None},
    "koala-1b": {**THREE, "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
}


def build(config: dict):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_models_come_back(family):
    published = build({**read_config("unet"), **PUBLISHED[family]})
    shapes = shapes_of(published)
    table = PrefixTable((ours, ldm) for ldm, ours in unet_names.pairs_from_diffusers(shapes))
    found = detect({UNET_PREFIX + table.apply(name): shape for name, shape in shapes.items()})
    assert found.name == family
    ours = build(unet_config(found.unet, read_config("unet")))
    assert shapes_of(ours) == shapes
    for name in ("attention_head_dim", "cross_attention_dim", "projection_class_embeddings_input_dim",
                 "addition_time_embed_dim", "block_out_channels", "in_channels"):
        assert ours.config[name] == published.config[name], name


@pytest.mark.parametrize("name", ["sdxl_base", "sdxl_vega"])
def test_real_key_lists_fit(repository, name):
    with gzip.open(repository / "tests" / "data" / f"{name}.keys.tsv.gz", "rt") as file:
        shapes = {key: tuple(map(int, shape.split(","))) for key, shape, *_ in csv.reader(file, delimiter="\t")
                  if key.startswith(UNET_PREFIX)}
    model = build(unet_config(read_unet(shapes), read_config("unet")))
    table = PrefixTable(unet_names.pairs_from_ldm(key[len(UNET_PREFIX):] for key in shapes))
    assert shapes_of(model) == {table.apply(key[len(UNET_PREFIX):]): shape for key, shape in shapes.items()}


def test_lopsided_unet_is_refused():
    shapes = {name: shape for name, shape in shapes_of(build({**read_config("unet"), **PUBLISHED["sdxl"]})).items()
              if not name.startswith("up_blocks.2.")}
    table = PrefixTable((ours, ldm) for ldm, ours in unet_names.pairs_from_diffusers(shapes))
    unet = read_unet({UNET_PREFIX + table.apply(name): shape for name, shape in shapes.items()})
    with pytest.raises(UnsupportedError, match="resolutions"):
        unet_config(unet, read_config("unet"))
