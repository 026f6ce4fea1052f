"""Quantize Model (VQ) in a real ComfyUI (cases_saving.py): what it codes is what the host would save of the graph."""
from __future__ import annotations

import pytest

from .conftest import make_base, observed
from .test_saving import found_by

TOLERANCE = 1e-3                           # relative, fp32

sources, quantized, interrupted = (found_by(case) for case in ("sources", "quantize", "interrupt"))
refused, markers = found_by("refused"), found_by("markers")
old_quantized = found_by("quantize", "old_comfyui")


def test_what_is_read_is_what_the_host_saves(sources):
    coded, text = sources["coded"]
    assert coded > 100 and text == 2 * 3 * 6 + 2
    assert sources["differ"] == {"keys": [], "coded": [], "dense": []}


def test_every_kind_and_state_of_a_model_gives_the_same_bytes(sources):
    assert len(sources["states"]) == 14 and all(sources["states"].values()), sources["states"]


def test_another_lora_or_strength_is_another_source(sources):
    assert sources["plain_differs"] and sources["strength_differs"]


@pytest.fixture(params=["quantized", "old_quantized"])
def made(request):
    """What Quantize Model made, on either host."""
    return request.getfixturevalue(request.param)


def test_coded_blobs_equal_those_of_decompress_merge_quantize(made):
    assert made["verify"] == []
    count, same_keys = made["blobs"]["coded"]
    assert count > 100 and same_keys
    assert made["blobs"]["blobs"] == [] and made["blobs"]["keys"] == [] and made["blobs"]["dense"] == []


def test_latents_and_prompts_equal_and_the_lora_is_in(made):
    assert made["lora_in"] > 0.05
    assert made["latents"] < TOLERANCE and max(made["prompts"]) < TOLERANCE


def test_the_model_is_not_changed(made):
    distance, same_patches, same_weights = made["unchanged"]
    assert distance == 0.0 and same_patches and same_weights


def test_the_same_run_again_finds_its_file(made):
    assert made["again"] == [True, True, 1] and made["name"] == "merged.safetensors"


def test_the_file_says_that_it_was_made_from_a_model(made):
    assert made["source"]["kind"] == "model" and made["source"]["name"] == "model-merged"
    assert len(made["source"]["sha256"]) == 64


def test_a_stopped_run_goes_on(interrupted):
    assert interrupted["stopped"] == [".journal", ".spool"]
    assert interrupted["resumed"] < 0.8 * interrupted["clean"] and interrupted["same_as_clean"]


def test_a_changed_model_is_never_mixed_with_what_was_coded_before(interrupted):
    assert interrupted["not_mixed"] and interrupted["left"] == []


@pytest.mark.parametrize(("case", "words"), [("sd15", "Stable Diffusion 1"), ("flux", "Flux"),
                                             ("quantized", "already quantized"), ("clip", "CLIP is not SDXL's"),
                                             ("vae", "VAE is not SDXL's"), ("name_outside", "must stay inside")])
def test_one_sentence_for_what_cannot_be_coded(refused, case, words):
    kind, _, text = refused[case].partition(": ")
    assert kind in ("UnsupportedError", "PlanError") and words in text and "\n" not in text


def test_what_a_file_cannot_hold_is_said(refused):
    text = "; ".join(refused["left_out"])
    assert "diffusion_model.out" in text and "attention" in text and "sampler" in text
    assert refused["nothing_left_out"] == []


def test_prediction_markers_survive(markers):
    assert markers["eps"] == ["eps"] and markers["v"] == ["v", "v_pred"]
    assert markers["zsnr"] == ["v", "v_pred", "ztsnr"] and markers["edm"] == ["edm", "edm_mean", "edm_std"]
    assert markers["edm_v"] == ["edm-v", "edm_vpred.sigma_max", "edm_vpred.sigma_min"]
    assert abs(markers["sigma_max"] - 99.0) < 1e-3
    assert markers["patched"] == ["v_pred", "ztsnr"]


@pytest.fixture(scope="module")
def served(comfyui, files, tmp_path_factory):
    """What server_saving.py saw of a real server that has the tiny checkpoint and this pack."""
    base = make_base(tmp_path_factory.mktemp("served"), checkpoints=files / "tiny.safetensors")
    return observed("server_saving.py", comfyui, base)


def test_a_merge_in_the_graph_is_quantized_and_saved_by_the_server(served):
    assert served["first"]["end"] == "execution_success", served["first"]
    assert served["files"] == ["first.safetensors", "second.safetensors", "third.safetensors"]
    progress = served["first"]["nodes"]["code"]
    assert len(progress) > 3 and progress[-1] == 1000


def test_the_nodes_run_again_only_where_their_result_is_gone(served):
    assert served["again"]["executed"] == []
    assert sorted(served["after_loss"]["executed"]) == ["code", "save"]
    assert served["files_again"] == served["files"]


def test_stopping_and_refusing_leave_the_server_alive(served):
    assert served["stopped"]["end"] == "execution_interrupted"
    assert served["refused"]["end"] == "execution_error" and "Quantize Model (VQ)" in served["refused"]["message"]
    assert served["alive"]["end"] == "execution_success"
