"""Personalize (VQ), observed inside a ComfyUI process: usage as cases.py, files of test_personalize_node.py."""
from __future__ import annotations

import json

import cases_tune
from cases_calibrate import SHOWN, node, refused  # starts ComfyUI
from cases_tune import BARS, hasten, left

from cases import CASE  # isort: skip
import comfy.model_management  # isort: skip
import torch  # isort: skip
from vqpack.nodes import files, kept_files, loading, personalize, scale_adapter  # isort: skip
from vqpack.nodes.personalize import VQPersonalize  # isort: skip
from vqpack.vq_core.adapters.file import load_adapter  # isort: skip

PROMPT = "a photo of sks cat"


def personalized(**more):
    """The node with few steps on small pictures -> its outputs"""
    inputs = {"file": "full.safetensors", "pictures": "subject", "prompt": PROMPT, "steps": 4, "rate": 3.0, "batch": 2,
              "width": 64, "height": 64, "preview_steps": 2, "cfg": 3.0}
    return node(VQPersonalize, **{**inputs, **more})


def case_all() -> dict:
    """A run, the same again, its adapter in a graph, a stopped one, bad input: in one process."""
    hasten()
    modes = [torch.is_inference_mode_enabled()]
    name, text, picture, ui = personalized()
    modes += [torch.is_inference_mode_enabled()]
    adapter = load_adapter(kept_files.kept_path(name, None, "adapter"))
    bars, shown = list(BARS), len([one for one in SHOWN if not isinstance(one, str)])
    model = loading.load_diffusion_model(files.vq_path("full.safetensors"))
    scaled = scale_adapter.VQScaleAdapter.execute(model=model, adapter=kept_files.NONE, strength=1.0,
                                                  adapter_name=name).args[0]
    drawn = [cases_tune_drawn(one) for one in (model, scaled)]
    again = personalized()
    return {"name": name, "text": text, "picture": list(picture.shape), "ui": sorted(ui), "modes": modes,
            "left": left(), "stages": list(dict.fromkeys(stage for stage, _ in bars)), "bar": [at for _, at in bars],
            "previews": shown, "facts": {key: adapter.facts[key] for key in ("of", "before", "after", "learned_from")},
            "experts": adapter.experts, "listed": kept_files.adapters(), "folders": kept_files.picture_folders(),
            "apart": float((drawn[0] - drawn[1]).norm() / drawn[0].norm()), "again": [again[0], again[1]],
            "stopped": stopped(), "trouble": trouble(),
            "schema": [[entry.id for entry in VQPersonalize.define_schema().inputs],
                       [entry.io_type for entry in VQPersonalize.define_schema().outputs]]}


def cases_tune_drawn(model) -> torch.Tensor:
    """Two steps -> latents"""
    import comfy.sample

    empty = [[torch.ones([1, 77, 2048]), {"pooled_output": torch.zeros([1, 1280])}]]
    latent = torch.zeros([1, 4, 8, 8])
    noise = comfy.sample.prepare_noise(latent, 1)
    return comfy.sample.sample(model, noise, 2, 1.0, "euler", "normal", empty, empty, latent, seed=1, disable_pbar=True)


def stopped() -> dict:
    """The user stops it while it learns; queued again it goes on."""
    asked, flag = cases_tune.host.interrupted, []

    def interrupted() -> bool:
        learning = BARS and BARS[-1][0] == "tuning"
        flag.append(learning)
        if learning and flag.count(True) > 3:
            comfy.model_management.interrupt_current_processing(True)
        return asked()
    BARS.clear()
    personalize.host.interrupted = interrupted
    said = refused(personalized, name="sub/stopped", steps=6)
    personalize.host.interrupted = asked
    comfy.model_management.interrupt_current_processing(False)
    folder = kept_files.kept_path("one", "full-personal.vqscales.safetensors", "x").parent / "sub"
    kept = sorted(path.suffix for path in (folder / "stopped.vqscales.tuning").iterdir() if path.is_file())
    name, text, *_ = personalized(name="sub/stopped", steps=6)
    return {"said": said, "kept": kept, "name": name, "text": text, "left": left()}


def trouble() -> dict:
    """One sentence each."""
    return {"none": refused(personalized, pictures=kept_files.NONE), "gone": refused(personalized, pictures="gone"),
            "outside": refused(personalized, pictures="../subject"), "name": refused(personalized, name="../x"),
            "finish": refused(personalized, finish=True, name="never"),
            "empty": refused(personalized, pictures="empty"),
            "unet": refused(personalized, file="unet.safetensors")}


if __name__ == "__main__":
    with torch.inference_mode():
        result = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(result))
