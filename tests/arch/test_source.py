"""Sources: single files, UNet-only files under three namings, diffusers folders; dtypes; refusals in one sentence."""
from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from arch_shapes import SMALL, UNET, listed, openclip_shapes, random_tensors, unet_shapes, write_file, write_header
from vqpack.vq_core.arch import layers, unet_names
from vqpack.vq_core.container import Writer
from vqpack.vq_core.errors import FormatError, UnsupportedError, VQError
from vqpack.vq_core.keymap import PrefixTable
from vqpack.vq_core.source import open_source

G = "conditioner.embedders.1.model."
L = "conditioner.embedders.0.transformer."


def small(dtype=torch.float16, **more) -> dict[str, torch.Tensor]:
    return {**random_tensors(unet_shapes(SMALL), dtype), **more}


def write(path: Path, tensors, metadata=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_file(path, tensors, metadata)


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and len(text) < 400
    return text


# --- single files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn,
                                   torch.float8_e5m2])
def test_dtypes_survive_and_give_float32_for_coding(tmp_path, dtype):
    tensors = small(dtype)
    with open_source(write(tmp_path / "model.safetensors", tensors)) as source:
        for key, tensor in tensors.items():
            loaded = source.load(key)
            assert loaded.dtype == source.dtype(key) == dtype and source.shape(key) == tuple(tensor.shape)
            assert torch.equal(loaded.float(), tensor.float())
            assert source.load_float(key).dtype == torch.float32


def test_what_a_source_says_of_itself(tmp_path):
    path = write(tmp_path / "My módel v1.2 (final).safetensors", small(v_pred=torch.zeros(0)), {"modelspec.title": "x"})
    with open_source(path) as source:
        assert (source.name, source.stem, source.folder) == (path.name, "My módel v1.2 (final)", tmp_path)
        assert source.bytes == path.stat().st_size and source.metadata == {"modelspec.title": "x"}
        assert source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (source.architecture, source.prediction) == ("sdxl-like", "v")
        assert not source.keymap


def test_extra_keys_and_odd_dtypes_pass(tmp_path):
    extra = {"model_ema.decay": torch.tensor(0.5), "model_ema.out0weight": torch.full((2,), float("nan")),
             f"{L}text_model.embeddings.position_ids": torch.arange(7.0)[None], "ztsnr": torch.zeros(0),
             "global_step": torch.tensor(7), "café.weight": torch.ones(2, 2)}
    with open_source(write(tmp_path / "m.safetensors", small(**extra))) as source:
        assert set(source.keys()) == set(small()) | set(extra)
        for key, tensor in extra.items():
            loaded = source.load(key)
            assert loaded.dtype == tensor.dtype and torch.equal(loaded.nan_to_num(), tensor.nan_to_num())
        assert {layer.key for layer in layers(source) if layer.component == "other"} == set(extra) - {
            f"{L}text_model.embeddings.position_ids"}
        assert all(layer.dense for layer in layers(source) if layer.key in extra)


@pytest.mark.skipif(os.name == "nt", reason="needs files with holes")
def test_full_size_list_opens_without_its_memory(tmp_path):
    path = write_header(tmp_path / "sdxl.safetensors", listed("base"))
    with open_source(path) as source:
        assert source.architecture == "sdxl" and source.bytes > 6.9e9
        assert sum(not layer.dense for layer in layers(source) if layer.component == "unet") == 771
        assert source.load(f"{UNET}out.2.weight").shape == (4, 320, 3, 3)


def diffusers_named(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    table = PrefixTable(unet_names.pairs_from_ldm(key[len(UNET):] for key in tensors))
    return {table.apply(key[len(UNET):]): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("naming", ["prefix-less", "diffusion_model", "diffusers"])
def test_unet_only_files_show_ldm_keys(tmp_path, naming):
    tensors = small()
    own = {"prefix-less": {key[len(UNET):]: t for key, t in tensors.items()},
           "diffusion_model": {key[len("model."):]: t for key, t in tensors.items()},
           "diffusers": diffusers_named(tensors)}[naming]
    own["v_pred"] = torch.zeros(0)
    with open_source(write(tmp_path / "unet.safetensors", own)) as source:
        assert set(source.keys()) == {*tensors, "v_pred"} and source.prediction == "v"
        assert all(torch.equal(source.load(key), tensor) for key, tensor in tensors.items())
        assert {item.key for item in source.keymap.rebuild(source.keys())} == set(own)


def test_an_open_source_cannot_be_replaced(tmp_path):
    path = write(tmp_path / "model.safetensors", small())
    with open_source(path):
        with pytest.raises(VQError, match="loaded"):
            Writer(path, overwrite=True)
    Writer(path, overwrite=True).abort()
    assert path.stat().st_size > 1000


# --- diffusers folders


def save_folder(root: Path, tensors: dict[str, torch.Tensor], unet_name="diffusion_pytorch_model.safetensors") -> Path:
    """An LDM checkpoint with OpenCLIP encoder as a diffusers folder, by hand."""
    unet = {key: t for key, t in tensors.items() if key.startswith(UNET)}
    write(root / "unet" / unet_name, diffusers_named(unet))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return root


def hf_encoder(layers_count=2, width=12, short=False) -> dict[str, torch.Tensor]:
    shapes = {"text_model.embeddings.token_embedding.weight": (21, width),
              "text_model.embeddings.position_embedding.weight": (7, width),
              "text_model.final_layer_norm.weight": (width,), "text_model.final_layer_norm.bias": (width,)}
    for n in range(layers_count):
        block = f"text_model.encoder.layers.{n}."
        for name, rows, cols in (("self_attn.q_proj", width, width), ("self_attn.k_proj", width, width),
                                 ("self_attn.v_proj", width, width), ("self_attn.out_proj", width, width),
                                 ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)):
            shapes.update({f"{block}{name}.weight": (rows, cols), f"{block}{name}.bias": (rows,)})
        for name in ("layer_norm1", "layer_norm2"):
            shapes.update({f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)})
    tensors = random_tensors(shapes, seed=3)
    return {key[len("text_model."):] if short else key: t for key, t in tensors.items()}


def vae_file() -> dict[str, torch.Tensor]:
    return random_tensors({"encoder.conv_in.weight": (4, 3, 3, 3), "decoder.mid_block.attentions.0.to_q.weight": (8, 8),
                           "decoder.mid_block.attentions.0.to_q.bias": (8,), "quant_conv.weight": (8, 8, 1, 1),
                           "decoder.up_blocks.0.resnets.1.conv_shortcut.weight": (8, 4, 1, 1),
                           "decoder.up_blocks.1.resnets.0.conv1.weight": (4, 4, 3, 3)})


@pytest.mark.parametrize("short", [False, True])
def test_a_folder_is_one_ldm_checkpoint(tmp_path, short):
    tensors = small()
    folder = save_folder(tmp_path / "My pipeline", tensors)
    first, second = hf_encoder(short=short), hf_encoder()
    second["text_projection.weight"] = torch.randn(12, 12).half()
    second["text_model.embeddings.position_ids"] = torch.arange(7)[None]
    write(folder / "text_encoder" / "model.safetensors", first)
    write(folder / "text_encoder_2" / "model.safetensors", second)
    write(folder / "vae" / "diffusion_pytorch_model.safetensors", vae_file())
    with open_source(folder) as source:
        assert (source.name, source.stem, source.folder) == ("My pipeline", "My pipeline", tmp_path)
        assert source.architecture == "sdxl-like" and not source.keymap
        keys = set(source.keys())
        assert {key for key in keys if key.startswith(UNET)} == set(tensors)
        assert {key for key in keys if key.startswith(G)} == set(openclip_shapes()) - {f"{G}logit_scale"}
        assert len([key for key in keys if key.startswith(f"{L}text_model.")]) == len(first)
        assert all(source.load(key).shape == source.shape(key) for key in keys)
        assert torch.equal(source.load(f"{G}text_projection"), second["text_projection.weight"].t())
        fused = torch.cat([second[f"text_model.encoder.layers.1.self_attn.{p}_proj.weight"] for p in "qkv"])
        assert torch.equal(source.load(f"{G}transformer.resblocks.1.attn.in_proj_weight"), fused)
        assert source.shape("first_stage_model.decoder.mid.attn_1.q.weight") == (8, 8, 1, 1)
        assert source.shape("first_stage_model.decoder.up.1.block.1.nin_shortcut.weight") == (8, 4, 1, 1)
        assert source.bytes == sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
        assert len(source.sha256()) == 64 and source.sha256() == source.sha256()


def test_the_second_encoder_alone_is_the_refiners(tmp_path):
    folder = save_folder(tmp_path / "refiner", small())
    write(folder / "text_encoder_2" / "model.safetensors", hf_encoder())
    with open_source(folder) as source:
        keys = [key for key in source.keys() if key.startswith("conditioner.")]
        assert keys and all(key.startswith("conditioner.embedders.0.model.") for key in keys)


def test_shards_variants_and_which_comes_first(tmp_path):
    tensors = small()
    folder = save_folder(tmp_path / "p", tensors, "diffusion_pytorch_model.fp16.safetensors")
    with open_source(folder) as source:
        assert source._contents.files[0].path.name == "diffusion_pytorch_model.fp16.safetensors"
    named = list(diffusers_named({k: t.float() for k, t in tensors.items()}).items())
    index = {}
    for part, chunk in enumerate((named[:100], named[100:]), 1):
        name = f"diffusion_pytorch_model-0000{part}-of-00002.safetensors"
        write(folder / "unet" / name, dict(chunk))
        index.update({key: name for key, _ in chunk})
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with open_source(folder) as source:
        assert len(source._contents.files) == 2 and set(source.keys()) == set(tensors)
        assert source.dtype(f"{UNET}out.2.weight") == torch.float32
        assert torch.equal(source.load(f"{UNET}out.2.weight"), tensors[f"{UNET}out.2.weight"].float())
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match="00002-of-00002"):
        open_source(folder)


def test_a_shard_index_cannot_leave_its_folder(tmp_path):
    folder = tmp_path / "p"
    write(tmp_path / "secret.safetensors", small())
    (folder / "unet").mkdir(parents=True)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}))
    with pytest.raises(FormatError, match="not there"):
        open_source(folder)


def test_a_lone_unet_folder(tmp_path):
    folder = save_folder(tmp_path / "p", small()) / "unet"
    with open_source(folder) as source:
        assert set(source.keys()) == set(small())


@pytest.mark.parametrize("config, markers", [
    ({"prediction_type": "epsilon"}, set()), ({"prediction_type": "v_prediction"}, {"v_pred"}),
    ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"})])
def test_a_folders_scheduler_becomes_marker_keys(tmp_path, config, markers):
    folder = save_folder(tmp_path / "p", small())
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with open_source(folder) as source:
        assert set(source.keys()) - set(small()) == markers
        assert source.prediction == ("v" if markers else "eps")
        assert all(source.load(key).shape == source.shape(key) == (0,) for key in markers)


def test_testbed_opens(testbed):
    with open_source(testbed) as source:
        assert source.architecture == "sdxl-like"
        found = layers(source)
        assert {layer.component for layer in found} == {"unet", "te1", "te2", "vae"}
        assert all(source.load(layer.key).shape == layer.shape for layer in found)


# --- refusals


def gguf(path):
    path.write_bytes(b"GGUF\x03\x00\x00\x00\x7b" + bytes(60))


def zip_pickle(path):
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def bare_pickle(path):
    path.write_bytes(b"\x80\x02}q\x00." + bytes(100))


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("this is a web page, not a model" * 10)


def truncated(path):
    write_file(path, small())
    data = path.read_bytes()
    path.write_bytes(data[:len(data) * 2 // 3])


def truncated_header(path):
    path.write_bytes(struct.pack("<Q", 5000) + b"{}")


def own_file(path):
    write_file(path, small(), {"vqpack.version": "1"})


def own_file_without_metadata(path):
    blob = torch.frombuffer(bytearray(b"VQWEIGHT" + bytes(120)), dtype=torch.uint8)
    write_file(path, small(**{f"{UNET}input_blocks.2.0.in_layers.2.weight": blob}))


def scaled_fp8(path):
    write_file(path, small(torch.float8_e4m3fn, scaled_fp8=torch.zeros(0)))


def scale_weight(path):
    write_file(path, small(torch.float8_e4m3fn, **{f"{UNET}out.2.scale_weight": torch.ones(1)}))


def comfy_quant(path):
    write_file(path, small(**{f"{UNET}out.2.comfy_quant": torch.zeros(8, dtype=torch.uint8)}))


def int8(path):
    tensors = small()
    tensors[f"{UNET}input_blocks.2.0.in_layers.2.weight"] = torch.zeros(32, 32, 3, 3, dtype=torch.int8)
    write_file(path, tensors)


def no_unet(path):
    write_file(path, {"first_stage_model.decoder.conv_in.weight": torch.zeros(2, 2)})


def lora(path):
    write_file(path, {"lora_unet_mid.lora_up.weight": torch.zeros(2, 2)})


CASES = {gguf: "GGUF", zip_pickle: "pickle", bare_pickle: "pickle", empty: "empty", text: "not a safetensors",
         truncated: "truncated", truncated_header: "truncated", own_file: "vqpack file already",
         own_file_without_metadata: "vqpack file already", scaled_fp8: "scaled fp8", scale_weight: "scaled fp8",
         comfy_quant: "ComfyUI mixed precision", int8: "I8", no_unet: "VAE", lora: "LoRA"}


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_refused_in_one_sentence_and_the_file_is_let_go(tmp_path, make):
    path = tmp_path / "input.safetensors"
    make(path)
    with pytest.raises(VQError, match=CASES[make]) as error:
        open_source(path)
    assert "input.safetensors" in one_sentence(error)
    opened = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(
        f"/proc/self/fd/{n}")] if os.path.isdir("/proc/self/fd") else []
    assert str(path) not in opened


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FormatError, match="no file"):
        open_source(tmp_path / "nothing.safetensors")
    with pytest.raises(UnsupportedError, match="not a diffusers folder"):
        open_source(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UnsupportedError, match="FluxPipeline"):
        open_source(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsupportedError, match="pickle"):
        open_source(tmp_path)


@pytest.mark.parametrize("value, what", [(torch.nan, "NaN"), (torch.inf, "infinite"), (-torch.inf, "infinite")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_named(tmp_path, value, what, dtype):
    key = f"{UNET}input_blocks.3.0.skip_connection.weight"
    key = key if key in unet_shapes(SMALL) else f"{UNET}output_blocks.1.0.in_layers.2.weight"
    tensors = small(torch.float32)
    tensors[key].view(-1)[-1] = value
    path = write(tmp_path / "bad.safetensors", {k: t.to(dtype) for k, t in tensors.items()})
    with open_source(path) as source:
        for load in (source.load, source.load_float):
            with pytest.raises(FormatError, match=what) as error:
                load(key)
        assert key in one_sentence(error)
        source.load(f"{UNET}out.2.weight")
