"""A server under `--cache-none --disable-dynamic-vram --disable-smart-memory` loads anew each time and never grows."""
from __future__ import annotations

import pytest

from .conftest import make_base, observed
from .test_server import CONDITIONING


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    base = make_base(tmp_path_factory.mktemp("flags"), {"testing": CONDITIONING},
                     vq_checkpoints=files / "tiny-vq.safetensors")
    return observed("flags.py", comfyui, base)


def test_every_prompt_loads_the_file_and_gives_one_picture(found):
    assert set(found["ends"]) == {"execution_success"} and all(found["loaded"])
    assert found["pictures"] == 1


def test_memory_does_not_grow_from_prompt_to_prompt(found):
    if not found["resident"][0]:
        pytest.skip("no /proc here: how much memory the server uses is not known")
    settled, last = found["resident"][1], found["resident"][-1]
    assert last - settled < 40 << 20        # one model that stayed would be 60 MB a prompt
