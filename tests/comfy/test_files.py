"""Model folders of a real ComfyUI with a real extra_model_paths.yaml: lists, links, and where results go."""
from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="makes links")


@pytest.fixture(scope="module", params=["comfyui", "old_comfyui"])
def found(request):
    host = request.getfixturevalue(request.param)
    return request.getfixturevalue("inside")(host, "folders", script="cases_files.py")


@pytest.fixture(scope="module")
def states(comfyui, inside):
    return inside(comfyui, "states", script="cases_files.py")


def test_our_folder_key_keeps_the_yamls_order_and_gets_extensions(found):
    assert found["keys"][0] == "extra/ours" and len(found["keys"]) == len(set(found["keys"]))
    assert {"base/models/vq_checkpoints", "other/vq_checkpoints", "extra/vq_checkpoints"} < set(found["keys"])
    assert found["extensions"] == [".safetensors", ".sft"]
    assert "yaml.safetensors" in found["listed"] and not any(n.endswith((".txt", ".spool")) for n in found["listed"])


def test_lists_hold_what_belongs_there_through_links_too(found):
    assert {"yaml.safetensors", "sub/mine.safetensors", "among.safetensors", "file.safetensors",
            "folder/linked.safetensors", "unet.safetensors", "only.safetensors"} < set(found["vq"])
    assert {"same.safetensors", "folder/a.safetensors", "file.safetensors"} < set(found["sources"])
    assert not {"among.safetensors", "only.safetensors", "folder/linked.safetensors"} & set(found["sources"])


def test_a_name_means_what_the_host_would_take(found):
    assert found["source"]["same.safetensors"] == "extra/ckpts/same.safetensors"            # the default folder's
    assert found["source"]["sub\\deep.safetensors"] == found["source"]["sub/deep.safetensors"]
    assert found["vq_path"]["twice.safetensors"] == "base/models/checkpoints/twice.safetensors"    # the other is none


def test_results_lie_beside_the_sources_root(found):
    assert found["output"] == {
        "same.safetensors": "extra/vq_checkpoints", "sub/deep.safetensors": "base/models/vq_checkpoints/sub",
        "sub\\deep.safetensors": "base/models/vq_checkpoints/sub",
        "folder/a.safetensors": "base/models/vq_checkpoints/folder", "file.safetensors": "base/models/vq_checkpoints",
        "other.safetensors": "other/vq_checkpoints",
        "inner/checkpoints/nested.safetensors": "base/models/checkpoints/inner/vq_checkpoints"}


def test_checkpoints_go_where_the_stock_loaders_look(found):
    assert found["checkpoint"] == {
        "yaml.safetensors": "extra/ckpts", "sub/mine.safetensors": "base/models/checkpoints/sub",
        "among.safetensors": "base/models/checkpoints", "unet.safetensors": "base/models/diffusion_models",
        "file.safetensors": "base/models/checkpoints", "folder/linked.safetensors": "base/models/checkpoints/folder",
        "twice.safetensors": "base/models/checkpoints", "only.safetensors": "base/models/checkpoints"}


def test_names_stay_inside_and_fit_every_system(found):
    start = "extra/vq_checkpoints/"
    assert [name.removeprefix(start) for name in found["named"].values()] == [
        "a.safetensors", "b.safetensors", "B.safetensors", "sub/c.safetensors", "_con.safetensors",
        "d/_nul.safetensors", "e.safetensors", "f.safetensors"]
    assert all(text.startswith("PlanError") and "must stay inside" in text for text in found["outside"])
    assert all(text.startswith("FormatError") and "\n" not in text for text in found["not_found"])
    assert found["names"][:3] == ["yaml.safetensors", os.path.join("sub", "mine.safetensors"), "among.safetensors"]


def test_a_file_is_ours_by_its_blobs_where_the_metadata_was_dropped(states):
    assert states["bare"] and not states["bytes"] and not states["replaced"]


def test_a_deleted_result_is_made_again(states):
    assert states["lost"] == [0, 0, 1, 1]


def test_where_nothing_can_be_written_the_first_folder_of_ours_serves(states):
    assert states["read_only"] == states["blocked"] == "extra/ours"
    assert states["taken"].startswith("PlanError: cannot make the folder") and "\n" not in states["taken"]


def test_one_bar_for_all_stages(states):
    values = states["host"]["values"]
    assert values == sorted(values) and values[2] < 100 and values[5] < 1000 == values[8]


def test_room_is_asked_for_what_coding_needs_and_on_no_cpu(states):
    assert states["host"]["room"] == [[states["host"]["needed"], "cuda:0"]]
    assert 1 << 30 <= states["host"]["needed"] < 1 << 31
