"""CLIP-G's conversion: what is stored, that ComfyUI would read the same encoder, that the key map undoes it exactly."""
from __future__ import annotations

import json

import pytest
import torch
from arch_shapes import SMALL, listed, openclip_shapes, random_tensors, unet_shapes, write_file
from vqpack.vq_core.arch import layers
from vqpack.vq_core.errors import FormatError
from vqpack.vq_core.keymap import KEYMAP_KEY, KeyMap, keymap_from_metadata
from vqpack.vq_core.source import open_source
from vqpack.vq_core.text_encoders import stored_items, stored_keymap

G = "conditioner.embedders.1.model."


class Shapes:
    """A source that has shapes only."""

    keymap = KeyMap()

    def __init__(self, shapes):
        self.shapes = shapes

    def keys(self):
        return list(self.shapes)

    def shape(self, key):
        return self.shapes[key]


def open_with_encoder(tmp_path, prefix=G, dtype=torch.float16, **sizes):
    tensors = random_tensors({**unet_shapes(SMALL), **openclip_shapes(prefix, **sizes)}, dtype)
    return open_source(write_file(tmp_path / "model.safetensors", tensors)), tensors


def comfy_reads(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What ComfyUI's clip_text_transformers_convert makes of an OpenCLIP encoder, said in our own words."""
    out = {}
    for key, tensor in tensors.items():
        name = key[len(prefix):]
        if name.startswith("transformer.resblocks."):
            layer, rest = name.split(".", 3)[2:]
            start = f"transformer.text_model.encoder.layers.{layer}."
            if rest.startswith("attn.in_proj_"):
                for part, rows in zip("qkv", tensor.chunk(3)):
                    out[f"{start}self_attn.{part}_proj.{rest[len('attn.in_proj_'):]}"] = rows
                continue
            for old, new in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"),
                             ("mlp.c_proj", "mlp.fc2"), ("attn.out_proj", "self_attn.out_proj")):
                rest = rest.replace(old, new)
            out[start + rest] = tensor
        elif name == "text_projection":
            out["transformer.text_projection.weight"] = tensor.t()
        else:
            plain = {"positional_embedding": "embeddings.position_embedding.weight",
                     "token_embedding.weight": "embeddings.token_embedding.weight",
                     "ln_final.weight": "final_layer_norm.weight", "ln_final.bias": "final_layer_norm.bias"}
            out[f"transformer.text_model.{plain[name]}" if name in plain else name] = tensor
    return out


@pytest.mark.parametrize("prefix", [G, "conditioner.embedders.0.model."])
@pytest.mark.parametrize("layers_count", [1, 3])
def test_stored_encoder_is_what_comfyui_makes_of_the_source(tmp_path, prefix, layers_count):
    source, tensors = open_with_encoder(tmp_path, prefix, layers=layers_count)
    stored = {item.layer.key[len(prefix):]: item.load(source) for item in stored_items(source, layers(source))
              if item.layer.key.startswith(prefix)}
    expected = comfy_reads({key: t for key, t in tensors.items() if key.startswith(prefix)}, prefix)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("width", [6, 13])
def test_the_keymap_undoes_the_conversion(tmp_path, dtype, width):
    source, tensors = open_with_encoder(tmp_path, dtype=dtype, width=width)
    stored = {item.layer.key: item.load(source) for item in stored_items(source, layers(source))}
    assert all(tuple(stored[i.layer.key].shape) == i.layer.shape for i in stored_items(source, layers(source)))
    keymap = keymap_from_metadata({KEYMAP_KEY: stored_keymap(source).to_json()})
    rebuilt = {}
    for item in keymap.rebuild(stored):
        raw = [stored[key].view(torch.uint8) if dtype.itemsize == 1 else stored[key] for key in item.stored]
        tensor = torch.cat(raw).view(dtype) if len(raw) > 1 else raw[0].view(dtype)
        rebuilt[item.key] = tensor.t() if item.transpose else tensor
    assert rebuilt.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(rebuilt[key].contiguous().float(), tensor.float()) and rebuilt[key].shape == tensor.shape


def test_full_size_keymap_round_trip_and_size():
    source = Shapes(listed("base"))
    items = stored_items(source, layers(source))
    text = stored_keymap(source).to_json()
    rebuilt = keymap_from_metadata({KEYMAP_KEY: text}).rebuild(item.layer.key for item in items)
    assert {item.key for item in rebuilt} == set(source.keys()) and len(rebuilt) == 2515
    assert len(items) == 2515 + 2 * 2 * 32
    assert len(json.dumps(text)) < 100_000                 # the whole header may be 1 MB


def test_what_is_coded_in_the_encoders():
    source = Shapes(listed("base"))
    items = [i for i in stored_items(source, layers(source)) if i.layer.component in ("te1", "te2")]
    coded = [item.layer for item in items if not item.layer.dense]
    assert len(coded) == 12 * 6 + 1 + 32 * 6 + 1
    assert {layer.role for layer in coded} == {"attention", "mlp", "embedding"}
    assert sum(layer.role == "embedding" for layer in coded) == 2
    dense = {item.layer.role for item in items if item.layer.dense}
    assert dense == {"norm", "bias", "position", "projection", "other"}     # other: logit_scale
    assert not any("in_proj" in layer.key or "resblocks" in layer.key for layer in coded)


def test_items_are_in_coding_order():
    source = Shapes(listed("base"))
    keys = [item.layer.key for item in stored_items(source, layers(source)) if item.layer.component == "te2"]
    numbers = [int(key.split("layers.")[1].split(".")[0]) for key in keys if "layers." in key]
    assert numbers == sorted(numbers)
    assert keys.index(f"{G}transformer.text_model.embeddings.token_embedding.weight") < 3


def test_an_odd_fused_matrix_stays_as_it_is():
    shapes = {**unet_shapes(SMALL), **openclip_shapes()}
    shapes[f"{G}transformer.resblocks.0.attn.in_proj_weight"] = (37, 12)
    source = Shapes(shapes)
    items = {item.layer.key: item for item in stored_items(source, layers(source))}
    assert items[f"{G}transformer.resblocks.0.attn.in_proj_weight"].rows is None
    rebuilt = stored_keymap(source).rebuild(items)
    assert {item.key for item in rebuilt} == set(shapes)


def test_an_encoder_left_out_needs_no_keymap_entries():
    source = Shapes({**unet_shapes(SMALL), **openclip_shapes()})
    stored = [i.layer.key for i in stored_items(source, layers(source)) if i.layer.component == "unet"]
    assert {item.key for item in stored_keymap(source).rebuild(stored)} == set(unet_shapes(SMALL))


def test_a_missing_part_is_named():
    source = Shapes({**unet_shapes(SMALL), **openclip_shapes()})
    stored = [i.layer.key for i in stored_items(source, layers(source))]
    stored.remove(f"{G}transformer.text_model.encoder.layers.1.self_attn.k_proj.weight")
    with pytest.raises(FormatError, match="k_proj"):
        stored_keymap(source).rebuild(stored)


@pytest.mark.parametrize("text", [
    "{", "[]", '{"rename": [["a"]]}', '{"rename": ["ab"]}', '{"concat": {"a": "bc"}}', '{"concat": {"a": []}}',
    '{"transpose": {"a": 1}}', '{"rename": 3}', '{"concat": []}', '{"transpose": ["a"]}', "null", "[" * 100_000])
def test_damaged_keymaps_are_refused(text):
    with pytest.raises(FormatError, match="keymap"):
        keymap_from_metadata({KEYMAP_KEY: text})


@pytest.mark.parametrize("keymap", [
    KeyMap(rename=(("a.", "b."),)), KeyMap(concat={"x": ("a.1", "b.1"), "y": ("a.1",)}),
    KeyMap(concat={"x": ("a.1", "a.1")}), KeyMap(concat={"x": ("a.1",)}, transpose={"y": "a.1"}),
    KeyMap(transpose={"b.1": "a.1"})])
def test_keymaps_that_lose_or_double_tensors_are_refused(keymap):
    with pytest.raises(FormatError, match="damaged"):
        keymap.rebuild(["a.1", "b.1"])
