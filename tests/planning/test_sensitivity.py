"""Sensitivity files and the rule that stands in for them."""
from __future__ import annotations

import json
import os

import pytest
from vqpack.vq_core.arch import make_layers
from vqpack.vq_core.calibration.file import shapes_digest
from vqpack.vq_core.errors import FormatError, PlanError
from vqpack.vq_core.planning.rule import guess
from vqpack.vq_core.planning.sensitivity import Sensitivity, fitting, load_sensitivity

SHAPES = {"a.weight": (4, 8), "b.weight": (8, 4, 3, 3)}


@pytest.fixture
def known():
    return Sensitivity("sdxl", {"name": "base.safetensors", "bytes": 5, "sha256": "0" * 64}, shapes_digest(SHAPES),
                       16384.0, {"a.weight": 0.25, "b.weight": 0.0})


def test_round_trip_and_what_is_in_it(known, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(known.to_json()))
    assert load_sensitivity(path) == known
    assert set(known.to_json()) == {"vqpack_sensitivity", "architecture", "base", "shapes", "noise_power", "layers"}
    known.check("sdxl", SHAPES, "fine-tune.safetensors")


def test_another_architecture_is_refused_by_name(known):
    with pytest.raises(PlanError, match=r"measured on 'base.safetensors' \(sdxl\), 'small' is segmind-vega"):
        known.check("segmind-vega", SHAPES, "small")
    with pytest.raises(PlanError, match="sdxl with other layers"):
        known.check("sdxl", {"a.weight": (4, 9)}, "small")


@pytest.mark.parametrize(("change", "said"), [
    ({"vqpack_sensitivity": 2}, "version 2"), ({"layers": {"a": -1.0}}, "damaged"), ({"layers": {"a": "x"}}, "damaged"),
    ({"layers": {}}, "damaged"), ({"noise_power": 0}, "damaged"), ({"noise_power": True}, "damaged"),
    ({"prompts": []}, "damaged"), ({"base": 3}, "damaged")])
def test_damaged_files_are_refused(known, tmp_path, change, said):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(known.to_json() | change))
    with pytest.raises(FormatError, match=said):
        load_sensitivity(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100000, '{"vqpack_plan": 1}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(FormatError, match="no sensitivity file"):
        load_sensitivity(path)
    with pytest.raises(FormatError, match="cannot read the sensitivities 'none.json'"):
        load_sensitivity(tmp_path / "none.json")


def test_the_rule_favors_full_resolution_and_values_over_queries(repository):
    import gzip

    text = gzip.decompress((repository / "tests" / "data" / "sdxl_base.keys.tsv.gz").read_bytes()).decode()
    rows = (line.partition("\t") for line in text.splitlines())
    shapes = {key: tuple(int(n) for n in shape.split(",") if n) for key, _, shape in rows}
    factor, layers = guess(shapes), {layer.key: layer for layer in make_layers(shapes)}

    def of(name: str) -> float:
        return factor(layers["model.diffusion_model." + name], 1.0)

    assert of("input_blocks.1.0.in_layers.2.weight") > of("input_blocks.5.0.in_layers.2.weight")
    assert of("input_blocks.5.0.in_layers.2.weight") > of("input_blocks.8.0.in_layers.2.weight")
    assert of("output_blocks.5.0.in_layers.2.weight") > of("input_blocks.5.0.in_layers.2.weight")
    block = "middle_block.1.transformer_blocks.3.attn1."
    assert of(block + "to_v.weight") > of(block + "to_q.weight") > 0
    assert factor(layers["model.diffusion_model." + block + "to_q.weight"], 0.0) == 0


def test_the_file_of_this_very_checkpoint_fits_best_then_the_newest(known, tmp_path):
    def write(name, age, **change):
        path = tmp_path / name
        path.write_text(json.dumps(known.to_json() | change))
        os.utime(path, (1e9 - age, 1e9 - age))
        return path

    old, new = write("old.json", 9, base={"name": "x", "bytes": 1}), write("new.json", 1, base={})
    own = write("own.json", 20)
    others = [write("vega.json", 0, architecture="segmind-vega"), write("shapes.json", 0, shapes="0" * 64),
              write("less.json", 0, layers={"a.weight": 1.0}), tmp_path / "gone.json"]
    (tmp_path / "broken.json").write_text("{")
    paths = [*others, old, tmp_path / "broken.json", own, new]
    assert fitting(paths, "sdxl", SHAPES, "base.safetensors", 5) == own
    assert fitting(paths, "sdxl", SHAPES, "base.safetensors", 6) == new == fitting(paths, "sdxl", SHAPES, "b", 5)
    assert fitting(others, "sdxl", SHAPES, "base.safetensors", 5) is None
