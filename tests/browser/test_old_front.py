"""Older front ends, and one without the hook for our elements: a workflow loads, is sent and runs with plain widgets.

$OLD_FRONTS names unpacked versions of the package comfyui_frontend_package (its folder `static`), with : between them.
"""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..comfy.conftest import make_base, make_tiny
from .conftest import seen

FRONTS = [path for path in os.environ.get("OLD_FRONTS", "").split(os.pathsep) if path]
INPUTS = {"checkpoint": "tiny.safetensors", "bits": 2.5, "method": "trellis", "text_encoder_bits": "8", "name": "mine",
          "calibration": "(none)", "plan": "(none)"}


@pytest.fixture(scope="module", params=["no-dom-widgets", *(FRONTS or [None])], ids=lambda path: str(path)[-40:])
def found(request, browser, tmp_path_factory):
    if request.param is None:
        pytest.skip("set $OLD_FRONTS to the folders `static` of older front ends")
    folder = tmp_path_factory.mktemp("old")
    base = make_base(folder / "base", checkpoints=make_tiny(folder / "tiny.safetensors"))
    old = Path(request.param)
    flags = ("--front-end-root", request.param) if old.is_dir() else ()
    return seen(browser, "old_front.py", base, old.parents[1].name if old.is_dir() else request.param, *flags)


def test_a_saved_workflow_is_sent_as_it_was(found):
    assert found["values"].items() >= INPUTS.items() and found["sent"] == INPUTS


def test_it_runs(found):
    assert found["end"] == "execution_success" and found["files"] == ["mine.safetensors"]


def test_the_panel_is_there_where_it_can_be(found):
    without = found["renderer"] == "no-dom-widgets"
    assert found["panels"] == (0 if without else 1) and (found["taken"] > 0) == without


def test_nothing_of_the_pack_failed_in_the_page(found):
    assert found["log"] == []
