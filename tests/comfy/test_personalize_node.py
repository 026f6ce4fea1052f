"""Personalize (VQ) in a real ComfyUI (cases_personalize.py): what comes out, what is left, stopping, bad input."""
from __future__ import annotations

import numpy as np
import pytest

from . import unets
from .conftest import make_checkpoint, observed, text_encoder_shapes

PLAN = {"vqpack_plan": 1, "unet": {"kind": "uniform", "bits": 4}}


@pytest.fixture(scope="module")
def found(comfyui, tmp_path_factory):
    """A narrow checkpoint with SDXL's text encoders, three layers of them, as a VQ file; four pictures."""
    from PIL import Image
    from vqpack.vq_core.plan import plan_from_json
    from vqpack.vq_core.quantize import quantize

    folder = tmp_path_factory.mktemp("personal")
    models, pictures = folder / "base" / "models", folder / "base" / "input" / "subject"
    for path in (pictures, pictures.parent / "empty", models / "checkpoints", models / "vq_checkpoints"):
        path.mkdir(parents=True)
    source = make_checkpoint(folder / "whole.safetensors", {**unets.narrow(), **unets.vae(),
                                                            **text_encoder_shapes(768, 3, 1280, 1)})
    plan = plan_from_json(PLAN)
    quantize(source, models / "vq_checkpoints" / "full", plan=plan)
    quantize(source, models / "vq_checkpoints" / "unet", plan=plan, parts=("unet",))
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (64 + index, 70, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{index}.png")
    (pictures / "0.txt").write_text("a drawing of sks cat")
    (pictures / "broken.png").write_text("none")
    return observed("cases_personalize.py", comfyui, folder, "all")


def test_an_adapter_comes_out_and_changes_the_model(found):
    assert found["name"] == "full-personal.vqscales.safetensors" and found["experts"] == 2
    facts = found["facts"]
    assert facts["after"] < facts["before"] and facts["of"] == 4 and facts["learned_from"] == "images"
    assert 1e-4 < found["apart"] < 2 and found["name"] in found["listed"]
    assert found["folders"] == ["(none)", "subject"]
    assert "dB lower after 4 steps" in found["text"] and "Learning takes at most" in found["text"]
    assert "1 file could not be read as pictures and was left out: broken.png." in found["text"]
    assert found["picture"][0] == 1 and found["picture"][2:] == [1024, 3] and {"images", "text"} <= set(found["ui"])


def test_a_run_is_shown_and_nothing_is_left(found):
    assert found["modes"] == [True, True] and found["left"] == 0
    assert found["stages"] == ["reading pictures", "loading the file", "encoding pictures", "tuning",
                               "writing the file"]
    assert found["bar"] == sorted(found["bar"]) and found["previews"] >= 4


def test_the_same_run_again_does_nothing(found):
    assert found["again"][0] == found["name"] and "was there already" in found["again"][1]


def test_a_stopped_run_goes_on(found):
    stopped = found["stopped"]
    assert stopped["said"].startswith("InterruptProcessingException") and stopped["kept"] == [".npz"]
    assert stopped["name"] == "sub/stopped.vqscales.safetensors" and "Going on after step" in stopped["text"]
    assert stopped["left"] == 0


@pytest.mark.parametrize(("case", "words"), [
    ("none", "is no folder in ComfyUI's input folder"), ("gone", "is no folder"), ("outside", "must stay inside"),
    ("name", "must stay inside"), ("finish", "no stopped run"), ("empty", "holds 0 pictures"),
    ("unet", "none of the checkpoints holds a")])
def test_one_sentence_for_bad_input(found, case, words):
    kind, _, text = found["trouble"][case].partition(": ")
    assert kind in ("PlanError", "FormatError", "UnsupportedError", "VQError") and words in text and "\n" not in text


def test_ids_inputs_and_outputs_are_frozen(found):
    assert found["schema"] == [
        ["file", "pictures", "prompt", "steps", "name", "file_name", "experts", "prior", "prior_count", "rate", "batch",
         "together", "width", "height", "preview_steps", "cfg", "first_seed", "finish"], ["STRING", "STRING", "IMAGE"]]
