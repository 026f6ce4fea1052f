"""What makes a VQ model faster changes no picture: LoRA beside, kept weights, lent memory; cases_speed.py."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("adapters", Path(__file__).with_name("adapters.py"))
adapters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(adapters)

TOLERANCE, EFFECT = 1e-4, 0.005            # relative, fp32; observed: near 1e-6
BESIDE = ("lora", "lora_cp", "lokr", "lokr_cp", "two")     # on the five linear layers; "cp" has plain forms there


@pytest.fixture(scope="module")
def kinds(comfyui, inside):
    return inside(comfyui, "kinds", script="cases_speed.py")["kinds"]


@pytest.fixture(scope="module")
def found(comfyui, inside):
    return inside(comfyui, "hooks+memory+kept+lent", script="cases_speed.py")


@pytest.mark.parametrize("kind", [*adapters.KINDS, "two", "lora_and_dora"])
def test_beside_and_onto_give_the_hosts_latents(kinds, kind):
    row = kinds[kind]
    assert row["effect"] > EFFECT and row["onto"]["calls"] == 0
    assert row["beside"]["apart"] < TOLERANCE and row["onto"]["apart"] < TOLERANCE


@pytest.mark.parametrize("kind", [*adapters.KINDS, "two", "lora_and_dora"])
def test_only_what_is_exact_goes_beside(kinds, kind):
    row = kinds[kind]["beside"]
    assert (row["calls"] > 0) == (kind in BESIDE)
    assert row["terms"] == row["calls"] * (2 if kind == "two" else 1)


def test_hooks_go_beside_after_the_models_own(found):
    row = found["hooks"]
    assert row["effect"] > EFFECT and row["calls"] > 0
    assert row["hook"] < TOLERANCE and row["hook_on_lora"] < TOLERANCE


@pytest.mark.parametrize("state", ["whole", "tight", "novram", "dynamic"])
def test_beside_in_every_memory_state(found, state):
    row = found["memory"][state]
    assert row["apart"] < TOLERANCE and row["removed"] < TOLERANCE and row["calls"] > 0
    assert row.get("pinned", 0) == 0


def test_kept_weights_change_no_picture(found):
    row = found["kept"]
    for name in ("plain", "lora_beside", "lora_onto", "after_lora", "again"):
        assert row[name] < TOLERANCE, name


def test_kept_weights_are_counted_and_bounded(found):
    row = found["kept"]
    assert 0.8 * row["budget"] < row["kept"] <= row["budget"] and row["counted"] == row["kept"]
    assert row["size_same"] and row["parameters"] and not row["in_state_dict"]
    assert row["kept_with_lora"] == row["kept"]
    loaded, room, kept = row["little_room"]
    assert loaded <= room and 0 < kept < row["kept"]


def test_kept_weights_are_given_back_before_any_other(found):
    row = found["kept"]
    assert row["freed"] == row["kept"] and row["after_freeing"] == [0, row["kept"], False]
    assert row["unloaded"] == [0, 0, 0] and row["moved"]
    assert row["copy"] == [row["budget"], False]


def test_memory_is_lent(found):
    row = found["lent"]
    assert row["same"]
    assert 0 < row["held"] <= row["most"] and row["lent_with_gradients"] == 0 and row["gradient"] > 0


@pytest.mark.parametrize("host", ["comfyui", "old_comfyui"])
def test_nodes(request, inside, host):
    row = inside(request.getfixturevalue(host), "nodes", script="cases_speed.py")["nodes"]
    assert row["text"] and {"vqpack", "machine", "label", "settings", "ceilings", "linears"} == set(row["json"])
    for loader in ("VQCheckpointLoader", "VQDiffusionModelLoader"):
        assert row[loader] == 3 << 20 and row[f"{loader}_input"] == [True, 0]
    assert row["left_out"] == 0
