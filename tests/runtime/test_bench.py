"""The benchmark runs on a CPU, says what failed and goes on, and its JSON names no place and no person."""
from __future__ import annotations

import getpass
import importlib.util
import json
import platform
import sys
from pathlib import Path

import pytest
import torch
from vqpack.vq_core.bench import layers, parts
from vqpack.vq_core.bench import run as bench
from vqpack.vq_core.bench.baseline import random_blocks
from vqpack.vq_core.bench.tell import tell
from vqpack.vq_core.bench.timing import measure
from vqpack.vq_core.errors import Interrupted, PlanError
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.spec import AdditiveSpec, PaletteSpec, ProductSpec, TrellisSpec, UniformSpec


@pytest.fixture(scope="module")
def found():
    return bench.run(bench.Settings("cpu", torch.float32, by=16, seconds=0.005))


def test_every_part_has_rows_and_none_failed(found):
    for part in bench.PARTS:
        assert found[part] and not [row for row in found[part] if "error" in row], part
    ways = {row["way"] for row in found["linears"]}
    assert {"dense", "ours, torch", "dense, LoRA beside", "ours, torch, LoRA beside", "ours, torch, LoRA onto",
            "4-bit blocks by torch operations"} <= ways
    assert all(row["us_low"] <= row["us"] <= row["us_high"] for part in ("linears", "convs") for row in found[part])


def test_numbers_can_be_sent(found):
    text = json.dumps(found)
    for private in (platform.node(), getpass.getuser(), str(Path.home()), str(Path.cwd()), platform.release()):
        assert len(private) < 3 or f"{private}" not in text
    assert json.loads(text) == found and "not SDXL's speed" in found["label"]


def test_the_table_says_everything(found):
    text = tell(found)
    assert all(part in text for part in bench.PARTS) and "x dense" in text and "failed" not in text
    broken = {**found, "decode": [{"error": "RuntimeError: no"}]}
    assert "failed: RuntimeError: no" in tell(broken)


def test_a_failure_is_a_row_and_the_rest_goes_on(monkeypatch):
    def fail(shape, settings):
        raise RuntimeError(f"cannot read '{Path.home() / 'x'}' nor C:\\Users\\me\\x")

    monkeypatch.setattr(layers, "conv_rows", fail)
    found = bench.run(bench.Settings("cpu", torch.float32, 16, 0.001, ("convs", "ceilings")))
    assert len(found["convs"]) == 3 and all("RuntimeError: cannot read" in row["error"] for row in found["convs"])
    assert "me" not in found["convs"][0]["error"].split("nor")[1] and str(Path.home()) not in json.dumps(found)
    assert found["ceilings"] and "error" not in found["ceilings"][0]


def test_stopping_is_no_failure():
    with pytest.raises(Interrupted):
        bench.run(bench.Settings("cpu", torch.float32, 16, 0.001), Progress(should_stop=lambda: True))


def test_a_device_that_is_not_there():
    with pytest.raises(PlanError, match="nonsense"):
        bench.make_settings("nonsense")


def test_the_time_is_that_of_one_call():
    ticks = iter(range(1000))
    took = measure(lambda x: next(ticks), [0], "cpu", seconds=0.001)
    assert 3 <= took.calls <= 200 and 0 <= took.low <= took.median <= took.high < 1


@pytest.mark.parametrize("spec", [TrellisSpec(3), TrellisSpec(2.5, rotation=16), AdditiveSpec(2), ProductSpec(2),
                                  PaletteSpec(3), UniformSpec(4)])
@pytest.mark.parametrize("shape", [(70, 48), (40, 32, 3, 3)])
def test_random_weights_have_rows_of_length_near_one(spec, shape):
    weight = parts.random_weight(shape, spec, 1)
    lengths = weight.decode().flatten(1).norm(dim=1)
    assert weight.shape == shape and 0.5 < float(lengths.mean()) < 2
    other = parts.other_codes(weight)
    assert not torch.equal(other.decode(), weight.decode()) and other.nbytes == weight.nbytes


def test_blocks_decode_to_what_their_codes_say():
    blocks = random_blocks((4, 32), "cpu")
    for row, scale, codes in zip(blocks.decode(torch.float32), blocks.scales, blocks.codes, strict=True):
        integers = [int(byte) & 15 for byte in codes] + [int(byte) >> 4 for byte in codes]
        assert row.tolist() == [float(scale) * (integer - 8) for integer in integers]


@pytest.fixture(scope="module")
def protocol(repository):
    sys.path.insert(0, str(repository / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("gpu_protocol", repository / "benchmarks" / "gpu_protocol.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(repository / "benchmarks"))


def test_protocol_goes_on_where_it_stopped(protocol, tmp_path, monkeypatch):
    asked = []

    def part(name, args):
        asked.append(name)
        rows = [{"error": "RuntimeError: no"}] if name == "decode" and len(asked) < 4 else [{"us": 1}]
        return {"rows": rows, "seconds": 1.0, "ended": "done" if name != "convs" or len(asked) > 4 else "status -9"}

    monkeypatch.setattr(protocol, "run_part", part)
    monkeypatch.setattr(sys, "argv", ["x", "--tiny", "--only", "ceilings,decode,convs", "--out", str(tmp_path)])
    protocol.main()
    assert asked == ["ceilings", "decode", "convs"]
    protocol.main()
    assert asked[3:] == ["decode", "convs"]                # what failed, and nothing else
    protocol.main()
    assert len(asked) == 5
    assert len(json.loads((tmp_path / "gpu_tiny.json").read_text())["parts"]) == 3


def test_protocol_fits_ten_minutes_and_names_the_gpu(protocol):
    assert sum(protocol.PARTS.values()) < 600
    assert protocol.name_of({"gpu": "NVIDIA H100 80GB HBM3"}, False) == "nvidia_h100_80gb_hbm3"


@pytest.mark.parametrize("part", ["unet_512", "text_share", "viterbi"])
def test_protocol_measures_a_small_model_here(protocol, repository, part):
    sys.path.insert(0, str(repository / "benchmarks"))
    try:
        import gpu_parts
    finally:
        sys.path.remove(str(repository / "benchmarks"))
    found = list(gpu_parts.rows(part, "cpu", True))
    assert found and not [row for row in found if "error" in row], found
    if part == "unet_512":
        assert [row["way"] for row in found] == ["dense", "ours", "ours, int8", "ours, int8, integers kept",
                                                     "ours, LoRA", "ours, 1 GB kept"]
        assert all(row["finite"] for row in found) and found[1]["formula_bytes"] < found[0]["formula_bytes"]
    if part == "text_share":
        assert 0 < found[0]["share"] < 1 and found[0]["layers"] == 34
