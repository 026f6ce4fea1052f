"""The adapter's file: golden bytes, round trip, damage and other versions, interrupted writes."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from vqpack.vq_core.adapters.file import (
    METADATA,
    MOST_LOG,
    Adapter,
    base_id,
    check_base,
    load_adapter,
    save_adapter,
)
from vqpack.vq_core.container import Reader, Writer
from vqpack.vq_core.errors import FormatError, Interrupted
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.verify import verify_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "golden.vqscales.safetensors"
GOLDEN_SHA256 = "aadcaffeadca3623f713ff19dd3decf6106db67f3c5015334b886734d3fe7439"
KEY = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


def golden() -> Adapter:
    """What the frozen file of version 1 holds."""
    layers = {KEY: (torch.arange(12).view(2, 6).half() / 64, torch.arange(8).view(2, 4).half() / -32),
              "model.diffusion_model.out.2.weight": (torch.full((2, 3), 0.125).half(), None)}
    return Adapter("0123456789abcdef" * 4, (1.5,), layers, {"note": "frozen with version 1", "base_name": "some.file"})


def same(a: Adapter, b: Adapter) -> bool:
    """Everything."""
    def equal(x, y):
        return x is y is None or (x is not None and y is not None and x.dtype == y.dtype and torch.equal(x, y))
    said = [(one.base, one.boundaries, dict(one.facts), sorted(one.layers)) for one in (a, b)]
    return said[0] == said[1] and all(equal(x, y) for key in a.layers for x, y in zip(a.layers[key], b.layers[key]))


def test_the_golden_file_is_read_and_written_byte_by_byte(tmp_path):
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256
    assert same(load_adapter(GOLDEN), golden()) and verify_file(GOLDEN) == []
    assert save_adapter(tmp_path / "golden", golden()).read_bytes() == GOLDEN.read_bytes()
    assert golden().numbers == 2 * (6 + 4) + 2 * 3 and golden().experts == 2


def test_inspect_says_what_it_is(capsys):
    from vqpack.vq_core.cli.main import main

    assert main(["inspect", str(GOLDEN)]) == 0
    said = capsys.readouterr().out
    assert "2 experts, which meet at noise (sigma) 1.5, 2 layers, 26 numbers" in said and "some.file" in said
    assert "largest change of a scale: 24.5 %" in said                 # exp(7 / 32)
    assert main(["inspect", str(GOLDEN), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["numbers"] == 26 and found["boundaries"] == [1.5] and found["note"] == "frozen with version 1"


def test_the_size_is_the_numbers_and_a_header(w4, random_adapter, tmp_path):
    adapter = random_adapter(w4, 2)
    path = save_adapter(tmp_path / "a.vqscales.safetensors", adapter)
    with Reader(w4) as reader:
        numbers = sum(sum(reader.layout(key).shape[:2]) for key in adapter.layers)
    with Reader(path) as reader:
        header = reader.header.data_start
    assert adapter.numbers == 2 * numbers and path.stat().st_size == header + 2 * 2 * numbers
    assert same(load_adapter(path), adapter) and path.name == "a.vqscales.safetensors"
    assert save_adapter(tmp_path / "a", adapter).name == "a.vqscales-2.safetensors"        # nothing is replaced


def test_the_base_is_the_unet_whatever_is_beside_it(w4, testbed, tmp_path):
    from vqpack.vq_core.plan import plan_from_json
    from vqpack.vq_core.quantize import quantize

    plan = plan_from_json({"vqpack_plan": 1, "unet": {"kind": "uniform", "bits": 4}})
    alone = quantize(testbed, tmp_path / "alone", plan=plan, parts=("unet",)).path
    other = quantize(testbed, tmp_path / "other", bits=4, method="palette", parts=("unet",)).path
    edited = tmp_path / "edited.safetensors"
    data = alone.read_bytes()
    at = data.index(b'"vqpack.tool":"vqpack ') + len(b'"vqpack.tool":"')
    edited.write_bytes(data[:at] + b"V" + data[at + 1:])               # its header was edited: bytes are counted
    ids = []
    for path in (w4, alone, edited, other):
        with Reader(path, mapped=False) as reader:
            ids.append(base_id(reader))
    assert ids[0] == ids[1] == ids[2] != ids[3] and all(len(i) == 64 for i in ids)
    adapter = golden()
    with pytest.raises(FormatError, match=r"trained on the UNet of 'some\.file' \(0123456789ab\)"):
        check_base(adapter, ids[0], "a", "b")
    check_base(adapter, adapter.base, "a", "b")


def write(path, facts, tensors) -> Path:
    """A file with any record and tensors."""
    with Writer(path) as writer:
        for key, tensor in tensors.items():
            writer.add(key, tensor)
        return writer.close({} if facts is None else {METADATA: facts if isinstance(facts, str) else json.dumps(facts)})


GOOD = {"version": 1, "base": "0" * 64, "experts": 2, "boundaries": [1.0]}
TENSORS = {f"{KEY}.out": torch.zeros(2, 6).half(), f"{KEY}.in": torch.zeros(2, 4).half()}


def changed(**more):
    return {**GOOD, **more}


@pytest.mark.parametrize(("facts", "tensors", "words"), [
    (None, TENSORS, "is no scale adapter"), ("[1", TENSORS, "no JSON object"), ("[]", TENSORS, "no JSON object"),
    ("[" * 100000, TENSORS, "no JSON object"), ({"base": "x"}, TENSORS, "no JSON object"),
    (changed(version=2), TENSORS, "of version 2"), (changed(version="1"), TENSORS, "of version '1'"),
    (changed(version=True), TENSORS, "of version True"), (changed(experts=0), TENSORS, "0 experts"),
    (changed(experts=17), TENSORS, "17 experts"), (changed(experts=2.0), TENSORS, "2.0 experts"),
    (changed(experts=3), TENSORS, "need 2 ascending"), (changed(boundaries=[float("nan")]), TENSORS, "ascending"),
    (changed(boundaries=[-1.0]), TENSORS, "ascending"), (changed(boundaries={"a": 1}), TENSORS, "ascending"),
    (changed(experts=3, boundaries=[2.0, 1.0]), TENSORS, "ascending"),
    (changed(boundaries=["1"]), TENSORS, "ascending"),
    (changed(base="xyz"), TENSORS, "which file it belongs to"), (changed(base=None), TENSORS, "which file"),
    (GOOD, {}, "no layer"), (GOOD, {f"{KEY}.in": TENSORS[f"{KEY}.in"]}, "no scale of a layer"),
    (GOOD, {**TENSORS, "other": torch.zeros(2, 2).half()}, "'other' is no scale"),
    (GOOD, {f"{KEY}.out": torch.zeros(2, 6)}, "expected F16"),
    (GOOD, {f"{KEY}.out": torch.zeros(1, 6).half()}, r"expected F16 \[2"),
    (GOOD, {f"{KEY}.out": torch.zeros(2, 6, 1).half()}, r"expected F16 \[2"),
    (GOOD, {f"{KEY}.out": torch.zeros(2, 0).half()}, r"expected F16 \[2"),
    (GOOD, {f"{KEY}.out": torch.full((2, 6), float("nan")).half()}, "scales beyond"),
    (GOOD, {f"{KEY}.out": torch.full((2, 6), -MOST_LOG - 0.1).half()}, "scales beyond")])
def test_what_is_no_adapter_is_one_sentence(tmp_path, facts, tensors, words):
    path = write(tmp_path / "bad.vqscales.safetensors", facts, tensors)
    with pytest.raises(FormatError, match=words) as said:
        load_adapter(path)
    assert "\n" not in str(said.value) and "bad.vqscales" in str(said.value)


def test_every_cut_and_flipped_byte_is_refused_or_harmless(tmp_path):
    data, path = GOLDEN.read_bytes(), tmp_path / "x.vqscales.safetensors"
    for size in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            load_adapter(path)
    start = int.from_bytes(data[:8], "little") + 8
    for place in range(start, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1:])
        with pytest.raises(FormatError):                   # a checksum, each of them
            load_adapter(path)
    for place in range(0, start, 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x04]) + data[place + 1:])
        try:
            load_adapter(path)
        except FormatError as error:
            assert "\n" not in str(error)


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = save_adapter(tmp_path / "a", golden())
    before, other = path.read_bytes(), Adapter("f" * 64, (), {"k": (torch.zeros(1, 2).half(), None)})
    with pytest.raises(Interrupted):
        save_adapter(path, other, overwrite=True, progress=Progress(should_stop=lambda: True))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    save_adapter(path, other, overwrite=True)
    assert same(load_adapter(path), other) and [p.name for p in tmp_path.iterdir()] == [path.name]
