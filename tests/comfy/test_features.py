"""What other nodes and packs do with a VQ model, in a real ComfyUI (cases_features*.py); the reference is always the
same workflow on the decompressed file in the stock loader, and what is tested must change the picture."""
from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from .conftest import make_checkpoint, make_lora, observed, text_encoder_shapes
from .unets import refiner_like, vae, vega_like

TOLERANCE = 1e-3                           # relative, fp32
# A few layers of every kind are enough, and coding them takes seconds.
PLAN = {"vqpack_plan": 1, "unet": {"kind": "uniform", "bits": 3}, "rules": [
    {"match": r"^(?!.*(input_blocks\.(4|7|8)\.1|middle_block\.|output_blocks\.4\.))", "spec": {"kind": "dense"}},
    {"match": r"attn2", "spec": {"kind": "palette", "bits": 3}}]}


@pytest.fixture(scope="module")
def features(comfyui, tmp_path_factory):
    """A folder with VQ files of small UNets (Vega's, inpaint's and the refiner's shape), decompressed ones and LoRA."""
    folder = tmp_path_factory.mktemp("features")
    make_files(folder)
    return folder


def make_files(folder: Path) -> None:
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.plan import plan_from_json
    from vqpack.vq_core.quantize import quantize

    made = make_checkpoint(folder / "text.safetensors", {**vega_like(), **text_encoder_shapes()})
    quantize(made, folder / "text-vq.safetensors", bits=3, method="palette", parts=("te",))
    decompress(folder / "text-vq.safetensors", folder / "text-dense.safetensors")
    made.unlink()
    for name, shapes in {"tiny": vega_like(), "inpaint": {**vega_like(9), "v_pred": (), "ztsnr": ()},
                         "refiner": refiner_like()}.items():
        source = make_checkpoint(folder / f"{name}.safetensors", {**shapes, **vae()})
        quantize(source, folder / f"{name}-vq.safetensors", plan=plan_from_json(PLAN))
        decompress(folder / f"{name}-vq.safetensors", folder / f"{name}-dense.safetensors")
        if name == "tiny":
            for seed in (1, 2):
                save_file(make_lora(source, seed), folder / f"lora{seed}.safetensors")
        source.unlink()
    (folder / "tiny-dense.safetensors").rename(folder / "dense.safetensors")


def found_by(case: str, script: str = "cases_features_models.py"):
    @pytest.fixture(scope="module")
    def found(comfyui, features):
        return observed(script, comfyui, features, case)
    return found


patches, control = found_by("patches", "cases_features.py"), found_by("control", "cases_features.py")
pictures, shapes, markers, life = found_by("pictures"), found_by("shapes"), found_by("markers"), found_by("life")
compiled, text = found_by("compiled"), found_by("text", "cases_features_text.py")
NO_EFFECT = {"tome"}                       # ToMe works on the largest attention only, which SDXL does not have


def assert_equal(found: dict, names=None) -> None:
    for name in names or found:
        apart, effect = found[name]
        assert apart < TOLERANCE, f"{name}: {apart}"
        assert effect > 2e-3 or name in NO_EFFECT, f"{name} does nothing: {effect}"


def test_nodes_that_patch_between_the_layers(patches):
    assert len(patches) == 23
    assert_equal(patches)


def test_control_nets(control):
    assert_equal(control, ("controlnet", "controlnet_and_lora", "t2i_adapter", "difference_net", "after"))


def test_control_lora_with_and_without_a_lora_and_chained(control):
    assert_equal(control, ("control_lora", "control_lora_and_lora", "two_chained"))
    assert control["partly_loaded"] < TOLERANCE


def test_control_lora_keeps_nothing_and_copies_nothing(control):
    found = control["lifetime"]
    assert found["borrowed"] > 30 and all(found[name] for name in found)


def test_regions_masks_schedules_second_pass_and_tiles(pictures):
    assert_equal(pictures)


def test_inpaint_model_of_nine_channels_with_zero_terminal_snr(shapes):
    assert max(shapes["inpaint"]) < TOLERANCE < shapes["lora_matters"]
    assert shapes["kinds"][0] == shapes["kinds"][1]
    assert shapes["kinds"][0][0] == "V_PREDICTION" and shapes["kinds"][0][1] > 1000 and shapes["kinds"][0][3] == 9


def test_refiner_takes_over_from_the_base(shapes):
    assert shapes["refiner"]["kinds"] == {"stock": "SDXLRefiner", "ours": "SDXLRefiner"}
    assert max(shapes["refiner"]["apart"]) < TOLERANCE < shapes["refiner"]["effect"]


@pytest.mark.parametrize("name", ["none", "v_pred", "zsnr", "playground", "edm_vpred"])
def test_kind_of_prediction_reaches_both_loaders(markers, name):
    found = markers[name]
    assert found["checkpoint"] == found["unet_of_checkpoint"] == found["unet_file"] == found["wanted"]
    assert name == "none" or found["wanted"] != markers["none"]["wanted"]


def test_a_patcher_that_another_pack_builds(life):
    found = life["foreign"]
    assert life["effect"] > 0.05 and found["coded"] and found["coded_at_the_end"]
    for name in ("lora", "then_ours", "ours_with_lora", "after_ours_with_lora", "ours_after_two", "again",
                 "plain_after_all", "shared_backup", "plain_after_shared", "partly", "plain_after_partly",
                 "plain_after_hooks"):
        assert found[name] < TOLERANCE, f"{name}: {found[name]}"
    assert "load that LoRA with a LoRA loader" in found["hooks"]


@pytest.mark.parametrize("way", ["factory", "forced"])
def test_deep_clones_are_models_of_their_own(life, way):
    found = life["copies"][way]
    assert found["apart"] < TOLERANCE and found["own"] and found["coded"] and found["freed"]
    assert found["type"] == "VQModelPatcher"


def test_a_copied_unet_and_a_selected_device(life):
    found = life["copies"]
    assert found["deepcopy"]["own"] and found["deepcopy"]["coded"]
    assert max(found["deepcopy"]["apart"], found["deepcopy"]["with_lora"], found["selected"],
               found["after"]) < TOLERANCE


@pytest.mark.parametrize("what", ["plain", "lora", "hook", "control_lora"])
def test_interrupts_leave_a_usable_model(life, what):
    first, later, with_lora, plain = life["interrupted"][what]
    assert first == later == "InterruptProcessingException"
    assert max(with_lora, plain) < TOLERANCE


def test_interrupt_while_loading(life):
    assert life["interrupted"]["loading"] == "InterruptProcessingException"
    assert life["interrupted"]["loaded_after"] < TOLERANCE


def test_previews(life):
    found = life["preview"]
    assert found["apart"] < TOLERANCE and found["steps"] == [1, 2] and len(found["pictures"]) == 2


def test_weights_taken_out_by_key(life):
    assert life["extracted"] < TOLERANCE


def test_one_file_in_two_modes_deleted_and_replaced(life):
    found = life["files"]
    assert max(*found["both"], found["still_samples"]) < TOLERANCE
    assert found["deleted"].startswith("FormatError: ") and "moved-vq" in found["deleted"]
    assert found["newer"].startswith("FormatError: ") and "install a newer vqpack" in found["newer"]


def test_torch_compile_with_changing_lora(compiled):
    assert max(compiled["eager"]) < TOLERANCE and compiled["coded"] and compiled["eager_graphs"]["unique_graphs"] > 1


@pytest.mark.parametrize("mode", ["compressed", "decoded"])
def test_prompts_weights_clip_skip_and_embeddings(text, mode):
    for name, apart in text[mode].items():
        assert apart < TOLERANCE, f"{name}: {apart}"
    for name, effect in text["effect"].items():
        assert effect > 0.01, f"{name} does nothing: {effect}"
