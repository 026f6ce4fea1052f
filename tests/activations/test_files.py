"""Statistics on disk and settings in plans: the same after reading; damage and unknown names are refused."""
from __future__ import annotations

import json

import pytest
import torch
from vqpack.vq_core.activations import calibrate_activations, load_ranges, make_activations, save_ranges
from vqpack.vq_core.activations.file import METADATA, NAMES, SUFFIX
from vqpack.vq_core.activations.specs import PRESETS, Activations, KeepSpec, ScoreSpec, TokenSpec, activations_from_json
from vqpack.vq_core.activations.thesis import BITS, thesis_plan
from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import FormatError, PlanError
from vqpack.vq_core.plan import Plan, make_plan, plan_from_json, with_activations
from vqpack.vq_core.safetensors_io import SafetensorsFile


def test_statistics_come_back_and_shared_ones_stand_once(ranges, unet, calls, tmp_path):
    path = save_ranges(tmp_path / "tiny", ranges)
    assert path.name == f"tiny{SUFFIX}"
    back = load_ranges(path)
    assert (back.levels, back.calls, back.left_out) == (ranges.levels, 4, 0)
    assert set(back.points) == set(ranges.points)
    for name, seen in ranges.points.items():
        assert all(torch.equal(getattr(seen, part), getattr(back.points[name], part)) for part in NAMES), name
    with SafetensorsFile(path) as file:
        facts = json.loads(file.metadata[METADATA])
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1"
    assert len({facts["points"][f"{block}.to_{one}.weight"] for one in "qkv"}) == 1
    assert facts["records"] < len(ranges.points)
    again = save_ranges(tmp_path / "again.safetensors", calibrate_activations(unet, [calls]))
    assert again.read_bytes() == path.read_bytes()


def test_damaged_or_newer_statistics_are_refused(ranges, tmp_path, testbed):
    path = save_ranges(tmp_path / "tiny", ranges)
    with Reader(path, mapped=False) as reader:
        facts = json.loads(reader.metadata[METADATA])

    def refused(words, **changes):
        text = json.dumps({**facts, **changes})
        other = tmp_path / "other.safetensors"
        write_again(path, other, text)
        with pytest.raises(FormatError, match=words):
            load_ranges(other)

    refused("version 2", version=2)
    refused("of the wrong kind", records=-1)
    refused("of the wrong kind", levels=[1000.0, 0.0])
    refused("of the wrong kind", points={"a": 10**6})
    refused("of the wrong kind", bins=7)
    with pytest.raises(FormatError):
        load_ranges(testbed / "unet" / "diffusion_pytorch_model.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 255
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="damaged"):
        load_ranges(path)


def write_again(path, other, text):
    """A copy with other facts."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), other, metadata={METADATA: text, "format": "pt", "vqpack.version": "1"})


def test_plans_carry_activations_and_older_plans_have_none():
    for name in (*PRESETS, "none"):
        plan = Plan(make_plan(3).unet, activations=make_activations(name))
        assert plan_from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert ("activations" in plan.to_json()) == (name != "none")
    assert plan_from_json(make_plan(2).to_json()).activations is None
    plan = with_activations(make_plan(2), "int8")
    assert with_activations(plan, None) == plan and with_activations(plan, "none") == make_plan(2)


def test_files_say_what_they_are_to_be_run_with(testbed, tmp_path, capsys):
    from vqpack.vq_core.cli.main import main

    command = ["quantize", str(testbed), "--parts", "unet", "--method", "palette", "--bits", "2", "-o"]
    assert main([*command, str(tmp_path / "a.safetensors"), "--activations", "int6"]) == 0
    with Reader(tmp_path / "a.safetensors") as reader:
        plan = plan_from_json(json.loads(reader.metadata["vqpack.plan"]))
    assert plan.activations == make_activations("int6")
    assert main([*command, str(tmp_path / "b.safetensors"), "--activations", "int9"]) != 0
    assert "unknown activations 'int9'" in capsys.readouterr().err and not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(("data", "words"), [
    ([], "must be a JSON object"), ({"input": {}}, "no entry 'input'"),
    ({"inputs": {"kind": "int4"}}, "kind is one of"), ({"inputs": {"kind": "token", "bits": 9}}, "2 to 8, got 9"),
    ({"inputs": {"kind": "token", "bit": 9}}, "entry 'bit'"),
    ({"inputs": {"kind": "groups", "groups": 0}}, "1 to 256"), ({"inputs": {"kind": "groups", "axis": "x"}}, "axis"),
    ({"attention": {"kind": "static", "intervals": 3}}, "intervals must be one of"), ({"rules": 3}, "a list"),
    ({"scores": {"method": "softmax"}}, "scores must be one of"), ({"scores": {"scale_of": "all"}}, "scale_of"),
    ({"scores": {"steps": 1}}, "entry 'steps'"), ({"rules": [{"match": "(", "spec": {"kind": "keep"}}]}, "regular"),
    ({"rules": [{"match": "a"}]}, "a rule must be"), ({"layers": {"a": 8}}, "must be an object"),
    ({"inputs": {"kind": "token", "rotated": 1}}, "true or false"), ({"scores": {"log_steps": 0}}, "1 to 16")])
def test_bad_settings_are_one_sentence(data, words):
    with pytest.raises(PlanError, match=words) as caught:
        activations_from_json(data)
    assert "\n" not in str(caught.value)


def test_the_first_that_fits_decides():
    settings = Activations(TokenSpec(8), TokenSpec(5), ScoreSpec(), ((r"attn1", TokenSpec(4)), (r"attn", KeepSpec())),
                           (("x.attn1.b", TokenSpec(3)),))
    found = [settings.spec_for(key) for key in ("x.attn1.b", "x.attn1.c", "x.attn2.c", "x.ff")]
    assert found == [TokenSpec(3), TokenSpec(4), KeepSpec(), TokenSpec(8)]
    assert settings.spec_for("x.attn1.b", "output") == TokenSpec(5)


def test_thesis_settings():
    for name, bits in BITS.items():
        plan = thesis_plan(name)
        assert plan.unet.num_codebooks == bits and plan.unet.conv_group == "kernel"
        assert plan.activations.inputs.intervals == 20 and plan.activations.inputs.bits == 8
    with pytest.raises(PlanError, match="w4a8"):
        thesis_plan("w3a8")
