"""A stop in the middle of every stage, in a real ComfyUI (server_cancel.py, cancel_nodes.py): it takes effect soon, and
nothing of the job stays but what the next run goes on from.
"""
from __future__ import annotations

import pytest

from . import unets
from .conftest import HERE, make_base, make_checkpoint, observed, text_encoder_shapes
from .test_calibrate import PACK
from .test_server import CONDITIONING


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cancel")
    shapes = {**unets.narrow(), **unets.vae(), **text_encoder_shapes(768, 3, 1280, 1)}
    whole = make_checkpoint(folder / "whole.safetensors", shapes)
    packs = {"testing": CONDITIONING, "few": PACK, "cancel_nodes": (HERE / "cancel_nodes.py").read_text("utf-8")}
    base = make_base(folder / "base", packs, checkpoints=files / "tiny.safetensors")
    whole.rename(base / "models" / "checkpoints" / whole.name)
    return observed("server_cancel.py", comfyui, base)


def test_show(found):
    import json
    json.dump(found, open("/tmp/cancel-found.json", "w"), indent=1)
