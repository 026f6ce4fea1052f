"""The interface as a person uses it: a headless browser on a real ComfyUI, mouse and keyboard, both renderers.

conftest.py says what it needs.
"""
from __future__ import annotations

import pytest

from ..comfy.conftest import make_base, make_tiny
from ..comfy.test_server import CONDITIONING
from .conftest import seen

RENDERERS = ("classic", "nodes2")
CANCELLED = 2.0                            # seconds of the server, the promise on the tiny checkpoint


@pytest.fixture(scope="module", params=RENDERERS)
def found(request, browser, tmp_path_factory):
    """What a person saw in one renderer."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(folder / "base", {"testing": CONDITIONING}, checkpoints=make_tiny(folder / "tiny.safetensors"))
    return seen(browser, "person.py", base, request.param)


def test_it_is_the_renderer_that_was_asked_for(found):
    assert found["vue"] == (found["renderer"] == "nodes2")


def test_nothing_of_the_pack_failed_in_the_page(found):
    assert found["log"] == []


def test_one_click_from_a_loader_to_a_picture(found):
    """Right click, menu item, End on the slider, Quantize, Use it, Run: six interactions."""
    way = found["to_a_picture"]
    assert way["focused"] == "Quantize" and way["said"] == "8 bits"
    assert way["end"] == "execution_success" and way["pictures"] == 1
    assert way["loaders"] == way["model_from"][:1] and way["corner"] == 0


def test_the_predicted_size_is_the_files(found):
    way = found["to_a_picture"]
    assert f"{way['bytes'] / 1e6:.1f} MB of 126.1 MB" in way["at_8"]
    assert "not measured on this checkpoint" in way["first"]


def test_the_report_is_shown_and_saved(found):
    way = found["to_a_picture"]
    assert "palette 8" in way["report"] and "Weight error" in way["report"]
    assert way["download"][0].endswith("-report.html") and way["download"][1] > 10_000


def test_cancel(found):
    stopped = found["cancelled"]
    assert stopped["seconds"] < CANCELLED and "half-written" in stopped["text"]
    assert stopped["answered"]                          # the server answers other requests during a job
    assert not [name for name in stopped["left"] if name.endswith((".safetensors", ".part"))]


def test_a_saved_workflow_loads_as_it_was_and_exports_the_same(found):
    node = found["in_a_node"]
    expected = {"checkpoint": "tiny.safetensors", "bits": 2.5, "method": "trellis", "text_encoder_bits": "8",
                "name": "mine", "calibration": "(none)", "plan": "(none)"}
    assert node["loaded"].items() >= expected.items() and node["prompt"] == expected
    assert node["exported"] == sorted(expected)


def test_keyboard_presets_copy_and_undo(found):
    node = found["in_a_node"]
    assert node["right"] == 3 and node["tiny"] == node["pasted"] == [2, "4"] and node["panels"] == 2
    assert node["undone"] == 3 and node["shown"] == "3"                 # the paste, then the preset


def test_values_survive_a_subgraph(found):
    node = found["in_a_subgraph"]
    assert node["after"] == [node["before"]] and ":" in node["ids"][0]


def test_values_survive_a_reload(found):
    assert found["reloaded"]["before"]["bits"] == 6 and found["reloaded"]["after"] == found["reloaded"]["before"]


def test_a_closed_window_does_not_stop_the_job(found):
    closed = found["closed"]
    assert closed["text"] == "closed.safetensors is ready" and closed["forgotten"]
    assert any("closed.safetensors is ready to load" in text for text in closed["toast"])


def test_a_checkpoint_deleted_before_the_start(found):
    assert "gone.safetensors" in found["deleted"]["said"] and found["deleted"]["can_start"]


def test_a_disk_that_fills_up(found):
    filled = found["filled"]
    if not filled:
        pytest.skip("no small file system can be mounted here")
    assert "is full: free some space" in filled["said"] and "\n" not in filled["said"]
    assert not [name for name in filled["left"] if name.endswith((".safetensors", ".part"))]
    assert "full.safetensors" in filled["then"]         # the same again goes on from what was coded


def test_compare_ends_not_measured(found):
    measured = found["measured"]
    assert "not measured on this checkpoint" in measured["before"] and measured["end"] == "execution_success"
    assert "measured: Latent PSNR" in measured["after"] and measured["shares"] not in ("", "0", "50")
