"""VQ files in a real ComfyUI, observed from inside its process; the reference is always its own loader on the
decompressed file. Cases are in cases.py; each runs once and several tests read what it found."""
from __future__ import annotations

import pytest

TOLERANCE = 1e-3                           # relative, fp32: the promise; what is observed is near 1e-6
MODES = ("compressed", "decoded", "unet", "unet_of_checkpoint")


def found_by(case: str, host: str = "comfyui"):
    @pytest.fixture(scope="module")
    def found(request):
        path = request.getfixturevalue(host)             # may skip, before any file is made
        return request.getfixturevalue("inside")(path, case)
    return found


equality, memory, saving = found_by("equality"), found_by("memory"), found_by("saving")
merge_and_hooks, host, errors = found_by("merge_and_hooks"), found_by("host"), found_by("errors")
text_encoders = found_by("text_encoders")
old, old_memory = found_by("short", "old_comfyui"), found_by("memory", "old_comfyui")


@pytest.mark.parametrize("mode", MODES)
def test_latents_equal_the_decompressed_file(equality, mode):
    assert equality[mode]["plain"] < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_lora_on_linear_and_conv_equals_the_stock_one(equality, mode):
    assert equality["lora_matters"] > 0.05
    assert equality[mode]["lora"] < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_two_stacked_lora_and_removal(equality, mode):
    assert equality["second_matters"] > 0.02
    assert equality[mode]["two"] < TOLERANCE and equality[mode]["removed"] < TOLERANCE


def test_lora_is_not_baked(equality):
    for mode in MODES:
        assert equality[mode]["coded"] and equality[mode]["size_kept"], mode
    assert equality["compressed"]["size"] < 0.3 * equality["decoded"]["size"]    # the tiny one has many dense weights
    assert equality["compressed"]["patcher"] == "VQModelPatcher"


def test_partial_loading_keeps_one_patch_per_weight(memory):
    assert memory["half"] == memory["more"] == memory["unloaded_twice"] == [0, 1]
    assert memory["unpatched"] == memory["unpatched_from_full"] == [0]


@pytest.mark.parametrize("state", ["full", "layers_after_unload", "after_unload", "forced",
                                   "removed", "again"])
def test_lora_is_applied_once_in_every_state_of_memory(memory, state):
    assert memory[state] < TOLERANCE


def test_model_size_is_what_is_held(memory):
    assert abs(memory["size"] - memory["held"]) <= 0.01 * memory["held"]


def test_decode_scratch_is_in_the_estimate(memory):
    assert memory["scratch"] >= memory["largest"]


def test_state_dicts_hold_stored_bytes_under_the_weights_own_keys(saving):
    assert saving["types"] == ["StoredWeight", "Tensor"] and saving["keys"]


def test_stock_saving_writes_a_checkpoint_the_stock_loader_opens(saving):
    assert saving["saved"] < TOLERANCE


def test_no_key_makes_the_host_take_the_file_for_its_own_format(saving):
    assert not saving["comfy_quant"]


def test_nothing_encodes_a_weight_again(saving, memory):
    assert memory["lowvram_function_gone"]
    assert "never encoded again" in saving["requantize"]


def test_merges_and_hooks(merge_and_hooks):
    assert merge_and_hooks["hook_matters"] > 0.05
    assert max(merge_and_hooks[name] for name in ("merged", "hooked", "after")) < TOLERANCE


def test_copies_and_types(host):
    assert host["type"] == host["clone"] == host["copy"]["type"] == "VQModelPatcher"      # on the CPU, also dynamic
    assert host["factory"] and host["copy"]["own_model"] and host["copy"]["same"] < TOLERANCE
    assert host["vae_copy"].startswith("ModelPatcher")
    assert host["dynamic_on_cpu"] in (None, "VQModelPatcher")


def test_coded_tensors_stay_coded_when_moved(host):
    assert host["module_moved"]
    assert host["moved_in_inference_mode"] == ["QuantizedTensor/True"]


def test_shared_tables_are_kept_once(host):
    assert host["tables_per_device"] == 2                   # the plan uses two


def test_an_unloaded_model_is_freed(host):
    assert host["freed"]


@pytest.mark.parametrize("mode", ["ours", "decoded"])
def test_prompts_are_encoded_alike_with_and_without_a_lora(text_encoders, mode):
    assert text_encoders["finite"] and text_encoders["lora_matters"] > 0.01
    assert max(text_encoders[mode]) < TOLERANCE
    assert text_encoders["size"][1] == 2 * 3 * 6 + 2           # six matrices in each layer, two token tables


@pytest.mark.parametrize(("case", "words"), [("unet_as_checkpoint", "Load Diffusion Model (VQ)"),
                                             ("truncated", "truncated"), ("not_ours", "dense.safetensors"),
                                             ("gone", "gone.safetensors")])
def test_one_sentence_for_what_cannot_be_opened(errors, case, words):
    kind, _, text = errors[case].partition(": ")
    assert kind in ("FormatError", "UnsupportedError") and words in text and "\n" not in text


def test_old_host_loads_samples_and_takes_a_lora(old):
    assert old["lora_matters"] > 0.05 and old["coded"]
    assert max(old[name] for name in ("plain", "lora", "removed", "decoded", "unet")) < TOLERANCE


def test_old_host_partial_loading(old_memory):
    assert old_memory["half"] == old_memory["more"] == old_memory["unloaded_twice"] == [0, 1]
    assert max(old_memory[name] for name in ("full", "layers_after_unload", "after_unload", "removed")) < TOLERANCE
