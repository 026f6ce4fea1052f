"""Save Checkpoint (VQ) and the host's own saving of a VQ model, in a real ComfyUI (cases_saving.py)."""
from __future__ import annotations

import pytest

TOLERANCE = 1e-3                           # relative, fp32


def found_by(case: str, host: str = "comfyui"):
    @pytest.fixture(scope="module")
    def found(request):
        path = request.getfixturevalue(host)             # may skip, before any file is made
        return request.getfixturevalue("inside")(path, case, script="cases_saving.py")
    return found


saved, stock, raw, refused = (found_by(case) for case in ("save", "stock_saving", "raw_saving", "refused"))
old_raw, old_saved = found_by("raw_saving", "old_comfyui"), found_by("save", "old_comfyui")


@pytest.fixture(params=["saved", "old_saved"])
def written(request):
    """What Save Checkpoint wrote, on either host."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("graph", ["plain", "lora", "unet"])
def test_coded_weights_are_kept_byte_for_byte(written, graph):
    assert written[graph]["verify"] == [] and written[graph]["changed"] == [] and written[graph]["tables"] == []
    assert written[graph]["coded"] > 50 and written[graph]["needed"] > 0


def test_only_what_a_lora_changed_becomes_dense(written):
    plain, lora = written["plain"], written["lora"]
    assert plain["coded"] == plain["originally"] > lora["coded"]
    dense = plain["coded"] - lora["coded"]
    assert f"{dense} weights changed" in written["said"] and "GB more" in written["said"]
    assert "Quantize Model (VQ)" in written["said"]


def test_changed_weights_are_what_the_host_would_save(written):
    assert written["lora"]["differ"] == []


def test_saved_files_give_the_same_picture(written):
    assert written["lora"]["matters"] > 0.05
    assert written["plain"]["latents"] < TOLERANCE and written["lora"]["latents"] < TOLERANCE
    assert max(written["lora"]["prompts"]) < TOLERANCE


def test_names_are_numbered_and_the_same_model_gives_the_same_bytes(written):
    assert written["numbered"] and written["unet"]["name"] == "tiny-vq.safetensors"


def test_a_saved_file_names_its_origin_and_is_no_result_of_quantize(written):
    assert all(written["metadata"].values()) and written["settings"]["saved"] == {"dense": 0}


@pytest.mark.parametrize(("case", "words"), [("stock_not_coded", "another loader"), ("decoded_not_coded", "'decoded'")])
def test_a_model_without_coded_weights_is_refused(refused, case, words):
    assert words in refused[case] and "Quantize Model (VQ)" in refused[case] and "\n" not in refused[case]


@pytest.mark.parametrize("mode", ["compressed", "decoded"])
def test_the_hosts_saving_writes_the_dense_checkpoint(stock, mode):
    assert stock[mode]["wrong"] == [] and stock[mode]["more"] == []
    assert stock[mode]["latents"] < TOLERANCE
    assert stock[mode]["model"] == [] and stock[mode]["model_keys"] > 200
    assert set(stock[mode]["text"]) <= {"torch.float16", "torch.float32"}


def test_a_saver_of_plain_state_dicts_gets_a_sentence(raw):
    for name in ("unet", "text"):
        assert raw[name].startswith("UnsupportedError: ") and "Save Checkpoint (VQ)" in raw[name], name


def test_the_old_hosts_saving_gets_a_sentence(old_raw):
    for name in ("CheckpointSave", "ModelSave", "CLIPSave", "clip_only"):
        assert old_raw[name].startswith("UnsupportedError: ") and "Save Checkpoint (VQ)" in old_raw[name], name


@pytest.mark.parametrize("host", ["raw", "old_raw"])
def test_nothing_is_left_and_the_model_still_works(request, host):
    found = request.getfixturevalue(host)
    assert found["files"] == [] and found["usable"] < TOLERANCE and found["coded"] > 100
    assert found["decoded"] < TOLERANCE
