"""Stopping quantize and decompress: soon, in every stage, with nothing half-written; the next run goes on."""
from __future__ import annotations

import os

import pytest
import torch
from vqpack.vq_core.container import Reader
from vqpack.vq_core.decompress import decompress
from vqpack.vq_core.errors import Interrupted
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.quantize import quantize
from vqpack.vq_core.save_model import read_origin

SECONDS = 2.0                              # of processor time; what is seen is a tenth of that
UNIFORM = {"bits": 3, "method": "uniform", "parts": ("unet",)}         # the quickest


@pytest.fixture
def one_thread():
    """One thread that codes, whose questions are the only ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(testbed, tmp_path_factory):
    """An undisturbed run's file."""
    return quantize(testbed, tmp_path_factory.mktemp("finished") / "f", **UNIFORM).path


def test_quantize_asks_often_whether_to_stop(testbed, tmp_path, asked, one_thread):
    progress = asked()
    quantize(testbed, tmp_path / "f", bits=3, method="palette", progress=progress)
    assert progress.longest() < SECONDS


def test_decompress_asks_often_whether_to_stop(finished, tmp_path, asked, one_thread):
    progress = asked()
    decompress(finished, tmp_path / "dense", "fp32", progress=progress)
    assert progress.longest() < SECONDS


@pytest.mark.parametrize(("stage", "kept"), [("reading the source", []), ("coding", [".journal", ".spool"]),
                                             ("writing the file", [".journal", ".spool"])])
def test_a_stop_in_any_stage_leaves_nothing_half_written(testbed, finished, tmp_path, stage, kept):
    def stop() -> bool:
        return progress.stage == stage and progress.done > progress.total / 2

    progress = Progress(should_stop=stop)
    with pytest.raises(Interrupted, match=stage):
        quantize(testbed, tmp_path / "f", progress=progress, **UNIFORM)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == kept
    again = quantize(testbed, tmp_path / "f", **UNIFORM)
    assert again.path.read_bytes() == finished.read_bytes() and os.listdir(tmp_path) == [again.path.name]


def test_a_model_is_not_compared_further_with_its_file(finished):
    asked = []
    with Reader(finished) as reader:
        blobs = {key: reader.weight(key) for key in reader.coded_keys()}
    assert len(read_origin(finished, blobs, Progress(should_stop=lambda: asked.append(1))).rows) == len(blobs)
    assert len(asked) == len(blobs)                    # at each blob, and goes on while the answer is no
    with pytest.raises(Interrupted):
        read_origin(finished, blobs, Progress(should_stop=lambda: True))


def test_a_stop_before_anything_is_coded_leaves_nothing(testbed, tmp_path):
    progress = Progress(should_stop=lambda: progress.stage == "coding")
    with pytest.raises(Interrupted):
        quantize(testbed, tmp_path / "f", progress=progress, **UNIFORM)
    assert os.listdir(tmp_path) == []
