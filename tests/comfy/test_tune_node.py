"""Tune (VQ) in a real ComfyUI (cases_tune.py): what comes out, what is left behind, stopping, bad input."""
from __future__ import annotations

import os

import pytest

from . import unets
from .conftest import make_base, make_checkpoint, observed, text_encoder_shapes

STOPPED = "InterruptProcessingException"
PACK = '''
import importlib
import sys
from pathlib import Path

import torch


class Ready:
    """Passes a file's name on; before, diffusers learns of the checkpoint's short text encoders and gets a VAE."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "get", "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING",), "folder": ("STRING",)}}

    def get(self, name, folder):
        from diffusers import AutoencoderKL

        own = "nodes.tune"
        root = next(name for name in sys.modules if name.endswith(f"vq-pack.{own}")).removesuffix(own)
        teacher, pipeline = (importlib.import_module(root + name) for name in ("vq_core.tuning.teacher",
                                                                               "vq_core.pipeline"))
        teacher.find_configs = lambda *_: Path(folder)
        pipeline._Loader.vae = lambda self: AutoencoderKL(
            block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8)
        return (name,)


class ZeroConditioning:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ([[torch.zeros([1, 77, 2048]), {"pooled_output": torch.zeros([1, 1280])}]],)


NODE_CLASS_MAPPINGS = {"Ready": Ready, "ZeroConditioning": ZeroConditioning}
'''
COARSE = {"vqpack_plan": 1, "unet": {"kind": "uniform", "bits": 2}, "rules": [
    {"match": r"input_blocks\.4\.1.*attn", "spec": {"kind": "trellis", "bits": 2, "window": 8}},
    {"match": r"input_blocks\.7\.1.*attn1", "spec": {"kind": "palette", "bits": 2}}]}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a narrow checkpoint whose text encoders have SDXL's width and three layers, its file at 2 bits, and
    two originals of other kinds.
    """
    from vqpack.vq_core.plan import plan_from_json
    from vqpack.vq_core.quantize import quantize

    folder = tmp_path_factory.mktemp("tuned")
    models = folder / "base" / "models"
    for path in (folder / "base" / "input", models / "checkpoints", models / "vq_checkpoints"):
        path.mkdir(parents=True)
    shapes = {**unets.narrow(), **unets.vae(), **text_encoder_shapes(768, 3, 1280, 1)}
    source = make_checkpoint(folder / "whole.safetensors", shapes)
    os.link(source, models / "checkpoints" / "whole.safetensors")
    make_checkpoint(models / "checkpoints" / "v.safetensors", {**unets.narrow(), "v_pred": ()})
    make_checkpoint(models / "checkpoints" / "refiner.safetensors", unets.refiner_like())
    quantize(source, models / "vq_checkpoints" / "coarse", plan=plan_from_json(COARSE), parts=("unet", "vae"))
    return folder


@pytest.fixture(scope="module")
def found(comfyui, drawn):
    return observed("cases_tune.py", comfyui, drawn, "all")


@pytest.fixture(scope="module")
def old(old_comfyui, drawn, found):
    """What 0.8 did, after the current one, which has the same names."""
    results = drawn / "base" / "models" / "vq_checkpoints"
    for path in results.rglob("*.safetensors"):
        if path.name != "coarse.safetensors":
            path.unlink()
    (results / "sub").rmdir()
    return observed("cases_tune.py", old_comfyui, drawn, "short")


@pytest.fixture(params=["found", "old"])
def made(request):
    """What a run made, on either host."""
    return request.getfixturevalue(request.param)


def test_the_error_falls_and_codes_stay(made):
    facts, kinds = made["facts"], made["kinds"]
    assert made["name"] == "coarse-tuned.safetensors" and facts["after"] < 0.98 * facts["before"] and facts["of"] == 4
    assert kinds["codes"][0] > 100 and kinds["codes"][1] == 0
    assert kinds["row_scales"] == [0, kinds["codes"][0]] and kinds["codebooks"][1] > 4     # all are trained
    assert abs(made["bytes"][1] - made["bytes"][0]) < 3000


def test_what_comes_out_is_loaded_and_draws_other_pictures(made):
    assert made["name"] in made["listed"] and 1e-4 < made["apart"] < 1 and made["same"] == 0
    assert made["files"] == ["coarse-tuned.safetensors", "coarse.safetensors"]


def test_inference_mode_is_back_and_nothing_is_left(made):
    assert made["modes"] == [True, False] and made["made"] > 200 and made["left"] == 0


def test_a_run_is_shown(made):
    assert made["stages"] == ["loading the file", "recording the teacher", "tuning", "saving", "writing the file"]
    assert made["bar"] == sorted(made["bar"]) and made["bar"][-1] == 1000 and len(set(made["bar"])) > 6
    count, size = made["previews"]
    assert count == 6 and size[0] == 1024                  # at the start, after each of the four steps, at the end
    assert "dB lower after 4 steps" in made["text"] and "Learning takes at most" in made["text"]
    (batch, height, width, channels), spread = made["picture"]
    assert (batch, width, channels) == (1, 1024, 3) and height > 600 and spread > 0.02
    assert {"images", "text"} <= set(made["ui"])


def test_the_same_run_again_does_nothing(found):
    name, text, picture, drawn_again = found["again"]
    assert name == found["name"] and "was there already" in text and drawn_again == 0 and picture[2] == 1024


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(found):
    stopped = found["stopped"]
    assert stopped["recording the teacher"] == [STOPPED, 1, 0, True, []]
    assert stopped["tuning"] == [STOPPED, 1, 0, True, [".npz"]]         # one more recorded; the state kept
    assert stopped["resumed"] == ["sub/stopped.safetensors", True, 0, True, ["stopped.safetensors"]]
    name, steps, changed = stopped["finished"]
    assert name == "finished.safetensors" and 0 < steps < 4 and changed == 0


def test_a_model_in_the_graph_says_what_its_file_says(found):
    ours, theirs = found["graph"]["facts"], found["facts"]
    assert ours["before"] == pytest.approx(theirs["before"], rel=0.05)
    assert ours["after"] == pytest.approx(theirs["after"], rel=0.05) and ours["after"] < ours["before"]
    assert found["graph"]["left"] == 0 and found["graph"]["untouched"]


@pytest.mark.parametrize(("case", "words"), [
    ("student", "choose trajectory 'teacher'"), ("no_clip", "no CLIP is connected"), ("clip_alone", "without a model"),
    ("empty", "holds no prompt"), ("outside", "must stay inside"), ("finish", "no stopped run"),
    ("other", "refiner"), ("v", "predicts 'v'"), ("gone", "moved or deleted"), ("ordinary", "is not a VQ file"),
    ("no_diffusers", "pip install diffusers")])
def test_one_sentence_for_bad_input(found, case, words):
    said = (found["trouble"] | found["graph"]["ended"])[case]
    kind, _, text = said.partition(": ")
    assert kind in ("PlanError", "FormatError", "UnsupportedError", "VQError") and words in text and "\n" not in text
    assert found["trouble"]["left"] == []


def test_ids_inputs_and_outputs_are_frozen(found):
    assert found["trouble"]["schema"] == [
        ["file", "teacher", "prompts", "prompt_file", "preset", "count", "minutes", "name", "file_name", "model",
         "clip", "tuning_steps", "rank", "loss", "trajectory", "rate", "batch", "together", "width", "height", "steps",
         "cfg", "first_seed", "finish"], ["STRING", "STRING", "IMAGE"]]


@pytest.fixture(scope="module")
def served(comfyui, drawn, found, tmp_path_factory):
    """What server_tune.py saw of a real server that has the checkpoint, its file and this pack; the configurations of
    the text encoders were written by `found`.
    """
    models = drawn / "base" / "models"
    base = make_base(tmp_path_factory.mktemp("served"), {"ready": PACK},
                     checkpoints=models / "checkpoints" / "whole.safetensors",
                     vq_checkpoints=models / "vq_checkpoints" / "coarse.safetensors")
    return observed("server_tune.py", comfyui, base, str(drawn))


def test_a_server_tunes_loads_and_draws_after_it_was_stopped(served):
    assert served["stopped"]["end"] == "execution_interrupted", served["stopped"]
    assert "coarse-tuned.safetensors" not in served["kept"]
    assert any(name.startswith("coarse-tuned.tuning") and name.endswith(".npz") for name in served["kept"])
    assert served["done"]["end"] == "execution_success", served["done"]
    assert served["files"] == ["coarse-tuned.safetensors", "coarse.safetensors"] and "tune" not in served["again"]
    shown = served["done"]["shown"]["tune"]
    assert "dB lower after 4 steps" in shown["text"][0] and "Going on after step" in shown["text"][0]
    assert shown["images"] and served["drawn"] == 1
