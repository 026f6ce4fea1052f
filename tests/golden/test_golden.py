"""The frozen files of format version 1 read back bit by bit, forever."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from vqpack.vq_core.container import Reader, Writer
from vqpack.vq_core.verify import verify_file

FOLDER = Path(__file__).parent
EXPECTED = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def reader():
    with Reader(FOLDER / "golden.safetensors") as opened:
        yield opened


def test_file_is_intact():
    assert hashlib.sha256((FOLDER / "golden.safetensors").read_bytes()).hexdigest() == EXPECTED["file"]
    assert verify_file(FOLDER / "golden.safetensors") == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("key", EXPECTED["coded"])
def test_coded_weights_decode_bit_by_bit(reader, key, dtype):
    weight, expected = reader.weight(key), EXPECTED["coded"][key]
    assert list(weight.shape) == expected["shape"]
    decoded = weight.decode(dtype)
    taps = weight.layout.taps
    hashes = []
    for start, stop, _, _ in weight.parts:      # back to the matrix of the part: [out, taps * channels]
        piece = decoded[:, start:stop].reshape(weight.shape[0], stop - start, taps).transpose(1, 2)
        hashes.append(sha256(piece.reshape(weight.shape[0], -1)))
    assert [kind for _, _, kind, _ in weight.parts] == expected["specs"]
    assert hashes == expected["parts_" + str(dtype).removeprefix("torch.")]


@pytest.mark.parametrize("key", EXPECTED["dense"])
def test_dense_tensors_are_their_bytes(reader, key):
    tensor, expected = reader.tensor(key), EXPECTED["dense"][key]
    assert str(tensor.dtype) == expected["dtype"] and list(tensor.shape) == expected["shape"]
    assert sha256(tensor) == expected["bytes"]


def test_writing_it_again_gives_the_same_bytes(reader, tmp_path):
    with Writer(tmp_path / "golden.safetensors") as writer:
        for key in reversed(reader.keys()):
            add = writer.add_blob if key in reader.coded_keys() else writer.add
            add(key, reader.tensor(key))
        path = writer.close(reader.metadata)
    assert path.read_bytes() == (FOLDER / "golden.safetensors").read_bytes()
