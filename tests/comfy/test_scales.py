"""VQ Scale Adapter in a real ComfyUI (cases_scales.py): every memory mode, LoRA, experts, stacking, bad input."""
from __future__ import annotations

import pytest

TOLERANCE, EFFECT = 1e-3, 0.02             # as test_adapters.py
MODES = ("compressed", "decoded", "kept", "unet")


@pytest.fixture(scope="module")
def found(comfyui, inside):
    return inside(comfyui, "all", script="cases_scales.py")


@pytest.fixture(scope="module")
def old(old_comfyui, found, inside):
    return inside(old_comfyui, "short", script="cases_scales.py")


@pytest.mark.parametrize("mode", MODES)
def test_scales_are_exact_in_every_memory_mode(found, mode):
    assert found["one"]["matters"] > EFFECT
    assert found["one"][mode]["scaled"] < TOLERANCE and found["one"][mode]["without"] < TOLERANCE
    assert found["one"][mode]["same"]                       # strength 0, to the last bit
    assert found["one"]["half_loaded"] < TOLERANCE and found["one"]["half_strength"] < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_a_lora_is_inside_the_scales_whichever_comes_first(found, mode):
    assert found["one"]["order_matters"] > EFFECT
    assert found["one"][mode]["lora_before"] < TOLERANCE and found["one"][mode]["lora_after"] < TOLERANCE


def test_an_old_host_scales_too(old):
    for what in ("scaled", "without", "lora_before", "lora_after"):
        assert old["one"]["compressed"][what] < TOLERANCE, what
    assert old["one"]["half_loaded"] < TOLERANCE and old["experts"]["apart"] < TOLERANCE < old["experts"]["matters"]


def test_every_sample_of_a_batch_has_its_own_expert(found):
    assert found["experts"]["apart"] < TOLERANCE < EFFECT / 4 < found["experts"]["matters"]


def test_adapters_stack_in_any_order(found):
    assert max(found["stacked"]["apart"]) < TOLERANCE and found["stacked"]["wrappers"] == [1, 1]
    assert found["stacked"]["undone"] < TOLERANCE


def test_nothing_is_loaded_again_or_left(found):
    host = found["host"]
    assert host["same_weights"] and host["left"] == 0 and host["clone"] and host["size"][0] == host["size"][1]
    assert host["listed"][:1] == ["(none)"] and "two.vqscales.safetensors" in host["listed"]


@pytest.mark.parametrize(("case", "words"), [
    ("stock", "another loader"), ("other", "was trained on the UNet"), ("cut", "truncated"),
    ("gone", "moved or deleted"), ("outside", "must stay inside")])
def test_one_sentence_for_bad_input(found, case, words):
    kind, _, text = found["trouble"][case].partition(": ")
    assert kind in ("PlanError", "FormatError", "UnsupportedError") and words in text and "\n" not in text
    assert found["trouble"]["none"]


def test_ids_inputs_and_outputs_are_frozen(found):
    assert found["host"]["schema"] == [["model", "adapter", "strength", "adapter_name"], ["MODEL"]]
