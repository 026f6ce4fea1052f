"""Eleven traps, each with our guard in place (right) and with the guard taken away (the damage); cases_traps.py."""
from __future__ import annotations

import pytest

TOLERANCE = 1e-3                           # relative, fp32


@pytest.fixture(scope="module")
def traps(comfyui, inside):
    """All eleven, in one ComfyUI process."""
    return inside(comfyui, "+".join(map(str, range(1, 12))), script="cases_traps.py")


def test_1_no_file_with_foreign_memory_is_written(traps):
    guarded, bare = traps["1"]["guarded"], traps["1"]["bare"]
    assert "Save Checkpoint (VQ)" in guarded["refused"] and not guarded["written"]
    assert bare["opens"] and bare["foreign"] > 0.5 * bare["of"]         # a file that opens, most of it other memory


def test_2_a_lora_works_in_a_patcher_that_another_pack_made(traps):
    guarded, bare = traps["2"]["guarded"], traps["2"]["bare"]
    assert guarded["lora"] < TOLERANCE < 0.01 < guarded["plain"]
    assert bare["lora"] > 0.01              # on coded layers it had no effect, and nobody said so


def test_3_partial_unloading_does_not_add_a_lora_again(traps):
    assert traps["3"]["guarded"]["functions"] == 1 and traps["3"]["guarded"]["layers"] < TOLERANCE
    assert traps["3"]["bare"]["functions"] == 2 and traps["3"]["bare"]["layers"] > 0.01


def test_4_a_lora_does_not_make_the_model_larger(traps):
    assert traps["4"]["guarded"]["growth"] == 1 and traps["4"]["guarded"]["lora"] < TOLERANCE
    assert traps["4"]["bare"]["growth"] > 1.5


def test_5_dynamic_vram_encodes_nothing_again(traps):
    guarded, bare, neither = (traps["5"][name] for name in ("guarded", "bare", "neither"))
    assert guarded["lora"] < TOLERANCE and guarded["slots changed"] == 0
    assert "never encoded again" in bare["ended"]
    assert neither["slots changed"] > 50


def test_6_tables_are_shared_and_all_bytes_are_counted(traps):
    guarded, bare = traps["6"]["guarded"], traps["6"]["bare"]
    assert guarded["held"] == guarded["counted"] and guarded["tables"] == 0
    assert bare["held"] > bare["counted"] and bare["tables"] == bare["weights"]


def test_7_the_patcher_is_ours_on_the_cpu_too(traps):
    assert traps["7"] == {"guarded": "VQModelPatcher", "bare": "ModelPatcher"}


def test_8_a_coded_layer_compiles_into_one_graph(traps):
    assert set(traps["8"]["guarded"]) == {"conv", "linear", "trellis", "lora"}
    assert max(traps["8"]["guarded"].values()) < TOLERANCE
    assert any(isinstance(value, str) for value in traps["8"]["bare"].values()), traps["8"]["bare"]


def test_9_a_second_copy_can_be_made(traps):
    assert traps["9"]["guarded"] == "VQModelPatcher True"
    assert "cached_patcher_init" in traps["9"]["bare"]


def test_10_no_key_looks_like_the_hosts_own_quantization(traps):
    assert traps["10"]["guarded"].startswith("refused by us")
    assert traps["10"]["bare"].startswith("refused by the stock loader")


def test_11_the_hosts_estimate_counts_a_decoded_weight(traps):
    assert traps["11"]["guarded"] >= 1
    assert traps["11"]["bare"] == 0
