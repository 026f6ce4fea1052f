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
    return inside(old_comfyui, "all", script="cases_scales.py")


@pytest.fixture(params=["found", "old"])
def seen(request):
    """What a run found, on either host."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("mode", MODES)
def test_scales_are_exact_in_every_memory_mode(seen, mode):
    assert seen["one"]["matters"] > EFFECT
    assert seen["one"][mode]["scaled"] < TOLERANCE and seen["one"][mode]["without"] < TOLERANCE
    assert seen["one"][mode]["same"]                       # strength 0, to the last bit
    assert seen["one"]["half_loaded"] < TOLERANCE and seen["one"]["half_strength"] < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_a_lora_is_inside_the_scales_whichever_comes_first(seen, mode):
    assert seen["one"]["order_matters"] > EFFECT
    assert seen["one"][mode]["lora_before"] < TOLERANCE and seen["one"][mode]["lora_after"] < TOLERANCE


def test_every_sample_of_a_batch_has_its_own_expert(seen):
    assert seen["experts"]["apart"] < TOLERANCE < EFFECT / 4 < seen["experts"]["matters"]


def test_adapters_stack_in_any_order(seen):
    assert max(seen["stacked"]["apart"]) < TOLERANCE and seen["stacked"]["wrappers"] == [1, 1]
    assert seen["stacked"]["undone"] < TOLERANCE


def test_nothing_is_loaded_again_or_left(seen):
    host = seen["host"]
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
