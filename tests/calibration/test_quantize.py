"""quantize with a calibration: what changes in the file, what stays, and what is refused."""
from __future__ import annotations

import json

import pytest
import torch
from vqpack.vq_core.arch import layers as arch_layers
from vqpack.vq_core.calibration import Calibration
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.inspection import read_report
from vqpack.vq_core.plan import Plan, plan_from_json
from vqpack.vq_core.quantize import quantize
from vqpack.vq_core.source import open_source
from vqpack.vq_core.spec import DenseSpec, TrellisSpec


@pytest.fixture(scope="module")
def plan(testbed):
    """Three layers of different kinds at 2 bits, all others kept: seconds instead of minutes."""
    with open_source(testbed) as source:
        coded = [layer for layer in arch_layers(source) if layer.component == "unet" and not layer.dense]
    chosen = [next(layer.key for layer in coded if word in layer.key)
              for word in ("attn2.to_k", "ff.net.2", "skip_connection")]
    return Plan(unet=DenseSpec(), layers=tuple((key, TrellisSpec(bits=2, window=8)) for key in chosen))


def test_the_file_says_what_it_was_coded_for(testbed, small, plan, tmp_path):
    free = quantize(testbed, tmp_path / "free", plan=plan)
    found = quantize(testbed, tmp_path / "calibrated", plan=plan, calibration=small.path)
    assert [layer.output_error for layer in free.layers] == [None] * 3
    for plain, calibrated in zip(free.layers, found.layers, strict=True):
        assert calibrated.bits == plain.bits and calibrated.relative_error > plain.relative_error
        assert 0 < calibrated.output_error < calibrated.relative_error
    with Reader(free.path) as reader:
        assert all("output_error" not in row for row in read_report(reader)["layers"])
    with Calibration(small.path) as opened, Reader(found.path) as reader:
        rows = read_report(reader)["layers"]
        assert [row["output_error"] for row in rows] == [layer.output_error for layer in found.layers]
        noted = json.loads(reader.metadata["vqpack.settings"])["calibration"]
        assert noted == {"fingerprint": opened.fingerprint, "pictures": 4}
    again = quantize(testbed, tmp_path / "calibrated", plan=plan, calibration=small.path)
    assert again.already_there and again.layers == found.layers
    other = quantize(testbed, tmp_path / "calibrated", plan=plan)
    assert not other.already_there and other.path != found.path


def test_the_same_bytes_with_any_number_of_threads(testbed, small, plan, tmp_path):
    threads, written = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            result = quantize(testbed, tmp_path / f"threads{count}", plan=plan, calibration=small.path)
            written.append(result.path.read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert written[0] == written[1]


def test_a_calibration_of_another_base_is_refused_before_anything_is_written(testbed, small, tmp_path, monkeypatch,
                                                                              capsys):
    known = Calibration.check

    def other(self, shapes, name):
        known(self, {**shapes, next(iter(shapes)): (1, 2)}, name)

    monkeypatch.setattr(Calibration, "check", other)
    with pytest.raises(PlanError, match="a calibration of another base"):
        quantize(testbed, tmp_path / "out", calibration=small.path)
    assert main(["quantize", str(testbed), "-o", str(tmp_path / "out"), "--calibration", str(small.path)]) == 1
    assert "another base" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_rounding_that_needs_inputs_is_refused_without_them(testbed, tmp_path):
    with pytest.raises(PlanError, match="rounding 'adaround' of .* needs to know the layer's inputs"):
        quantize(testbed, tmp_path / "out", bits=4, method="uniform", rounding="adaround")
    with pytest.raises(PlanError, match="trellis has no option 'rounding'"):
        quantize(testbed, tmp_path / "out", bits=4, rounding="gptq")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options, spec, group", [
    ({"method": "additive", "conv_group": "kernel"}, {"conv_group": "kernel"}, 9),
    ({"method": "product", "merging": "usage", "max_codebook_bits": 0.5},
     {"merging": "usage", "max_codebook_bits": 0.5}, 8)])
def test_options_of_additive_and_product_codes_reach_plan_and_file(testbed, tmp_path, options, spec, group):
    found = quantize(testbed, tmp_path / "out", bits=1, text_encoder_bits=16, skip=r"^(?!.*input_blocks\.1\.0\.in_)",
                     **options)
    with Reader(found.path) as reader:
        (row,), plan = found.layers, json.loads(reader.metadata["vqpack.plan"])
        weight = reader.weight(row.name)
        assert weight.shape[2:] == (3, 3) and weight.layout.parts[0].group == group
        assert {name: plan["unet"].get(name) for name in spec} == spec and row.spec["group"] == group
        assert row.bits == round(weight.bits, 4) and plan_from_json(plan).unet.kind == options["method"]
    with pytest.raises(PlanError, match="trellis has no option"):
        quantize(testbed, tmp_path / "other", **{**options, "method": "trellis"})
