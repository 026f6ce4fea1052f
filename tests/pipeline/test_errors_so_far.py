"""What quantize shows while it codes: every layer's error, in network order, also of layers an earlier run coded."""
from __future__ import annotations

import pytest
from vqpack.vq_core.errors import Interrupted
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.quantize import quantize

UNIFORM = {"bits": 3, "method": "uniform", "parts": ("unet",)}         # the quickest


def counts(seen: list[dict]) -> list[int]:
    return [sum(error is not None for error in errors.values()) for errors in seen]


def test_each_coded_layer_is_shown_once_with_its_error(testbed, tmp_path):
    seen = []
    result = quantize(testbed, tmp_path / "f", show=lambda errors: seen.append(dict(errors)), **UNIFORM)
    layers = {layer.name: layer.relative_error for layer in result.layers}
    assert seen[-1] == layers and list(seen[-1]) == list(layers)
    assert counts(seen) == list(range(1, len(layers) + 1))
    assert quantize(testbed, tmp_path / "g", **UNIFORM).path.read_bytes() == result.path.read_bytes()


def test_a_run_that_goes_on_shows_what_was_coded_before(testbed, tmp_path):
    first, second = [], []
    progress = Progress(should_stop=lambda: progress.stage == "coding" and progress.done > progress.total / 2)
    with pytest.raises(Interrupted):
        quantize(testbed, tmp_path / "f", show=lambda errors: first.append(dict(errors)), progress=progress, **UNIFORM)
    result = quantize(testbed, tmp_path / "f", show=lambda errors: second.append(dict(errors)), **UNIFORM)
    assert counts(second)[0] > counts(first)[-1] and counts(second)[-1] == len(result.layers)
    assert second[-1] == {layer.name: layer.relative_error for layer in result.layers}


def test_nothing_is_shown_where_the_file_is_there_already(testbed, tmp_path):
    quantize(testbed, tmp_path / "f", **UNIFORM)
    again = quantize(testbed, tmp_path / "f", show=lambda errors: pytest.fail("nothing is coded"), **UNIFORM)
    assert again.already_there
