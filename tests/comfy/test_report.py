"""Compare (VQ) and Report (VQ) in a real ComfyUI (cases_report.py): what they draw is what KSampler draws, what they
say is what other formulas give, and nothing that a file claims becomes markup."""
from __future__ import annotations

import re

import pytest

HOSTS = ("comfyui", "old_comfyui")
NO_VAE = "Compare (VQ) has no pictures: connect a VAE to it, or decode its latents"


@pytest.fixture(scope="module", params=HOSTS)
def found(request):
    host = request.getfixturevalue(request.param)
    return request.getfixturevalue("inside")(host, "both", script="cases_report.py")


@pytest.fixture(scope="module")
def compared(found):
    return found["compare"]


@pytest.fixture(scope="module")
def reported(found):
    return found["report"]


def number(text: str, title: str) -> float:
    return float(re.search(rf"^{title}: ([\d.-]+)", text, re.MULTILINE)[1])


def test_both_models_draw_what_ksampler_draws(compared):
    assert compared["same"] and compared["apart"]                     # the LoRA is honored, and matters
    assert compared["pictures"] == [True, True] and compared["shape"] == [1, 128, 128, 3]
    assert compared["control"] == {"same": True, "matters": True}
    assert compared["own_prompt"] and compared["two"]["same"]         # a sampler that adds noise: the same for both


def test_the_numbers_are_those_of_other_formulas(compared):
    text = compared["text"]
    assert number(text, "latent PSNR") == pytest.approx(compared["latent_psnr"], abs=0.051)
    assert number(text, "picture PSNR") == pytest.approx(compared["picture_psnr"], abs=0.051)
    assert 0 < number(text, "SSIM") < 1 and "\nprediction SNR of the first step: " in text
    assert re.search(r"\nlatent PSNR after step 1: [\d.]+ dB\n", text)
    assert text.startswith("B against A: 1 picture of 128 x 128, 2 steps, euler, normal, cfg 2, seed 5\n")
    assert compared["shown"] == [text, "7"]


def test_equal_models_are_called_identical(compared):
    assert "identical" in compared["identical"] and not re.search(r"\binf|nan", compared["identical"])


def test_without_a_vae_latents_are_measured_and_pictures_say_why_not(compared):
    assert compared["no_vae"]["blocked"] == [NO_VAE, NO_VAE] and compared["no_vae"]["same"]
    assert number(compared["no_vae"]["text"], "latent PSNR") == number(compared["text"], "latent PSNR")
    assert "SSIM" not in compared["no_vae"]["text"]


def test_several_pictures_give_median_and_range(compared):
    found = re.search(r"latent PSNR: median ([\d.]+), ([\d.]+) to ([\d.]+) dB", compared["two"]["text"])
    middle, low, high = map(float, found.groups())
    assert low <= middle <= high and "2 pictures" in compared["two"]["text"]


def test_a_vq_model_draws_what_its_decompressed_file_draws(compared):
    assert "identical" in compared["vq"] or number(compared["vq"], "latent PSNR") > 60


def test_the_hosts_own_comparison_takes_the_pictures(compared):
    if "image_compare" not in compared:
        pytest.skip("this ComfyUI has no such node")
    assert compared["image_compare"] == [1, 1]


@pytest.mark.parametrize("kind", ["SD15", "Flux", "Mochi"])
def test_models_of_different_latents_are_refused_in_one_sentence(compared, kind):
    for said in compared[kind]:
        assert said.startswith("UnsupportedError: model ") and "\n" not in said and kind in said
        assert "SDXL" in said or "no pictures" in said


def test_values_that_are_no_numbers(compared):
    of_reference, of_other = compared["nan"]
    assert "no numbers (NaN)" in of_reference and "PSNR" not in of_reference
    assert "latent PSNR: no number" in of_other


def test_stopping_and_going_on(compared):
    assert compared["stopped"].startswith("InterruptProcessingException") and compared["flag_down"]
    assert compared["after"] == compared["no_vae"]["text"]
    values = compared["values"]
    assert values == sorted(values) and values[0] == 0 and values[-1] == 1000


def test_pictures_with_a_vq_file_are_kept_for_its_report(compared):
    kept = compared["kept"]
    assert kept["none"]                                  # of other models, without pictures, or where B is none
    assert kept["pictures"] == [True] * 8                # four pairs of five, as they were drawn
    assert kept["values"] == {"latent_psnr": 5, "image_psnr": 5, "ssim": 5}
    assert kept["names"][0] in ("dense.safetensors", "")                # 0.8 does not say what a model was loaded from
    assert kept["names"][1] == "tiny-vq.safetensors" and kept["patched"] == [0, True, []]


def test_the_report_can_be_opened_where_the_file_is_listed(compared):
    assert compared["kept"]["unlisted"] is None and compared["kept"]["listed"] == ["compared.safetensors"]


def test_report_says_what_was_lost(reported):
    text = reported["plain"]["text"]
    assert text.startswith("plain.safetensors\nsdxl-like, ") and "plan: UNet palette 3, " in text and "4 rules" in text
    assert re.search(r"UNet, convolution +\d+ layers +[\d.]+ bits +0\.\d{4}  0\.\d{4}\n", text)
    worst = re.search(r"worst layers:\n((?:  0\.\d{4}  \S+\n){8})", text)[1].split("\n")[:-1]
    errors = [float(line.split()[0]) for line in worst]
    assert errors == sorted(errors, reverse=True)
    groups = re.findall(r"^  UNet, .* 0\.\d{4}  (0\.\d{4})$", text, re.MULTILINE)
    assert max(map(float, groups)) == errors[0]
    assert "no comparison of pictures is in this file" in text
    assert reported["linked"] and reported["fingerprints"] == 2


def test_report_and_inspect_show_the_attached_comparison(reported):
    for text in (reported["measured"]["text"], reported["measured_inspected"]):
        assert "this file's own source" in text and "8 own prompts" in text and "768 x 1024" in text
        assert "Latent PSNR      21.5 dB  [19.0, 24.0]" in text and "SSIM             0.900  [0.800, 0.950]" in text
        assert "secret" not in text
    assert "compared with" not in reported["plain"]["text"] + reported["plain_inspected"]


def test_names_never_become_markup_in_the_browser(reported):
    assert "<img" in reported["measured"]["text"]                     # text stays text where no HTML is made of it
    assert "<" not in reported["measured"]["shown"] and "&lt;img src=x" in reported["measured"]["shown"]


def test_pictures_show_something(reported):
    for name in ("measured", "plain", "bare"):
        found = reported[name]
        assert found["ui"] == [True, 1] and found["shape"][2:] == [1024, 3] and found["spread"] > 0.02, name
    assert reported["measured"]["shape"][1] > reported["plain"]["shape"][1] > reported["bare"]["shape"][1]


def test_a_file_that_lost_its_metadata_still_has_a_report(reported):
    assert "plan: not known" in reported["bare"]["text"] and "does not say its weight error" in reported["bare"]["text"]
    assert "gone.safetensors" in reported["gone"] and "\n" not in reported["gone"]


def test_ids_inputs_and_outputs_are_frozen(reported):
    assert reported["schemas"] == {
        "VQReport": [["file", "file_name"], ["STRING", "IMAGE"]],
        "VQCompare": [["model_a", "model_b", "positive", "negative", "seed", "steps", "cfg", "sampler_name",
                       "scheduler", "width", "height", "batch_size", "vae", "positive_b", "negative_b"],
                      ["IMAGE", "IMAGE", "STRING", "LATENT", "LATENT"]]}
