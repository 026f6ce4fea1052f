"""verify --against: the error of every coded layer, and anything dense that is not the source's."""
from __future__ import annotations

import pytest
import torch
from arch_shapes import SMALL, UNET, openclip_shapes, pack, random_tensors, unet_shapes, write_file
from vqpack.vq_core.arch import layers
from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import FormatError
from vqpack.vq_core.source import open_source
from vqpack.vq_core.text_encoders import stored_items
from vqpack.vq_core.verify import compare_with_source, verify_file


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """-> (tensors of a checkpoint, its path, the vqpack file made from it)"""
    folder = tmp_path_factory.mktemp("compare")
    tensors = {**random_tensors({**unet_shapes(SMALL), **openclip_shapes()}), "global_step": torch.tensor(7),
               "v_pred": torch.zeros(0)}
    path = write_file(folder / "model.safetensors", tensors)
    with open_source(path) as source:
        return tensors, path, pack(source, folder / "packed.safetensors")


def test_coded_layers_have_their_error_and_dense_ones_are_equal(example):
    _, path, packed = example
    rows = {row["name"]: row for row in compare_with_source(packed, path)}
    with Reader(packed) as reader, open_source(path) as source:
        assert set(rows) == set(reader.coded_keys())
        items = {item.layer.key: item for item in stored_items(source, layers(source))}
        for key, row in rows.items():
            original, decoded = items[key].load_float(source), reader.weight(key).decode()
            expected = float((original - decoded).double().square().sum() / original.double().square().sum())
            assert row["relative_error"] == pytest.approx(expected, rel=1e-5) and row["weights"] == original.numel()
            assert 0 < row["relative_error"] < 0.2
    assert verify_file(packed) == []


def test_dense_tensors_that_differ_are_listed(example, tmp_path):
    tensors, _, packed = example
    key = next(k for k in tensors if k.endswith(".bias"))
    other = write_file(tmp_path / "model.safetensors", {**tensors, key: tensors[key] + 1})
    dense = [row for row in compare_with_source(packed, other) if not row["coded"]]
    assert [row["name"] for row in dense] == [key] and dense[0]["relative_error"] > 0


def test_another_model_is_refused(example, tmp_path):
    tensors, _, packed = example
    fewer = {key: tensor for key, tensor in tensors.items() if key != "global_step"}
    with pytest.raises(FormatError, match="global_step"):
        compare_with_source(packed, write_file(tmp_path / "fewer.safetensors", fewer))
    key = f"{UNET}time_embed.0.bias"
    other = {**tensors, key: torch.zeros(3).half()}
    with pytest.raises(FormatError, match="time_embed.0.bias"):
        compare_with_source(packed, write_file(tmp_path / "other.safetensors", other))
