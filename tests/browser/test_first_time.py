"""A first visit: from an empty ComfyUI to a picture from a small file with a LoRA, in at most six interactions."""
from __future__ import annotations

import pytest
from safetensors.torch import save_file

from ..comfy import unets
from ..comfy.conftest import make_base, make_checkpoint, make_lora, text_encoder_shapes
from ..comfy.test_workflows import PACK
from .conftest import seen

MOST = 6


@pytest.fixture(scope="module", params=("classic", "nodes2"))
def found(request, browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"first-{request.param}")
    shapes = {**unets.narrow(), **unets.vae(), **text_encoder_shapes(768, 3, 1280, 1)}
    source = make_checkpoint(folder / "my_model.safetensors", shapes)
    save_file(make_lora(source, 1), folder / "my_style.safetensors")
    base = make_base(folder / "base", {"small": PACK}, checkpoints=source, loras=folder / "my_style.safetensors")
    return seen(browser, "first_time.py", base, request.param)


def test_a_first_visit_ends_in_a_picture(found):
    assert found["end"] == "execution_success" and found["pictures"] == 1
    assert len(found["files"]) == 1 and found["files"][0].startswith("my_model-vq")


def test_with_a_lora_in_few_interactions(found):
    assert found["loras"] == ["my_style.safetensors"] and len(found["interactions"]) <= MOST, found["interactions"]


def test_nothing_of_the_pack_failed_in_the_page(found):
    assert found["log"] == []
