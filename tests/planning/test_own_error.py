"""The sample of a checkpoint's own layers against all of them, really coded."""
from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from vqpack.vq_core import own_error
from vqpack.vq_core.calibration.file import shapes_digest
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.encode.trellis import sample_rows
from vqpack.vq_core.errors import FormatError, Interrupted, PlanError
from vqpack.vq_core.own_error import can_sample, forget, known_sample, sample_of, spread_points
from vqpack.vq_core.plan import make_plan
from vqpack.vq_core.planning.costs import sampled_error
from vqpack.vq_core.planning.rule import guess
from vqpack.vq_core.planning.run import plan as make_planned
from vqpack.vq_core.planning.sensitivity import Sensitivity, load_sensitivity
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.safetensors_io import SafetensorsFile
from vqpack.vq_core.source import open_source
from vqpack.vq_core.spec import DenseSpec, make_spec

NEAR = 0.04                                # of the error, docs/interface.md
DECIBELS = 0.5                             # of the predicted SNR


@pytest.fixture(autouse=True)
def fresh():
    forget()


@pytest.fixture(scope="module")
def coded(testbed):
    """Key -> (layer, weight) of what is coded in the testbed's UNet"""
    with open_source(testbed) as source:
        return {layer.key: (layer, source.load_float(layer.key)) for layer in source.layers
                if layer.component == "unet" and not layer.dense}


@pytest.fixture(scope="module")
def sensitivities(coded, tmp_path_factory):
    """A file for the testbed: guessed, and each layer's factor off by up to 4 times -> path"""
    shapes, chance = {key: layer.shape for key, (layer, _) in coded.items()}, np.random.default_rng(0)
    factor = guess(shapes, 1000.0)
    factors = {key: factor(layer, float(weight.double().square().sum())) * 4 ** chance.uniform(-1, 1)
               for key, (layer, weight) in coded.items()}
    path = tmp_path_factory.mktemp("sensitivity") / "guessed.vqsens.json"
    path.write_text(json.dumps(Sensitivity("sdxl-like", {}, shapes_digest(shapes), 1000.0, factors).to_json()))
    return path


@pytest.mark.parametrize(("count", "points"), [(1, 1), (3, 7), (10, 3), (97, 48), (5, 5)])
def test_a_layer_is_chosen_as_often_as_it_counts(count, points):
    counts = np.random.default_rng(count).uniform(0, 1, count) ** 3
    counts[:count // 3] = 0
    chosen = Counter(spread_points(counts, points).tolist())
    assert sum(chosen.values()) == points
    for number, size in enumerate(counts):
        share = points * size / counts.sum()
        assert math.floor(share) <= chosen[number] <= math.ceil(share)


@pytest.mark.parametrize("spec", [make_spec("trellis", 2.5), make_spec("trellis", 6), make_spec("palette", 4)])
def test_rows_say_of_a_layer_what_coding_it_loses(testbed, coded, spec):
    """A split shortcut, a convolution and a linear. At 6 bits window 8 and a Gaussian's gain are off by a third."""
    kinds = {(layer.taps, bool(layer.splits)): layer.key for layer, _ in coded.values() if layer.shape[0] > 64}
    with open_source(testbed) as source:
        for key in kinds.values():
            layer, weight = coded[key]
            rows = torch.cat([source.rows(key, row, row + 1) for row in sample_rows(layer.shape[0]).tolist()])
            real = encode_weight(weight, spec, splits=layer.splits).relative_error
            assert sampled_error(rows.float(), spec, layer.splits) == pytest.approx(real, rel=0.15)
    assert len(kinds) >= 3


def test_the_sample_is_near_what_coding_all_loses(testbed, coded):
    """All other codes: benchmarks/own_error.py."""
    spec, weights = make_spec("uniform", 4), sum(layer.numel for layer, _ in coded.values())
    real = sum(layer.numel * encode_weight(weight, spec, splits=layer.splits).relative_error
               for layer, weight in coded.values()) / weights
    taken = sample_of(testbed, make_plan(4, "uniform"))
    assert taken.weights.error == pytest.approx(real, rel=NEAR)
    assert abs(taken.weights.error - real) < 3 * taken.weights.deviation
    assert taken.of == len(coded) > len(taken.layers) > 12 and taken.snr is taken.picture is None


def test_sensitivities_say_what_a_plan_promises(testbed, sensitivities):
    """Rates where the planner's sample and this one agree."""
    known = load_sensitivity(sensitivities)
    planned = make_planned(testbed, bits=2.8, rates=(2, 3), sensitivity=known, parts=("unet",))
    taken = sample_of(testbed, planned.plan, sensitivities)
    assert taken.snr == pytest.approx(planned.snr, abs=DECIBELS)
    assert taken.snr_deviation < DECIBELS
    plain = sample_of(testbed, planned.plan)
    assert plain.snr is None and plain.weights == taken.weights


def test_a_layer_without_a_factor_means_no_promise(testbed, sensitivities, tmp_path):
    data = json.loads(sensitivities.read_text())
    data["layers"].popitem()
    (tmp_path / "less.json").write_text(json.dumps(data))
    assert sample_of(testbed, make_plan(4, "uniform"), tmp_path / "less.json").snr is None


def test_only_the_sampled_rows_are_read(testbed, monkeypatch):
    plan, read, usual = make_plan(4, "uniform"), [], SafetensorsFile.read_into

    def note(self, buffer, offset):
        read.append(memoryview(buffer).nbytes)
        usual(self, buffer, offset)

    monkeypatch.setattr(SafetensorsFile, "read_into", note)
    taken = sample_of(testbed, plan)
    with open_source(testbed) as source:
        shapes = [(source.shape(key), source.dtype(key).itemsize) for key in taken.layers]
    assert sum(read) == sum(min(64, shape[0]) * math.prod(shape[1:]) * size for shape, size in shapes)


def test_rows_of_a_source_are_those_of_the_whole(testbed):
    """A folder's tensors: some stand in it as they are, some reshaped, some in parts."""
    with open_source(testbed) as source:
        for layer in source.layers:
            if layer.shape:
                assert torch.equal(source.rows(layer.key, 1, 3), source.load(layer.key)[1:3]), layer.key


def test_what_was_taken_is_known_until_a_file_changes(testbed, tmp_path, sensitivities):
    plan, other = make_plan(4, "uniform"), make_plan(4, "uniform", text_encoder_bits=16)
    assert known_sample(testbed, plan, None) is None
    taken = sample_of(testbed, plan)
    assert known_sample(testbed, plan, None) is taken is sample_of(testbed, other)      # the UNet's is the same
    assert known_sample(testbed, make_plan(3, "uniform"), None) is known_sample(testbed, plan, sensitivities) is None
    copy = tmp_path / "s.vqsens.json"
    shutil.copy(sensitivities, copy)
    assert known_sample(testbed, plan, copy) is not sample_of(testbed, plan, copy) is known_sample(testbed, plan, copy)
    copy.write_text(copy.read_text() + " ")
    assert known_sample(testbed, plan, copy) is None


def test_it_stops_between_layers_and_keeps_nothing(testbed):
    asked, plan = [], make_plan(4, "uniform")
    with pytest.raises(Interrupted):
        sample_of(testbed, plan, None, Progress(should_stop=lambda: asked.append(0) or len(asked) > 5))
    assert len(asked) == 6 and known_sample(testbed, plan, None) is None
    assert not own_error.measuring.locked()


def test_codes_of_which_rows_say_nothing_are_refused(testbed):
    assert not can_sample([make_spec("additive", 3)]) and not can_sample([DenseSpec()])
    assert can_sample([make_spec("trellis", 3), DenseSpec()])
    with pytest.raises(PlanError, match="expected layers of 'pipe' coded with trellis, palette, uniform"):
        sample_of(testbed, make_plan(3, "additive"))


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_zeros_lose_nothing_and_a_damaged_weight_is_named(testbed, tmp_path, sensitivities, value):
    path = tmp_path / "unet.safetensors"
    with open_source(testbed) as source:
        save_file({layer.key: torch.full(layer.shape, value) for layer in source.layers if layer.component == "unet"},
                  path)
    if math.isnan(value):
        with pytest.raises(FormatError, match=r"'model.diffusion_model.*' of 'unet.safetensors' contains NaN"):
            sample_of(path, make_plan(4, "uniform"))
        return
    taken = sample_of(path, make_plan(4, "uniform"), sensitivities)
    assert taken.weights.error == taken.picture.error == 0 and taken.snr is None
