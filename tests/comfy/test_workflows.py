"""Every example workflow, run as a browser would queue it, in a real ComfyUI on a small checkpoint."""
from __future__ import annotations

import json

import pytest

from . import unets
from .conftest import ROOT, make_base, make_checkpoint, make_lora, observed, text_encoder_shapes

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
ELSEWHERE = ("quantize_and_tune", "quantize_from_prompts",     # test_calibrate.py
             "personalize")                                    # the node itself: test_personalize_node.py
HINT = (3, 16, 16, 32, 32, 96, 96, 256, 320)                   # channels of a control net's hint block
MOST_BYTES = 60_000                                            # of a thumbnail
PACK = '''
import functools

import comfy.sd

SIZES = {f"clip_{name}_model_config": {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 3,
                                       "num_attention_heads": width // 64} for name, width in (("l", 768), ("g", 1280))}
real = comfy.sd.load_state_dict_guess_config


@functools.wraps(real)
def load(*args, te_model_options=None, **named):
    """Text encoders of three layers."""
    return real(*args, te_model_options={**SIZES, **(te_model_options or {})}, **named)


comfy.sd.load_state_dict_guess_config = load
NODE_CLASS_MAPPINGS = {}
'''


def control_shapes() -> dict[str, tuple[int, ...]]:
    """A control net for unets.narrow(): its input and middle blocks, a hint block, one convolution out of each."""
    unet = {key.removeprefix(unets.UNET): shape for key, shape in unets.narrow().items()}
    kept = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
    out = {key: shape for key, shape in unet.items() if key.startswith(kept)}
    for place, (before, after) in enumerate(zip(HINT, HINT[1:], strict=False)):
        out |= {f"input_hint_block.{2 * place}.weight": (after, before, 3, 3),
                f"input_hint_block.{2 * place}.bias": (after,)}
    blocks = {int(key.split(".")[1]) for key in out if key.startswith("input_blocks.")}
    for name in [f"zero_convs.{block}.0" for block in sorted(blocks)] + ["middle_block_out.0"]:
        out |= {f"{name}.weight": (320, 320, 1, 1), f"{name}.bias": (320,)}
    return out


@pytest.fixture(scope="module")
def found(comfyui, tmp_path_factory):
    from PIL import Image
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("workflows")
    shapes = {**unets.narrow(), **unets.vae(), **text_encoder_shapes(768, 3, 1280, 1)}
    source = make_checkpoint(folder / "whole.safetensors", shapes)
    save_file(make_lora(source, 1), folder / "lora1.safetensors")
    control = make_checkpoint(folder / "control.safetensors", control_shapes())
    base = make_base(folder / "base", {"small": PACK}, checkpoints=source, loras=folder / "lora1.safetensors",
                     controlnet=control)
    picture = Image.new("RGBA", (128, 128), (90, 120, 160, 255))
    picture.paste((0, 0, 0, 0), (32, 32, 96, 96))      # where it is clear the mask is
    picture.save(base / "input" / "picture.png")
    return observed("server_workflows.py", comfyui, base)


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES if path.stem not in ELSEWHERE])
def test_an_example_runs_to_a_picture(found, name):
    run = found["runs"][name]
    assert run["end"] == "execution_success", run
    assert run["pictures"] and set(run["pictures"]) <= set(found["outputs"])


def test_what_was_asked_for_was_made(found):
    assert found["files"] == ["quantized.safetensors", "with-lora.safetensors"]


def test_the_example_that_learns_fits_its_nodes(found):
    learns, adapter = found["personalize"]["VQPersonalize"], found["personalize"]["VQScaleAdapter"]
    assert learns["steps"] == 400 and learns["cfg"] == 5.0 and learns["finish"] is False
    assert adapter["adapter_name"][1] == 0 and adapter["strength"] == 1.0


def test_all_are_offered_with_a_thumbnail(found):
    assert sorted(found["templates"]["vq-pack"]) == [path.stem for path in EXAMPLES]
    assert set(found["thumbnails"].values()) == {200}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_files_are_whole(path):
    from PIL import Image

    workflow = json.loads(path.read_text(encoding="utf-8"))
    ids = {node["id"] for node in workflow["nodes"]}
    assert all(link[1] in ids and link[3] in ids for link in workflow["links"])
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size <= MOST_BYTES
    with Image.open(thumbnail) as opened:
        assert opened.format == "JPEG" and min(opened.size) >= 200
