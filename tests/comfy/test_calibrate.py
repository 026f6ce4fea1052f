"""Calibrate (VQ) and Plan (VQ) in a real ComfyUI (cases_calibrate.py, server_calibrate.py).

What the node captures with the host's sampler is held to what `vqpack calibrate` captures with diffusers.
"""
from __future__ import annotations

import json

import pytest

from . import unets
from .conftest import make_base, make_checkpoint, make_lora, observed, text_encoder_shapes

EVERY, COLUMNS = 12, 600                   # as in cases_calibrate.py
STOPPED = "InterruptProcessingException: "
PACK = '''
import functools
import importlib
import sys

import comfy.sd

SIZES = {f"clip_{name}_model_config": {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 3,
                                       "num_attention_heads": width // 64} for name, width in (("l", 768), ("g", 1280))}
real = comfy.sd.load_state_dict_guess_config


@functools.wraps(real)
def load(*args, te_model_options=None, **named):
    """Text encoders of three layers; few and small grams, all other layers are coded without data."""
    own = "nodes.calibrate"
    root = next(name for name in sys.modules if name.endswith(f"vq-pack.{own}")).removesuffix(own)
    run, teacher = (importlib.import_module(root + name) for name in ("vq_core.calibration.run", "nodes.teacher"))
    if not hasattr(run, "usual"):
        run.usual, teacher.usual = run.preset_settings, teacher.groups_of
        run.preset_settings = lambda *a, **k: run.usual(*a, **{**k, "full_columns": 64, "sensitivity_calls": 1})
        teacher.groups_of = lambda *a: thinned(*teacher.usual(*a))
    return real(*args, te_model_options={**SIZES, **(te_model_options or {})}, **named)


def thinned(groups, unreached):
    """Every twelfth group."""
    return groups[::12], [*unreached, *(key for i, group in enumerate(groups) if i % 12 for key in group.layers)]


comfy.sd.load_state_dict_guess_config = load
NODE_CLASS_MAPPINGS = {}
'''


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a narrow checkpoint whose text encoders have SDXL's width and three layers, and a LoRA."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("drawn")
    (folder / "base" / "input").mkdir(parents=True)
    shapes = {**unets.narrow(), **unets.vae(), **text_encoder_shapes(768, 3, 1280, 1)}
    source = make_checkpoint(folder / "whole.safetensors", shapes)
    save_file(make_lora(source, 1), folder / "lora1.safetensors")
    return folder


@pytest.fixture(scope="module")
def found(comfyui, drawn):
    return observed("cases_calibrate.py", comfyui, drawn, "all")


@pytest.fixture(scope="module")
def new(found, drawn):
    """The calibration that the current host made."""
    return (drawn / "base" / "models" / "vqpack" / found["name"]).rename(drawn / "new.vqcal.safetensors")


@pytest.fixture(scope="module")
def old(old_comfyui, drawn, new):
    """What 0.8 did, and its calibration; after the current one, which has the same names."""
    for path in (drawn / "base" / "models" / "vqpack").glob("*"):
        path.unlink()
    done = observed("cases_calibrate.py", old_comfyui, drawn, "short")
    return done, drawn / "base" / "models" / "vqpack" / done["name"]


def test_a_run_is_shown_and_leaves_the_model_as_it_was(found):
    assert found["name"] == "made.vqcal.safetensors" and found["ui"] == [found["text"]]
    assert "coded layers share" in found["text"] and "sweeps over" in found["text"]
    assert found["stages"] == ["loading the model", "drawing", "capturing", "sensitivities", "writing the file"]
    assert found["bar"] == sorted(found["bar"]) and found["bar"][-1] == 1000 and len(set(found["bar"])) > 10
    assert found["previews"] == [2 * 2, [1, 4, 16, 16]]                # two pictures, two steps
    assert found["untouched"] and found["left"] == [0, 0] and found["inference"]
    assert found["parts"] == [] and found["listed"] == ["(none)", found["name"]]


def test_the_same_run_again_draws_nothing(found):
    name, text, drawn_again = found["again"]
    assert name == found["name"] and "was there already" in text and drawn_again == 0


def test_grams_and_sensitivities_are_those_of_the_command(drawn, new, monkeypatch):
    from vqpack.vq_core import pipeline
    from vqpack.vq_core.calibration import Calibration
    from vqpack.vq_core.calibration.run import calibrate
    from vqpack.vq_core.calibration.teacher import CheckpointTeacher
    from vqpack.vq_core.configs import read_config

    for name in ("text_encoder", "text_encoder_2"):
        config = read_config(name)
        (drawn / name).mkdir()
        (drawn / name / "config.json").write_text(json.dumps(
            {**config, "num_hidden_layers": 3, "intermediate_size": config["hidden_size"]}))
    layers = CheckpointTeacher.layers
    monkeypatch.setattr(CheckpointTeacher, "layers", lambda self: layers(self)[::EVERY])
    monkeypatch.setattr(pipeline._Loader, "vae", lambda self: small_vae())     # the checkpoint's is of another kind
    result = calibrate(drawn / "whole.safetensors", drawn / "command", configs=drawn, preset="lightning",
                       prompts=["a red fox in the snow", "two cats"], size=(128, 128), sampler="euler", device="cpu",
                       scheduler="normal", steps=2, timesteps=2, sensitivity_calls=1, full_columns=COLUMNS)
    with Calibration(new) as ours, Calibration(result.path) as theirs:
        assert ours.shared() == theirs.shared() and len(ours.layers) > 8
        assert [vars(group) for group in ours.groups] == [vars(group) for group in theirs.groups]
        assert ours.noise_power == pytest.approx(theirs.noise_power, rel=0.01)
        for key in ours.layers:
            a, b = ours.gram(key), theirs.gram(key)
            assert (a.blocks - b.blocks).norm() < 0.01 * b.blocks.norm(), key
            assert (a.held_out - b.held_out).norm() < 0.01 * b.held_out.norm(), key
            s, t = ours.sensitivity(key), theirs.sensitivity(key)
            assert t.norm() > 0 and (s - t).norm() < 0.02 * t.norm(), key


def small_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
                         up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8)


@pytest.mark.parametrize("way", ["lora", "skip", "patch"])
def test_what_is_patched_in_the_graph_is_seen(found, way):
    assert max(found["changed"][way]["apart"]) > 0.1
    assert ("in no file: patches of attention" in found["changed"][way]["text"]) == (way == "patch")


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(found):
    ends = found["interrupted"]
    assert {stage: end[0] for stage, end in ends.items()} == dict.fromkeys(ends, STOPPED)
    assert [ends[stage][1] for stage in ("drawing", "capturing", "sensitivities")] == [2, 1, 0]     # pictures begun
    assert all(left == 0 for _, _, left, _ in ends.values())
    assert all(any(name.endswith(".parts") for name in names) for *_, names in ends.values())
    assert found["resumed"] == [0, True] and found["parts_left"] == []


@pytest.mark.parametrize(("case", "words"), [
    ("empty", "holds no prompt"), ("gone", "input folder"), ("no_clip", "no CLIP is connected"),
    ("outside", "must stay inside vqpack"), ("refiner", "a refiner"), ("inpaint", "an inpainting model"),
    ("no_g", "no CLIP-G"), ("no_l", "no CLIP-L"), ("hooked", "LoRA by hook"), ("memory", "allow more memory"),
    ("other_base_plan", "calibration of another base"), ("other_base_quantize", "calibration of another base"),
    ("lost", "lost.vqcal.safetensors"), ("no_plan", "is not JSON"), ("too_small", "the least is"),
    ("clip_alone", "without a model")])
def test_one_sentence_for_bad_input(found, case, words):
    kind, _, text = found["trouble"][case].partition(": ")
    assert kind in ("PlanError", "FormatError", "UnsupportedError") and words in text and "\n" not in text
    assert found["trouble"]["left_results"] == []


def test_a_plan_is_written_once_and_shown(found):
    planned = found["planned"]
    assert planned["names"] == ["mine.vqplan.json", "mine.vqplan.json", "mine-2.vqplan.json"]
    assert planned["listed"] == ["(none)", "mine-2.vqplan.json", "mine.vqplan.json"]
    assert planned["kinds"] == ["uniform"] and len(planned["rates"]) > 3
    assert "coded layers 3.2" in planned["text"] and "a guess" in planned["text"]
    (batch, height, width, channels), spread = planned["picture"]
    assert (batch, width, channels) == (1, 1024, 3) and height > 400 and spread > 0.02
    assert {"images", "text"} <= set(planned["ui"])


def test_ids_inputs_and_outputs_are_frozen(found):
    assert found["schemas"] == {
        "VQCalibrate": [["model", "clip", "prompts", "prompt_file", "preset", "count", "memory_gb", "name", "width",
                         "height", "steps", "cfg", "sampler_name", "scheduler", "timesteps", "first_seed",
                         "sensitivity"], ["STRING", "STRING"]],
        "VQPlan": [["checkpoint", "target", "amount", "method", "text_encoder_bits", "name", "calibration",
                    "calibration_file", "sensitivity", "export_sensitivity", "model", "clip", "vae"],
                   ["STRING", "STRING", "IMAGE"]],
        "VQQuantizeCheckpoint": [["checkpoint", "bits", "method", "text_encoder_bits", "name", "calibration",
                                  "calibration_file", "plan", "plan_file"], ["STRING"]]}


def test_old_hosts_capture_the_same_numbers(old, new):
    from vqpack.vq_core.calibration import Calibration

    done, path = old
    assert done["untouched"] and done["left"] == [0, 0] and max(done["changed"]["lora"]["apart"]) > 0.1
    with Calibration(path) as theirs, Calibration(new) as ours:
        for key in ours.layers:
            a, b = ours.gram(key).blocks, theirs.gram(key).blocks
            assert (a - b).norm() <= 1e-3 * b.norm(), key


@pytest.fixture(scope="module")
def served(comfyui, drawn, tmp_path_factory):
    """What server_calibrate.py saw of a real server that has the checkpoint and this pack."""
    base = make_base(tmp_path_factory.mktemp("served"), {"small": PACK}, checkpoints=drawn / "whole.safetensors")
    return {"base": base, **observed("server_calibrate.py", comfyui, base)}


def test_the_example_is_offered_and_runs_from_prompts_to_a_comparison(served):
    assert {"quantize_and_tune", "quantize_from_prompts"} <= set(served["templates"]["vq-pack"])
    assert served["whole"]["end"] == "execution_success", served["whole"]
    numbers, shown = served["numbers"], served["whole"]["shown"]
    assert "coded layers share" in shown[numbers["VQCalibrate"]]["text"][0]
    assert "predicted noise" in shown[numbers["VQPlan"]]["text"][0] and shown[numbers["VQPlan"]]["images"]
    assert "latent PSNR" in shown[numbers["VQCompare"]]["text"][0] and shown[numbers["SaveImage"]]["images"]
    assert served["made"] == ["whole-4bits.vqplan.json", "whole.vqcal.safetensors"]
    assert served["files"] == ["calibrated.safetensors"]


def test_the_example_with_tuning_fits_its_nodes(served):
    tuned = served["tuning"]["VQTune"]
    assert tuned["teacher"] == served["tuning"]["VQQuantizeCheckpoint"]["checkpoint"] and tuned["minutes"] == 30
    assert tuned["file_name"][1] == 0 and tuned["finish"] is False and tuned["loss"] == "halves"


def test_the_file_was_made_with_plan_and_calibration(served):
    from vqpack.vq_core.calibration import Calibration
    from vqpack.vq_core.container import Reader

    made = served["base"] / "models"
    with Reader(made / "vq_checkpoints" / "calibrated.safetensors") as reader, \
            Calibration(made / "vqpack" / "whole.vqcal.safetensors") as calibration:
        settings, plan = (json.loads(reader.metadata[f"vqpack.{name}"]) for name in ("settings", "plan"))
        assert settings["calibration"] == {"fingerprint": calibration.fingerprint, "pictures": 2}
    assert plan["layers"] == json.loads((made / "vqpack" / "whole-4bits.vqplan.json").read_text())["layers"]
    assert len({spec.get("bits") for spec in plan["layers"].values()}) > 2


def test_stopping_a_calibration_leaves_the_server_alive_and_the_work_done(served):
    assert served["stopped"]["end"] == "execution_interrupted", served["stopped"]
    assert any(name.endswith("picture-00000.npz") for name in served["kept"])
    assert not any(name.endswith(".vqcal.safetensors") for name in served["kept"])


def test_nothing_is_done_twice_and_results_are_listed(served):
    assert served["again"] == []
    assert "whole.vqcal.safetensors" in served["listed"]["calibration"]
    assert "whole-4bits.vqplan.json" in served["listed"]["plan"]
    assert served["by_name"]["end"] == "execution_success", served["by_name"]
    assert served["files_by_name"] == ["calibrated.safetensors"]        # by link or by name: the same file
