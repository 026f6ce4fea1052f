"""The pack's read-only routes in a real server: what they predict, and that no name leads out of the host's lists."""
from __future__ import annotations

import json
import re
import sys

import pytest
from vqpack.vq_core.calibration.file import shapes_digest
from vqpack.vq_core.planning.rule import guess
from vqpack.vq_core.planning.sensitivity import Sensitivity
from vqpack.vq_core.source import open_source

from .conftest import ROOT, make_base, observed
from .test_server import CONDITIONING


def make_holes(path):
    """A checkpoint of SDXL's exact shapes and 6.94 GB, of which only the header is on the disk."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from make_checkpoint import read_shapes, write_holes
    finally:
        sys.path.pop(0)
    write_holes(read_shapes("base"), path)


def write_sensitivity(checkpoint, folder):
    """Guessed for a checkpoint; and a file beside it that is none."""
    with open_source(checkpoint) as source:
        layers = [layer for layer in source.layers if layer.component == "unet" and not layer.dense]
        shapes = {layer.key: layer.shape for layer in layers}
        factor = guess(shapes)
        factors = {layer.key: factor(layer, float(layer.shape[0])) for layer in layers}
        known = Sensitivity(source.architecture, {"name": source.name, "bytes": source.bytes}, shapes_digest(shapes),
                            1.0, factors)
    folder.mkdir()
    (folder / "tiny.vqsens.json").write_text(json.dumps(known.to_json()))
    (folder / "damaged.vqsens.json").write_text('{"vqpack_sensitivity": 1}')


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    base = make_base(tmp_path_factory.mktemp("routes"), {"testing": CONDITIONING},
                     checkpoints=files / "tiny.safetensors")
    write_sensitivity(files / "tiny.safetensors", base / "models" / "vqpack")
    make_holes(base / "models" / "checkpoints" / "holes.safetensors")
    return observed("server_routes.py", comfyui, base)


def test_a_name_is_taken_if_and_only_if_it_is_listed(found):
    assert found["fuzz"]["wrong"] == []
    assert set(found["fuzz"]["sources"]) == {"tiny.safetensors", "holes.safetensors"}
    assert found["fuzz"]["answered"] >= 3               # the good names were among them


def test_routes_only_read(found):
    assert set(found["methods"]) == {405} and found["untouched"]


def test_nothing_is_written_through_a_link(found):
    links = found["links"]
    assert links["outside"] == "not yours" and links["end"] == "execution_success"
    assert links["shown"]["vq_file"][0] in links["files"]


def test_two_jobs_on_one_name_make_two_files(found):
    assert found["links"]["both"] == ["execution_success"] * 2
    assert {"same.safetensors", "same-2.safetensors"} <= set(found["links"]["files"])


def test_the_size_is_the_files(found):
    """At most, and at least all but 3 % of the report and some bytes: budget.REPORT_MARGIN."""
    tiny = found["estimates"]["tiny"]
    assert 0 <= tiny["file_bytes"] - found["size"] < 1000
    assert tiny["measured"]["file"] == "made.safetensors" and 0.01 < tiny["measured"]["error"] < 0.1
    assert tiny["compared"] is None


def test_sdxl_is_predicted_from_its_header(found):
    """README: 1.820 GB and 3.144 bits; the bar of 300 ms with room for a busy machine, for the first asked alone."""
    sdxl = found["estimates"]["sdxl"]
    assert sdxl["status"] == 200 and sdxl["source_bytes"] > 6.9e9
    assert f"{sdxl['file_bytes'] / 1e9:.3f}" == "1.820" and sdxl["unet_bits"] == pytest.approx(3.144, abs=5e-4)
    assert sdxl["took"] < 1 and min(found["estimates"]["took"]) < 0.3
    assert sdxl["memory"]["peak"] == sum(sdxl["memory"][part] for part in ("weights", "scratch", "activations"))
    assert found["estimates"]["sdxl_again"]["file_bytes"] < sdxl["file_bytes"]


def test_time_is_told_once_the_speed_was_measured(found):
    assert found["estimates"]["speed"]["weights_per_second"] > 1000
    assert found["estimates"]["timed"]["seconds"] > 0


@pytest.mark.parametrize(("case", "words"), [("odd_method", "zip"), ("odd_bits", "many"), ("none", "got none"),
                                             ("no_such_rate", "trellis bits")])
def test_what_cannot_be_predicted_is_said_in_a_sentence(found, case, words):
    answer = found["estimates"][case]
    assert answer["status"] in (400, 404) and words in answer["error"] and "\n" not in answer["error"]


def test_the_checkpoints_own_layers_are_sampled_once_asked_for(found):
    """What they say is what the file at this plan says, and what its sensitivities make of it."""
    before, after = found["estimates"]["tiny"], found["estimates"]["sampled_then"]
    assert before["sampled"] is None and before["to_sample"]
    assert found["estimates"]["sampled"] == {"busy": False} and not after["to_sample"]
    assert after["sampled"]["error"] == pytest.approx(after["measured"]["error"], rel=0.05)
    assert after["sampled"]["layers"] <= after["sampled"]["of"] and after["sampled"]["deviation"] > 0
    assert after["sampled"]["sensitivity"] == "tiny.vqsens.json" and 0 < after["sampled"]["snr"] < 60


def test_nothing_is_measured_while_the_host_works(found):
    assert [answer["busy"] for answer in found["busy"]] == [True, True]


def test_codes_that_cannot_be_sampled_are_said_so(found):
    assert "expected layers of 'tiny.safetensors' coded with" in found["estimates"]["vector_code"]["error"]
    then = found["estimates"]["vector_code_then"]
    assert then["sampled"] is None and not then["to_sample"] and then["error"] > 0


def test_a_checkpoint_that_was_deleted(found):
    assert found["gone"] == 404


def test_the_report_is_a_page_that_reaches_nothing(found):
    report = found["estimates"]["report"]
    headers = {name.lower(): value for name, value in report["headers"].items()}
    assert headers["content-security-policy"] == "sandbox allow-scripts"
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''made-report.html"
    assert "default-src 'none'" in report["text"] and "made.safetensors" in report["text"]


def test_compare_puts_its_pictures_into_the_report_and_its_number_into_the_panel(found):
    story = found["comparison"]
    assert story["before"]["compared"] is None and story["before"]["pictures"] == [0, 0]
    assert story["run"]["end"] == "execution_success"
    assert story["run"]["shown"]["compare"]["vq_file"] == ["made.safetensors"]
    after = story["after"]
    assert after["pictures"] == [4, 4] and after["same"]                # two of each, also where it is saved
    assert "A: tiny.safetensors, B: this file" in after["words"] and "seed 5" in after["words"]
    said = re.search(r"latent PSNR: median ([\d.]+)", story["run"]["shown"]["compare"]["text"][0])[1]
    assert f"Latent PSNR {said} dB" in after["words"] and "patch" not in after["words"]
    assert after["compared"]["file"] == "made.safetensors"
    assert after["compared"]["lines"] == [f"Latent PSNR {said} dB, 2 pictures"]
    assert story["twice"]["pictures"] == [8, 8] and "seed 6" in story["twice"]["words"]              # newest first


def test_what_compare_keeps_is_small_and_private(found):
    story = found["comparison"]
    assert story["kept"] == [".json"] * 2 + [".png"] * 8 and story["paths"] == [] and story["served"] in (403, 404)


def test_compare_goes_on_where_nothing_can_be_kept(found):
    story = found["comparison"]
    assert story["unwritable"] == "execution_success" and len(story["log"]) == 1
    assert story["afterwards"]["compared"] is None and story["afterwards"]["pictures"] == [0, 0]
