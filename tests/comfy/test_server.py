"""The nodes through a real server's HTTP API, as a browser uses them; one server run that several tests read."""
from __future__ import annotations

import pytest

from .conftest import make_base, observed

CONDITIONING = '''
import torch


class ZeroConditioning:
    """The tiny checkpoint has no text encoders."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ([[torch.zeros([1, 77, 2048]), {"pooled_output": torch.zeros([1, 1280])}]],)


NODE_CLASS_MAPPINGS = {"ZeroConditioning": ZeroConditioning}
'''
CALIBRATED = ["calibration", "calibration_file", "plan", "plan_file"]      # inputs, appended to both quantizing nodes


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    """What server.py saw of a real server that has the tiny checkpoint, this pack and test nodes."""
    base = make_base(tmp_path_factory.mktemp("base"), {"testing": CONDITIONING}, checkpoints=files / "tiny.safetensors")
    return observed("server.py", comfyui, base)


def test_nodes_are_there_with_their_frozen_inputs(found):
    assert not found["import_failed"]
    assert found["nodes"] == {"VQCheckpointLoader": "Load Checkpoint (VQ)",
                              "VQDiffusionModelLoader": "Load Diffusion Model (VQ)",
                              "VQQuantizeCheckpoint": "Quantize Checkpoint (VQ)",
                              "VQQuantizeModel": "Quantize Model (VQ)", "VQSaveCheckpoint": "Save Checkpoint (VQ)",
                              "VQDecompressCheckpoint": "Decompress Checkpoint (VQ)", "VQInspect": "Inspect (VQ)",
                              "VQReport": "Report (VQ)", "VQCompare": "Compare (VQ)",
                              "VQCalibrate": "Calibrate (VQ)", "VQPlan": "Plan (VQ)", "VQTune": "Tune (VQ)",
                              "VQBenchmark": "Benchmark (VQ)", "VQScaleAdapter": "VQ Scale Adapter",
                              "VQPersonalize": "Personalize (VQ)"}
    loader = {"required": ["file", "memory_mode"], "optional": ["file_name", "keep_decoded", "activations"]}
    assert found["inputs"]["VQBenchmark"]["required"] == ["quick"]
    assert found["inputs"]["VQCheckpointLoader"] == found["inputs"]["VQDiffusionModelLoader"] == loader
    made = found["inputs"]["VQQuantizeCheckpoint"]
    assert made["required"] == ["checkpoint", "bits", "method", "text_encoder_bits", "name"]
    assert made["optional"] == CALIBRATED
    merged = found["inputs"]["VQQuantizeModel"]
    assert merged["required"] == ["model", "bits", "method", "text_encoder_bits", "name"]
    assert merged["optional"] == ["clip", "vae", *CALIBRATED]
    drawn = found["inputs"]["VQCalibrate"]
    assert drawn["required"] == ["model", "clip", "prompts", "prompt_file", "preset", "count", "memory_gb", "name"]
    assert drawn["optional"] == ["width", "height", "steps", "cfg", "sampler_name", "scheduler", "timesteps",
                                 "first_seed", "sensitivity"]
    planned = found["inputs"]["VQPlan"]
    assert planned["required"] == ["checkpoint", "target", "amount", "method", "text_encoder_bits", "name"]
    assert planned["optional"] == ["calibration", "calibration_file", "sensitivity", "export_sensitivity", "model",
                                   "clip", "vae"]
    for node, required in (("VQDecompressCheckpoint", ["file", "dtype", "name"]), ("VQInspect", ["file"]),
                           ("VQReport", ["file"])):
        assert found["inputs"][node]["required"] == required and found["inputs"][node]["optional"] == ["file_name"]
    assert found["tooltips"]


def test_every_node_can_be_found_and_has_a_help_page(found):
    for name, aliases in found["aliases"].items():
        assert {"quantize", "compress", "GGUF", "low VRAM", "small"} <= set(aliases), name
    assert found["help"] == []                          # those without


def test_quantize_load_and_sample_in_one_prompt(found):
    assert found["first"]["end"] == "execution_success", found["first"]
    values = found["first"]["nodes"]["make"]
    assert len(values) > 5 and max(values) == 1000 and found["first"]["texts"] > 5
    assert values == sorted(values)                     # one bar for all stages
    assert found["files"] == ["made.safetensors"]


def test_a_second_run_does_nothing_again(found):
    assert not {"make", "load", "sample"} & set(found["again"])


def test_the_result_is_listed_without_a_restart(found):
    assert "(no VQ file found)" in str(found["empty_list"]) and "made.safetensors" in str(found["list"])
    assert "tiny.safetensors" in str(found["sources"]) and "made" not in str(found["sources"])
    assert found["by_name"]["end"] == "execution_success"


def test_interrupting_leaves_nothing_half_written(found):
    assert found["stopped"]["end"] == "execution_interrupted", found["stopped"]
    finished = [name for name in found["files_after_stop"] if name.endswith((".safetensors", ".part"))]
    assert finished == ["made.safetensors"]
    assert "stopped.safetensors.spool" in found["files_after_stop"]     # it was coding, and goes on from there


@pytest.mark.parametrize(("case", "words"), [("outside", "must stay inside"), ("no_such_rate", "trellis bits"),
                                             ("gone", "gone.safetensors"), ("damaged", "truncated"),
                                             ("newer", "version '9'"), ("newer_inspected", "version '9'"),
                                             ("newer_decompressed", "version '9'"), ("damaged_inspected", "truncated"),
                                             ("damaged_decompressed", "truncated"), ("not_ours", "not a VQ file"),
                                             ("blocked", "cannot make the folder"),
                                             ("blocked_decompress", "cannot make the folder"),
                                             ("deleted", "made.safetensors")])
def test_one_sentence_in_the_node_and_a_living_server(found, case, words):
    assert found[case]["end"] in ("execution_error", "refused")
    message = found[case]["message"]
    assert words in message, message
    assert found[case]["end"] == "refused" or "\n" not in message.strip()
    assert found["alive"] == "execution_success"


def test_decompress_writes_what_the_stock_loader_opens(found):
    assert found["decompressed"]["end"] == "execution_success", found["decompressed"]
    assert found["checkpoints"] == ["made-decompressed.safetensors", "tiny.safetensors"]
    values = found["decompressed"]["nodes"]["un"]
    assert values == sorted(values) and values[-1] == 1000
    assert found["stock"]["end"] == "execution_success", found["stock"]
    assert found["decompressed_as_named"]["end"] == "execution_success"
    assert "sub/own.safetensors" in found["checkpoints_after"]


def test_the_same_decompression_is_not_done_twice(found):
    assert found["decompressed_again"] == []
    assert found["there"]["end"] == "execution_success" and found["kept"]
    assert found["made_again"] == ["un"] and "made-decompressed.safetensors" in found["checkpoints_after"]
    assert not any("-2" in name for name in found["checkpoints_after"])


def test_interrupting_decompress_leaves_nothing(found):
    assert found["stopped_decompress"]["end"] == "execution_interrupted", found["stopped_decompress"]
    assert found["checkpoints_after_stop"] == found["checkpoints_after"]


def test_inspect_shows_text_and_picture(found):
    shown = found["inspected"]["shown"]["look"]
    assert "bits a weight" in shown["text"][0] and "palette 3" in shown["text"][0]
    assert shown["images"][0]["type"] == "temp" and shown["images"][0]["filename"].endswith(".png")


def test_two_loaders_of_one_file(found):
    assert found["two_loaders"]["end"] == "execution_success", found["two_loaders"]
