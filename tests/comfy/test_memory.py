"""VQ models in every memory state of a real ComfyUI, over a simulated second device (fake_gpu.py); cases_memory.py.

Not measured here, for want of a GPU: streams, pinned memory, whether a tensor really crossed over. benchmarks/
dynamic_vram.py does so on a machine that has one.
"""
from __future__ import annotations

import pytest

TOLERANCE = 1e-3                           # relative, fp32; what is observed is near 1e-6
STATES = ("default", "tight", "lowvram", "novram", "highvram")


def found_by(*cases: str):
    @pytest.fixture(scope="module")
    def found(comfyui, inside):
        return inside(comfyui, "+".join(cases), script="cases_memory.py")
    return found


found, together_found = found_by("estimate", "steps", "states"), found_by("together", "dynamic")


@pytest.fixture
def states(found):
    """--lowvram, --novram, --highvram and --gpu-only are memory states of the host; "tight" is half the room needed."""
    return found["states"]


@pytest.fixture
def steps(found):
    return found["steps"]


@pytest.fixture
def together(together_found):
    return together_found["together"]


@pytest.fixture
def dynamic(together_found):
    return together_found["dynamic"]


@pytest.mark.parametrize("state", STATES)
def test_lora_is_right_and_there_once_in_every_memory_state(states, state):
    assert states["lora_matters"] > 0.05
    assert states[state]["apart"] < TOLERANCE and states[state]["patches"] == [1]
    assert states[state]["removed"] < TOLERANCE


@pytest.mark.parametrize("state", STATES)
def test_size_is_what_is_held_in_every_memory_state(states, state):
    assert states[state]["size_exact"] < 0.01 and states[state]["size"] == states["default"]["size"]
    assert states[state]["coded"] == states["default"]["coded"] > 100


@pytest.mark.parametrize("state", STATES)
def test_unloading_leaves_nothing(states, state):
    assert states[state]["left"] == [0, 0]


def test_states_load_what_they_should(states):
    for state in ("default", "highvram"):
        assert not states[state]["lowvram"]
        assert states[state]["held"] == states[state]["offered"] > 0
        assert states[state]["loaded"] == states[state]["size"] + states[state]["held"]
    for state in ("tight", "lowvram"):
        assert states[state]["lowvram"] and 0 < states[state]["loaded"] < 0.75 * states[state]["size"]
    assert states["novram"]["lowvram"] and states["novram"]["held"] == 0
    assert states["novram"]["loaded"] < 0.05 * states["novram"]["size"]


def test_lora_tensors_come_off_the_budget(steps):
    half, barely = steps["half"], steps["barely"]
    assert half["held"] == half["offered"] and half["loaded"] <= half["budget"] and half["patches"] == [1]
    assert 0 < barely["held"] and barely["loaded"] <= barely["budget"]


def test_partial_unloading_and_loading(steps):
    for step in ("after_unload", "more"):
        assert steps[step]["patches"] == [1] and steps[step]["layers"] < TOLERANCE
    assert steps["after_unload"]["freed"] >= steps["after_unload"]["asked"]
    assert steps["after_unload"]["loaded"] == steps["half"]["loaded"] - steps["after_unload"]["freed"]


def test_unloading_drops_the_patches(steps):
    assert steps["unpatched"] == {"loaded": 0, "held": 0, "functions": 0}


def test_a_strength_that_changes_between_runs(steps):
    assert steps["weaker_matters"] > 0.02 and steps["same_size"]
    assert steps["strength"]["apart"] < TOLERANCE and steps["strength"]["patches"] == [1]
    assert steps["removed"]["apart"] < TOLERANCE and steps["removed"]["patches"] == []


def test_several_models_in_one_graph(together):
    for name in ("first", "second", "dense", "first_again", "both"):
        assert together[name] < TOLERANCE, name
    assert together["within"]


def test_batch_after_batch_nothing_grows(together):
    before, after = together["growth"]["before"], together["growth"]["after"]
    assert before["patch objects"] > 0 and before["bytes"] > 0
    for name in before:
        assert after[name] <= before[name] * (1.02 if name == "tensors" else 1), name


def test_models_are_freed(together):
    assert together["freed"] == [True, True]


def test_dynamic_vram_over_a_simulated_one(dynamic):
    assert dynamic["type"] == "VQModelPatcherDynamic" and dynamic["slots"] > 100
    for name in ("first", "again", "taken_away", "no_room", "strength"):
        assert dynamic[name]["apart"] < TOLERANCE and dynamic[name]["patches"] == [1], name
        assert dynamic[name]["size"] == dynamic["first"]["size"] and dynamic[name]["size_exact"] < 0.01, name
    assert dynamic["removed"]["apart"] < TOLERANCE and dynamic["removed"]["held"] == 0
    assert dynamic["weaker_matters"] > 0.02


def test_dynamic_vram_writes_nothing_back(dynamic):
    assert dynamic["blobs_kept"] and dynamic["lowvram_functions"] == 0 and dynamic["pinned"] == 0
    assert dynamic["slot_bytes"] <= 1.01 * dynamic["first"]["size"]     # slots hold blobs, not decoded weights


def test_dynamic_vram_gives_back_what_it_says(dynamic):
    assert dynamic["taken_away"]["freed"] == dynamic["first"]["loaded"]
    assert dynamic["taken_away"]["left"] == [0, 0]
    assert dynamic["unpatched"] == {"loaded": 0, "held": 0, "functions": 0}


def test_dynamic_vram_beside_other_models(dynamic):
    assert dynamic["delegate"]["type"] == "VQModelPatcher" and dynamic["delegate"]["apart"] < TOLERANCE
    assert dynamic["dense_beside"] == {"type": "ModelPatcherDynamic", "apart": 0} and dynamic["after_dense"] < TOLERANCE


def test_decode_scratch_is_in_every_estimate(found):
    estimate = found["estimate"]
    assert estimate["sampler"] == estimate["patcher"] == estimate["foreign"] == estimate["twice"]
    assert estimate["sampler"] >= 4 * estimate["largest"] and estimate["decoded"] == 0
    assert estimate["name"] == "SDXL"


@pytest.mark.parametrize("mode", ["pinned memory", "streams", "bytes on the card"])
def test_on_a_gpu(mode):
    pytest.skip(f"{mode}: needs CUDA; run benchmarks/dynamic_vram.py there")
