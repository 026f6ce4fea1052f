"""docs/format.md is enough to write a reader from: the one in independent_reader.py gives the same bits as ours."""
from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

import independent_reader as independent
import numpy as np
import pytest
import torch
from arch_shapes import SMALL, openclip_shapes, pack, random_tensors, unet_shapes
from arch_shapes import write_file as write_checkpoint
from format_samples import YOUNGER, generator, parts_of, trellis, write_file
from vqpack.vq_core.container import Reader
from vqpack.vq_core.keymap import keymap_from_metadata
from vqpack.vq_core.record import build_blob, parse_blob, part_table
from vqpack.vq_core.source import open_source
from vqpack.vq_core.table_record import table_id

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def golden():
    """-> (metadata, tensors, tables)"""
    metadata, tensors = independent.read_file(GOLDEN / "golden.safetensors")
    return metadata, tensors, independent.tables_of(tensors)


def test_it_imports_numpy_and_the_standard_library_only():
    tree = ast.parse(Path(independent.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("key", EXPECTED["coded"])
def test_every_family_of_the_golden_file(golden, key, dtype):
    _, tensors, tables = golden
    expected = EXPECTED["coded"][key]
    assert independent.is_coded(tensors[key])
    weight = independent.decode(tensors[key][2], tables)
    assert list(weight.shape) == expected["shape"]
    matrix = weight.reshape(*weight.shape[:2], -1).transpose(0, 2, 1)                  # [out, taps, in]
    _, parts = parts_of(key.removesuffix(".weight"))
    hashes = [sha256(matrix[:, :, start:stop].astype(dtype)) for start, stop, *_ in parts]
    assert hashes == expected["parts_" + np.dtype(dtype).name]


def test_dense_tensors_of_the_golden_file(golden):
    for key, expected in EXPECTED["dense"].items():
        dtype, shape, data = golden[1][key]
        assert not independent.is_coded(golden[1][key]) and shape == expected["shape"], key
        assert hashlib.sha256(data).hexdigest() == expected["bytes"], key


def test_what_is_younger_than_the_golden_file(tmp_path):
    path = write_file(tmp_path, seed=3, cases=tuple(YOUNGER))
    _, tensors = independent.read_file(path)
    with Reader(path) as reader:
        for key in reader.coded_keys():
            assert np.array_equal(independent.decode(tensors[key][2], {}), reader.weight(key).decode().numpy()), key


def trellis_weight(rows: int, *ranges, **options) -> tuple[np.ndarray, np.ndarray]:
    """-> (our decoding, the independent one) of a weight with a trellis part for each range of channels."""
    g = generator(8)
    parts = [(start, stop, "trellis", trellis(rows, stop - start, 1, g, **options)) for start, stop in ranges]
    for *_, part in parts:                                         # also the bits behind a column's last step
        part.codes.copy_(torch.randint(-2**31, 2**31, part.codes.shape, generator=g))
    number = table_id(part_table(parts[0][3]))
    blob = build_blob((rows, ranges[-1][1]), torch.float16, parts)
    ours = parse_blob(blob, {number: parts[0][3].table}, "w").decode().numpy()
    return ours, independent.decode(blob.numpy().tobytes(), {number: parts[0][3].table.numpy()})


def test_a_rotated_part_behind_another():
    """Signs are counted from the part's own first channel; no golden weight tells."""
    ours, theirs = trellis_weight(6, (0, 16), (16, 48), rotation=16, rotation_seed=5)
    assert np.array_equal(theirs, ours)


@pytest.mark.parametrize(("rows", "vector"), [(32, 1), (37, 1), (64, 2), (65, 2)])
def test_a_chain_goes_on_in_its_next_column(rows, vector):
    ours, theirs = trellis_weight(rows, (0, 7), window=12, step_bits=3, vector=vector, chain=3)
    assert np.array_equal(theirs, ours)


def test_a_low_rank_branch_up_to_the_order_of_its_sum():
    shape, parts = parts_of("additive_conv")
    g = generator(2)
    branch = torch.randn(3, 90, generator=g).half(), torch.randn(6, 3, generator=g).half()
    blob = build_blob(shape, torch.float16, parts, branch)
    ours = parse_blob(blob, {}, "w").decode().numpy()
    theirs = independent.decode(blob.numpy().tobytes(), {})
    assert np.abs(theirs - ours).max() <= 1e-6 * np.abs(ours).max()


def test_the_names_of_the_source(tmp_path):
    tensors = random_tensors({**unet_shapes(SMALL), **openclip_shapes()}, torch.float16)
    with open_source(write_checkpoint(tmp_path / "model.safetensors", tensors, {})) as source:
        packed = pack(source, tmp_path / "packed.safetensors")
    metadata, stored = independent.read_file(packed)
    names = independent.source_names(metadata, stored)
    assert set(names) == set(tensors)
    rebuilt = keymap_from_metadata(metadata).rebuild([key for key in stored if not key.startswith("vq.")])
    assert names == {item.key: (list(item.stored), item.transpose) for item in rebuilt}
    assert any(len(parts) > 1 for parts, _ in names.values())


def test_damage_is_told(tmp_path):
    data = bytearray((GOLDEN / "golden.safetensors").read_bytes())
    data[-1] ^= 1
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        independent.read_file(path)
