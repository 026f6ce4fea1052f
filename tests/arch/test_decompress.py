"""decompress gives back the source's keys, shapes and dtypes, its bytes where a tensor stayed dense, or nothing."""
from __future__ import annotations

import hashlib
import threading

import pytest
import torch
from arch_shapes import SMALL, UNET, openclip_shapes, pack, random_tensors, unet_shapes, write_file
from vqpack.vq_core import decompress as module
from vqpack.vq_core.arch import layers, unet_names
from vqpack.vq_core.container import Reader
from vqpack.vq_core.decompress import decompress, find_decompressed
from vqpack.vq_core.errors import FormatError, Interrupted, PlanError, VQError
from vqpack.vq_core.keymap import PrefixTable
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.safetensors_io import SafetensorsFile
from vqpack.vq_core.source import open_source
from vqpack.vq_core.text_encoders import stored_items

G = "conditioner.embedders.1.model."
EXTRA = {"first_stage_model.decoder.conv_in.weight": torch.randn(5, 4, 3, 3).half(), "v_pred": torch.zeros(0),
         "model_ema.decay": torch.tensor(0.99), "global_step": torch.tensor(7),
         "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(7)[None],
         "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": torch.randn(9, 6).half()}


def checkpoint(tmp_path, dtype=torch.float16, rename=lambda key: key, extra=EXTRA, metadata=None):
    """-> (path, its tensors)"""
    tensors = {**random_tensors({**unet_shapes(SMALL), **openclip_shapes()}, dtype), **extra}
    tensors = {rename(key): tensor for key, tensor in tensors.items()}
    return write_file(tmp_path / "model.safetensors", tensors, metadata or {"modelspec.title": "Ünïcode"}), tensors


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """-> (checkpoint, its tensors, the vqpack file made from it); not to be changed"""
    folder = tmp_path_factory.mktemp("example")
    path, tensors = checkpoint(folder)
    with open_source(path) as source:
        return path, tensors, pack(source, folder / "packed.safetensors")


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    def raw(t):
        return t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else torch.zeros(0, dtype=torch.uint8)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


def coded_source_keys(path):
    with open_source(path) as source:
        return {item.source_key for item in stored_items(source, layers(source)) if not item.layer.dense}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn,
                                   torch.float8_e5m2])
def test_round_trip(tmp_path, dtype):
    path, tensors = checkpoint(tmp_path, dtype)
    with open_source(path) as source:
        packed = pack(source, tmp_path / "packed.safetensors")
    out = decompress(packed, tmp_path / "out.safetensors")
    coded = coded_source_keys(path)
    assert len(coded) > 20 and f"{G}transformer.resblocks.0.attn.in_proj_weight" in coded
    with SafetensorsFile(out) as file:
        assert set(file.entries) == set(tensors)
        for key, tensor in tensors.items():
            back = file.tensor(key)
            assert back.dtype == tensor.dtype and back.shape == tensor.shape
            if key not in coded:
                assert same_bytes(back, tensor), key
            else:                                          # 8 bits, plus the cast to the source's dtype
                error = (back.float() - tensor.float()).square().mean() / tensor.float().square().mean()
                assert error < {torch.float8_e4m3fn: 2e-3, torch.float8_e5m2: 8e-3}.get(dtype, 5e-4)


def test_coded_weights_are_the_decoded_ones_in_any_chunk(example, tmp_path, monkeypatch):
    _, _, packed = example
    whole = decompress(packed, tmp_path / "whole.safetensors").read_bytes()
    monkeypatch.setattr(module, "CHUNK_WEIGHTS", 700)
    assert decompress(packed, tmp_path / "chunks.safetensors").read_bytes() == whole
    key = f"{UNET}output_blocks.0.0.in_layers.2.weight"
    with Reader(packed) as reader, SafetensorsFile(tmp_path / "whole.safetensors") as file:
        assert len(reader.weight(key).parts) == 2
        assert torch.equal(file.tensor(key), reader.weight(key).decode(torch.float32).half())
        parts = [f"{G}transformer.text_model.encoder.layers.0.self_attn.{p}_proj.weight" for p in "qkv"]
        fused = torch.cat([reader.weight(part).decode(torch.float32) for part in parts]).half()
        assert torch.equal(file.tensor(f"{G}transformer.resblocks.0.attn.in_proj_weight"), fused)


def diffusers_name(key: str) -> str:
    table = PrefixTable(unet_names.pairs_from_ldm(key[len(UNET):] for key in unet_shapes(SMALL)))
    return table.apply(key[len(UNET):]) if key.startswith(UNET) else key


@pytest.mark.parametrize("rename", [lambda key: key.removeprefix(UNET), diffusers_name],
                         ids=["prefix-less", "diffusers"])
def test_unet_only_files_get_their_own_names_back(tmp_path, rename):
    path, tensors = checkpoint(tmp_path, rename=rename, extra={})
    with open_source(path) as source:
        packed = pack(source, tmp_path / "packed.safetensors")
    with Reader(packed) as reader:
        assert all(key.startswith((UNET, "conditioner.")) for key in reader.keys())
    with SafetensorsFile(decompress(packed, tmp_path / "out")) as file:
        assert set(file.entries) == set(tensors)


@pytest.mark.parametrize("name, dtype", module.OUTPUT_DTYPES.items())
def test_other_dtypes(example, tmp_path, name, dtype):
    _, tensors, packed = example
    out = decompress(packed, tmp_path, dtype=name)
    assert out.name == f"packed-{name}.safetensors"
    with SafetensorsFile(out) as file:
        for key, tensor in tensors.items():
            assert file.tensor(key).dtype == (dtype if tensor.is_floating_point() else tensor.dtype)
        dense = f"{UNET}out.2.weight"
        assert torch.equal(file.tensor(dense), tensors[dense].to(dtype))


def test_the_safetensors_library_reads_it(tmp_path):
    from safetensors import safe_open

    path, tensors = checkpoint(tmp_path, torch.bfloat16)
    with open_source(path) as source:
        packed = pack(source, tmp_path / "packed.safetensors")
    out = decompress(packed, tmp_path / "out.safetensors")
    with safe_open(out, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert all(file.get_tensor(key).shape == tensor.shape for key, tensor in tensors.items())
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "Ünïcode" and not any(key.startswith("vqpack.") for key in metadata)
    with SafetensorsFile(out) as file:
        digest = hashlib.sha256(out.read_bytes()[file.header.data_start:]).hexdigest()
        assert metadata["modelspec.hash_sha256"] == f"0x{digest}"
        for entry in file.entries.values():
            assert entry.start % entry.torch_dtype.itemsize == 0


def test_parts_left_out_are_left_out(tmp_path):
    path, tensors = checkpoint(tmp_path)
    with open_source(path) as source:
        packed = pack(source, tmp_path / "packed.safetensors", ("unet", "other"))
    with SafetensorsFile(decompress(packed, tmp_path / "out.safetensors")) as file:
        assert set(file.entries) == {key for key in tensors if not key.startswith(("conditioner.", "first_stage"))}


def test_an_existing_file_is_kept_unless_told_otherwise(example, tmp_path):
    _, _, packed = example
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    assert decompress(packed, target).name == "out-2.safetensors"
    assert target.read_bytes() == b"precious"
    assert decompress(packed, target, overwrite=True) == target
    assert target.read_bytes() == (tmp_path / "out-2.safetensors").read_bytes()
    with pytest.raises(VQError, match="loaded"):
        decompress(packed, packed, overwrite=True)
    with Reader(packed):
        pass


def only(tmp_path, *names):
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_nothing_is_left_behind(example, tmp_path):
    path, _, packed = example
    asked = iter(range(10**6))
    with pytest.raises(Interrupted):
        decompress(packed, tmp_path / "out.safetensors", progress=Progress(should_stop=lambda: next(asked) > 30))
    only(tmp_path)
    with pytest.raises(PlanError, match="fp64"):
        decompress(packed, tmp_path / "out.safetensors", dtype="fp64")
    with pytest.raises(VQError, match="does not exist"):
        decompress(packed, tmp_path / "no" / "out.safetensors")
    with pytest.raises(FormatError, match="not a vqpack file"):
        decompress(path, tmp_path / "out.safetensors")
    data = bytearray(packed.read_bytes())
    data[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        decompress(tmp_path / "damaged.safetensors", tmp_path / "out.safetensors")
    only(tmp_path, "damaged.safetensors")


def test_a_full_disk_is_one_line(example, tmp_path, monkeypatch):
    from vqpack.vq_core import publish

    _, _, packed = example
    usage = publish.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(VQError, match=r"space.* needed.* free"):
        decompress(packed, tmp_path / "out.safetensors")
    only(tmp_path)


def test_an_earlier_result_is_found_again(example, tmp_path):
    _, _, packed = example
    out = tmp_path / "out.safetensors"
    assert find_decompressed(packed, out) is None
    decompress(packed, out)
    assert find_decompressed(packed, out) == out
    assert find_decompressed(packed, out, "bf16") is None            # another result
    second = decompress(packed, out, "bf16")
    assert second.name == "out-2.safetensors" and find_decompressed(packed, out, "bf16") == second
    out.write_bytes(out.read_bytes()[:-1])
    assert find_decompressed(packed, out) is None                    # no longer whole


def test_two_at_once_do_not_disturb_each_other(example, tmp_path):
    _, _, packed = example
    threads = [threading.Thread(target=decompress, args=(packed, tmp_path / "out.safetensors")) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    names = ["out-2.safetensors", "out-3.safetensors", "out.safetensors"]
    only(tmp_path, *names)
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1


def test_a_part_of_a_dead_run_is_written_anew(example, tmp_path):
    _, _, packed = example
    (tmp_path / "out.safetensors.part").write_bytes(bytes(10_000_000))
    decompress(packed, tmp_path / "out.safetensors")
    only(tmp_path, "out.safetensors")
    assert find_decompressed(packed, tmp_path / "out.safetensors")


def test_progress_reaches_its_total(example, tmp_path):
    _, tensors, packed = example
    told = []
    decompress(packed, tmp_path / "out.safetensors",
               progress=Progress(lambda stage, done, total, *_: told.append((stage, done, total)), interval=0))
    done = [d for stage, d, _ in told if stage == "decompress"]
    assert done == sorted(done) and told[-1][1:] == (sum(t.numel() for t in tensors.values()),) * 2


def test_from_another_thread(example, tmp_path):
    _, _, packed = example
    thread = threading.Thread(target=decompress, args=(packed, tmp_path / "out.safetensors"))
    thread.start()
    thread.join()
    assert (tmp_path / "out.safetensors").exists()
