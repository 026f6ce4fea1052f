"""Adapters of every kind, in every memory mode and by every way, in a real ComfyUI; the reference is its own loader on
the decompressed file. VQPACK_WRITE_MATRIX=1 writes docs/comfyui-matrix.md from what was found."""
from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-3                           # relative, fp32: the promise; what is observed is near 1e-6
EFFECT = 0.02                              # an adapter that moves less would prove nothing
CODED_LAYERS = 9                           # all of adapters.LINEAR and CONV
IGNORED_BY_HOST = {"lokr_cp": "conv"}      # 0.33 logs an error for each such convolution and goes on without it
WAYS = {"strengths": "LoRA, strength changed between runs", "stacked": "two stacked", "hooked": "LoRA by hook",
        "hooked_in_half": "LoRA by hook, half loaded", "hook_and_patch": "LoRA by hook on a model with a LoRA",
        "two_hooks": "a hook for each prompt", "schedule": "LoRA by hook with keyframes",
        "schedule_in_half": "the same, half loaded", "model_as_lora": "checkpoint as LoRA by hook",
        "two_bypassed": "two bypass LoRA (the second replaces the first, as in ComfyUI's own model)",
        "bypassed_dora": "DoRA in bypass (its scale is ignored, as in ComfyUI's own model)"}
MERGES = {"merge": "ModelMergeSimple", "merge_and_lora": "the same, with LoRA before and after",
          "merge_in_half": "the same, half loaded and after partial unloading", "blocks": "ModelMergeBlocks",
          "add_difference": "ModelSubtract, ModelAdd, LoRA"}
PAIRS = {"coded": "two VQ models", "coded_dense": "VQ with dense", "dense_coded": "dense with VQ"}


def module(name: str):
    """A file beside this one, which pytest does not put on the path."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


adapters, matrix = module("adapters"), module("matrix")
KINDS = list(adapters.KINDS)
HALVES = (KINDS[:7], KINDS[7:])


def found_by(case: str, script: str, *arguments: str):
    @pytest.fixture(scope="module")
    def found(request):
        path = request.getfixturevalue("comfyui")            # may skip, before any file is made
        request.getfixturevalue("second_model")
        return request.getfixturevalue("inside")(path, case, *arguments, script=script)
    return found


one, two = (found_by("matrix", "cases_adapters.py", *half) for half in HALVES)
moved, said = found_by("moved", "cases_adapters.py"), found_by("said", "cases_adapters.py")
padded = found_by("padded", "cases_adapters.py")
ways, merges = found_by("ways", "cases_ways.py"), found_by("merges", "cases_ways.py")
key_styles, text = found_by("key_styles", "cases_ways.py"), found_by("text", "cases_ways.py")


@pytest.fixture(scope="module")
def second_model(files):
    """other-vq and other-dense beside the other files: a second model and itself decompressed."""
    for name, other in (("tiny-vq", "other-vq"), ("dense", "other-dense")):
        module("second_model").swap_layers(files / f"{name}.safetensors", files / f"{other}.safetensors")


@pytest.fixture(scope="module")
def table(one, two):
    return {**one["kinds"], **two["kinds"]}


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_equals_the_hosts_in_every_memory_mode(table, kind):
    row = table[kind]
    assert (row["host_lines"] != []) == (kind in IGNORED_BY_HOST)
    for name in set(matrix.SEEN) - {IGNORED_BY_HOST.get(kind)}:
        assert row["effect"][name] > EFFECT, name
    for mode in set(matrix.MODES) - {"bypass"}:
        distances = [row[mode][name] for name in matrix.SEEN if name in row[mode]]
        assert len(distances) >= 2 and max(distances) < TOLERANCE, (mode, row[mode])
        assert set(row[mode]["lines"]) <= set(row["host_lines"]), mode
        assert said_once(row[mode]["lines"]) == row["host_lines"] or "latents" not in row[mode], mode


def said_once(lines: list[str]) -> list[str]:
    """Without the repeats of layers that are not coded: unloaded, they are patched, and logged, by the host itself."""
    repeated = [line for line in lines if lines.count(line) > 1]
    assert all(re.search(r"diffusion_model\.(input_blocks\.0\.0|out\.2|time_embed|label_emb)\.", line)
               for line in repeated), repeated
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_in_bypass_equals_the_hosts(table, kind):
    found, effect = table[kind]["bypass"], table[kind]["bypass_effect"]
    for name in matrix.SEEN:
        if isinstance(found[name], list):                    # a limit of the host, on its own model too
            assert found[name][0] == found[name][1], name
        else:
            assert effect[name] > EFFECT and found[name] < TOLERANCE, name


def test_states_of_memory_are_what_they_are_called(one):
    row = one["kinds"]["lora"]
    assert row["novram"]["held"] == 0 and row["full"]["held"] == row["unet"]["held"] == row["decoded"]["held"] == 1
    assert 0.2 < row["partial"]["held"] < 0.9 and 0.2 < row["unloaded"]["held"] < 0.9


def test_adapters_leave_nothing_behind(one, two):
    for found in (one, two):
        assert len(found["coded"]) == CODED_LAYERS
        for mode, distances in found["after"].items():
            assert max(distances.values()) < TOLERANCE, mode


@pytest.mark.parametrize("way", WAYS)
def test_way_to_add_lora(ways, way):
    assert ways[way]["effect"] > EFFECT
    assert ways[way]["apart"] < TOLERANCE and ways[way]["removed"] < TOLERANCE


def test_limits_of_the_hosts_bypass(ways):
    assert ways["limits"]["second_of_two"] < TOLERANCE < EFFECT < ways["limits"]["first_of_two"]
    assert ways["limits"]["dora_without_scale"] < TOLERANCE


@pytest.mark.parametrize("way", MERGES)
def test_merges_of_coded_and_dense_models(merges, way):
    assert merges[way]["effect"] > EFFECT and merges["still_coded"]
    assert max(merges[way][pair] for pair in PAIRS if pair in merges[way]) < TOLERANCE


def test_key_styles(key_styles):
    assert key_styles["effect"] > EFFECT
    for style, found in key_styles.items():
        if style != "effect":
            assert found["tensors"] and found["apart"] < TOLERANCE, style


def test_text_encoders(text):
    assert set(KINDS) <= set(text)
    for what, found in text.items():
        assert min(found["effect"]) > EFFECT, what
        assert max(found["compressed"], found["decoded"], found["after"]) < TOLERANCE, what


def test_patch_tensors_move_with_the_device_and_back(moved):
    for kind, found in moved.items():
        assert found["count"] >= 4 and found["same_count"] and found["there"] and found["back"], kind
        assert found["bytes"] and not found["again"], kind


def test_shape_changing_patches(padded):
    for name, found in padded.items():
        assert found["shape_changed"] and found["apart"] < TOLERANCE and found["removed"] < TOLERANCE, name


@pytest.mark.parametrize("where", ["model", "model_and_clip", "hook_used_twice"])
def test_lora_that_matches_nothing_is_said_once(said, where):
    assert len(said[where]) == 1 and "changes nothing" in said[where][0]


def test_lora_that_matches_something_is_not_said(said):
    assert said["fits"] == said["hook_fits"] == said["for_text_encoders"] == said["for_the_unet"] == []


def test_patch_of_a_wrong_shape_is_logged_as_often_as_by_the_host(said):
    assert said["wrong_shape"]["ours"] == said["wrong_shape"]["host"] >= 2
    assert said["wrong_shape"]["apart"] < TOLERANCE


@pytest.mark.skipif(not os.environ.get("VQPACK_WRITE_MATRIX"), reason="VQPACK_WRITE_MATRIX=1 writes the table")
def test_write_the_matrix(table, one, ways, merges, key_styles, text, repository):
    rows = [(title, matrix.number(ways[way]["apart"])) for way, title in WAYS.items()]
    rows += [(f"{title}, {PAIRS[pair]}", matrix.number(merges[way][pair])) for way, title in MERGES.items()
             for pair in PAIRS if pair in merges[way]]
    rows += [(f"keys of {style}", matrix.number(found["apart"])) for style, found in key_styles.items()
             if style != "effect"]
    rows += [(f"text encoders: {what if what not in adapters.NAMED else adapters.NAMED[what][0]}",
              matrix.number(max(found["compressed"], found["decoded"]))) for what, found in text.items()]
    matrix.write(repository / "docs" / "comfyui-matrix.md", table, rows,
                 {kind: title for kind, (title, _) in adapters.NAMED.items()}, one["versions"], TOLERANCE, EFFECT)
