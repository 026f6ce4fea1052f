"""Coding where the device runs out of memory, simulated: smaller batches, then the CPU, counted."""
from __future__ import annotations

import importlib
import json

import pytest
import torch
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.device_memory import Fallbacks, with_less_memory
from vqpack.vq_core.encode.trellis import encode_trellis
from vqpack.vq_core.errors import VQError
from vqpack.vq_core.spec import TrellisSpec

job = importlib.import_module("vqpack.vq_core.quantize")


def out_of_memory():
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize(("fits", "expected"), [("cuda 1", (0, 0)), ("cuda 4", (1, 0)), ("cuda 16", (1, 0)),
                                                ("cpu 1", (0, 1))])
def test_steps_down_until_it_fits(fits, expected):
    fallbacks, tried = Fallbacks(), []

    def code(device, shrink=1):
        tried.append(f"{device} {shrink}")
        if tried[-1] != fits:
            raise out_of_memory()
        return "coded"

    assert with_less_memory(code, "trellis", "cuda", fallbacks) == "coded"
    assert tried == ["cuda 1", "cuda 4", "cuda 16", "cpu 1"][:len(tried)]
    assert (fallbacks.smaller_batches, fallbacks.cpu) == expected and bool(fallbacks) == any(expected)


def test_kinds_without_large_batches_go_to_the_cpu_at_once():
    fallbacks, tried = Fallbacks(), []

    def code(device):
        tried.append(device)
        if device != "cpu":
            raise RuntimeError("MPS backend out of memory")
        return 1

    with_less_memory(code, "palette", "mps", fallbacks)
    assert tried == ["mps", "cpu"] and fallbacks.cpu == 1
    assert str(fallbacks) == "the device was short of memory: 1 layers on the CPU"


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), VQError("no")])
def test_other_errors_are_not_taken_for_it(error):
    fallbacks = Fallbacks()
    with pytest.raises(type(error)):
        with_less_memory(lambda device: (_ for _ in ()).throw(error), "trellis", "cuda", fallbacks)
    assert not fallbacks


def test_no_tensor_of_the_failed_attempt_is_held_while_the_next_one_runs():
    import weakref

    held = []

    def code(device, shrink=1):
        if held:
            assert held[0]() is None
            return 1
        big = torch.zeros(10)
        held.append(weakref.ref(big))
        raise out_of_memory()

    with_less_memory(code, "trellis", "cuda", Fallbacks())


def test_smaller_batches_give_the_same_codes():
    matrix = torch.randn(640, 1500, generator=torch.Generator().manual_seed(0))
    spec = TrellisSpec(bits=2, window=8)
    parts = [encode_trellis(matrix, spec, channels=1500, shrink=shrink) for shrink in (1, 4, 16)]
    assert torch.equal(parts[0].codes, parts[1].codes) and torch.equal(parts[0].codes, parts[2].codes)


def test_a_whole_run_says_how_often(testbed, tmp_path, monkeypatch, capsys):
    encode = job.encode_weight

    def short(weight, spec, *, device, shrink=1, **options):
        if device != "cpu" and (shrink < 4 or weight.numel() > 1 << 15):
            raise out_of_memory()
        return encode(weight, spec, device="cpu", **options)

    monkeypatch.setattr(job, "encode_weight", short)
    output, report = tmp_path / "short.safetensors", tmp_path / "report.json"
    assert main(["quantize", str(testbed), "-o", str(output), "--bits", "2", "--window", "8", "--parts", "unet",
                 "--device", "cuda", "--json", str(report)]) == 0
    told = json.loads(report.read_text(encoding="utf-8"))
    assert min(told["fallbacks"].values()) > 0 and sum(told["fallbacks"].values()) == len(told["layers"])
    assert f"{told['fallbacks']['cpu']} layers on the CPU" in capsys.readouterr().out
    monkeypatch.setattr(job, "encode_weight", encode)
    on_cpu = job.quantize(testbed, tmp_path / "cpu.safetensors", bits=2, window=8, parts=("unet",), device="cpu")
    assert not on_cpu.fallbacks
    assert (tmp_path / "cpu.safetensors").read_bytes() == output.read_bytes()
