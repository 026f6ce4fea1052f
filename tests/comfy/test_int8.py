"""int8 activations in ComfyUI: as emulated, with LoRA, kept, compiled, as the file says; cases_int8.py."""
from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def found(comfyui, inside):
    return inside(comfyui, "pictures+kept+compiled+controlnet", script="cases_int8.py")


def test_pictures_are_the_emulated_ones(found):
    row = found["pictures"]
    changed = row["from_16_bits"]
    assert 1e-4 < changed < 0.1 and 1e-4 < row["lora_from_16_bits"] < 0.1
    assert row["alone"] < 1e-3             # of one layer: a value between two integers may fall either way
    # and one such value is enough for others in later layers and steps: what rounding does comes out another way
    assert row["apart"] < changed and row["after"] == row["apart"]
    assert row["lora"] < row["lora_from_16_bits"] and row["lora_matters"] > 0.005


def test_hard_layers_keep_their_input(found):
    count, hard = found["pictures"]["layers"]
    assert count > 20 and hard == 0 and found["pictures"]["off"] == []


def test_kept_integers_give_the_same_picture(found):
    row = found["kept"]
    for name in ("kept", "decoded"):
        assert row[name] == 0 and row[f"{name}_lora"] == 0 and row[f"{name}_int8"]
        held, counted, integers, matrices = row[f"{name}_bytes"]
        assert held == counted > 0 and 0 < integers <= matrices
    assert row["kept_bytes"][0] <= 4 << 20 < row["decoded_bytes"][0] and row["copy"]


@pytest.mark.parametrize("state", ["NO_VRAM", "NORMAL_VRAM"])
def test_where_memory_is_short(found, state):
    assert found["kept"][state] < 1e-4


@pytest.mark.parametrize("name", ["anew", "kept"])
def test_compiled_layers_multiply_in_int8(found, name):
    apart, called, rounds = found["compiled"][name]
    assert apart < 1e-5 and called and rounds


@pytest.mark.parametrize("name", ["alone", "lora"])
def test_a_control_net(found, name):
    row = found["controlnet"][name]
    assert row["apart"] < row["from_16_bits"] < 0.1 and row["matters"] > 0.005


def test_the_file_can_say_it(comfyui, inside):
    row = inside(comfyui, "filed", script="cases_int8.py")["filed"]
    assert row["int8"] > 20 and row["None"] == 0
    assert "expected int8, int6 or none" in row["dgq8"]
    assert row["input"] == [True, "16 bits", True] and row["node"] > 20
