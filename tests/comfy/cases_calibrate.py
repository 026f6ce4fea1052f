"""Calibrate (VQ) and Plan (VQ), observed inside a ComfyUI process: usage as cases.py, files of test_calibrate.py.

Every twelfth coded layer is looked at, and the model is not read for its checksum: seconds, not minutes.
"""
from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import unets
from cases_saving import fake  # starts ComfyUI

from cases import CASE, FILES  # isort: skip
import comfy.model_management  # isort: skip
import comfy.sd  # isort: skip
import comfy.utils  # isort: skip
import folder_paths  # isort: skip
import torch  # isort: skip
from vqpack.nodes import calibrate, files, host, kept_files, live, plan, teacher  # isort: skip
from vqpack.nodes.node_progress import NodeProgress  # isort: skip
from vqpack.nodes.quantize import VQQuantizeCheckpoint  # isort: skip
from vqpack.nodes.quantize_model import VQQuantizeModel  # isort: skip
from vqpack.vq_core.calibration import Calibration, run  # isort: skip
from vqpack.vq_core.source_model import ModelSource  # isort: skip

SIZES = {f"clip_{name}_model_config": {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 3,
                                       "num_attention_heads": width // 64} for name, width in (("l", 768), ("g", 1280))}
PROMPTS = "a red fox in the snow\ntwo cats\n\n"
EVERY, COLUMNS, MEMORY = 12, 600, 0.04    # every so many layers (also in test_calibrate.py), gigabytes: several sweeps
SHOWN: list = []
DRAWN: list[int] = []


def graph():
    """MODEL, CLIP and VAE of the checkpoint, in float32."""
    sd = comfy.utils.load_torch_file(str(FILES / "whole.safetensors"))
    return comfy.sd.load_state_dict_guess_config(sd, te_model_options={**SIZES, "dtype": torch.float32})[:3]


def hasten() -> None:
    """Fewer layers, smaller grams, no checksum; count what is drawn and shown."""
    files.register_folders()
    kept_files.register_folders()
    layers, settings, sample = teacher.LiveTeacher.layers, run.preset_settings, host.sample
    teacher.LiveTeacher.layers = lambda self: layers(self)[::EVERY]
    run.preset_settings = lambda *args, **given: settings(*args, **{**given, "full_columns": COLUMNS,
                                                                    "sensitivity_calls": given.get(
                                                                        "sensitivity_calls", 1)})
    ModelSource.sha256 = lambda self, progress=None: self.name.ljust(64, "0")
    live._narrow = lambda tensors: torch.float16
    encode = functools.cache(lambda clip, text, layer: host_encode(clip, text))
    host_encode, host.encode = host.encode, lambda clip, text: encode(clip, text, clip.layer_idx)
    host.sample = lambda *args, **named: (DRAWN.append(args[3]), sample(*args, **named))[1]
    host.previewer = lambda model: lambda latents: ("JPEG", tuple(latents.shape), 512)
    NodeProgress.preview = lambda self, picture: SHOWN.append(picture)
    NodeProgress.say = lambda self, text: SHOWN.append(text)


def node(cls, **inputs):
    """Run a node as the server does -> its outputs and what it shows"""
    cls.hidden = SimpleNamespace(unique_id="7")
    out = cls.execute(**inputs)
    return (*out.args, out.ui)


def calibrated(model, clip, **more):
    """Calibrate (VQ) with few small steps -> its outputs"""
    inputs = {"prompts": PROMPTS, "prompt_file": kept_files.NONE, "preset": "lightning", "count": 0, "memory_gb": 4.0,
              "name": "made", "width": 128, "height": 128, "steps": 2, "sampler_name": "euler", "scheduler": "normal",
              "timesteps": 2}
    return node(calibrate.VQCalibrate, model=model, clip=clip, **{**inputs, **more})


def kept(name: str):
    return kept_files.kept_path(name, None, "file")


def distances(name: str, other: str) -> list[float]:
    """Relative distance of each layer's gram in two calibrations."""
    with Calibration(kept(name)) as a, Calibration(kept(other)) as b:
        pairs = [(a.gram(key).blocks, b.gram(key).blocks) for key in a.layers]
        return [float((x - y).norm() / y.norm()) for x, y in pairs]


def refused(call, *arguments, **more) -> str:
    try:
        call(*arguments, **more)
        return "accepted"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def touched(model) -> dict:
    """What a run could leave behind in a model."""
    modules = list(model.model.diffusion_model.modules())
    return {"hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules),
            "forwards": sum("forward" in m.__dict__ for m in modules),
            "parameters": sorted({id(p) for m in modules for p in m._parameters.values() if p is not None}),
            "gradients": sum(p.requires_grad for m in modules for p in m._parameters.values() if p is not None)}


def case_all() -> dict:
    """In one process: starting one takes longer than most of it."""
    hasten()
    model, clip, _ = graph()
    found = case_node(model, clip) | {"changed": changed(model, clip, ("lora", "skip", "patch"))}
    return found | interrupted(model, clip) | trouble(model, clip)


def case_short() -> dict:
    """For an old host."""
    hasten()
    model, clip, _ = graph()
    return case_node(model, clip) | {"changed": changed(model, clip, ("lora",))}


def case_node(model, clip) -> dict:
    """A run, what it shows and leaves, and the same run again."""
    comfy.model_management.load_models_gpu([model])        # what loading does is the host's
    before, bar, real = touched(model), [], NodeProgress.__call__
    NodeProgress.__call__ = lambda self, *args: (real(self, *args), bar.append((args[0], self._shown)))[0]
    name, text, shown = calibrated(model, clip, memory_gb=MEMORY)
    NodeProgress.__call__ = real
    after = touched(model)
    pictures = [one for one in SHOWN if isinstance(one, tuple)]
    SHOWN.clear()
    DRAWN.clear()
    again = calibrated(model, clip, memory_gb=MEMORY)
    return {"name": name, "text": text, "ui": list(shown["text"]), "untouched": before == after,
            "left": [after["hooks"], after["forwards"]],
            "inference": torch.is_inference_mode_enabled(),
            "bar": [value for _, value in bar], "stages": list(dict.fromkeys(stage for stage, _ in bar)),
            "previews": [len(pictures), list(pictures[-1][1])], "again": [again[0], again[1], len(DRAWN)],
            "listed": kept_files.calibrations(), "parts": sorted(p.name for p in kept(name).parent.glob("*.parts"))}


def changed(model, clip, names: tuple[str, ...]) -> dict:
    """A LoRA, another CLIP layer, a patch of attention: each is seen, and nothing stays behind."""
    lora = comfy.utils.load_torch_file(str(FILES / "lora1.safetensors"))
    skipped, patched = clip.clone(), model.clone()
    skipped.clip_layer(-1)
    patched.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v * 3))
    ways = {"lora": (comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)[0], clip), "skip": (model, skipped),
            "patch": (patched, clip)}
    quick = {"sensitivity": False, "prompts": "a red fox", "steps": 1, "timesteps": 1}
    plain, found = calibrated(model, clip, name="plain", **quick)[0], {}
    for name in names:
        made, said, _ = calibrated(*ways[name], name=name, **quick)
        found[name] = {"apart": distances(made, plain), "text": said}
    return found


def interrupted(model, clip) -> dict:
    """Stopped while drawing, capturing and differentiating; each next run goes on; the file is a clean run's."""
    found, real, folder = {}, run.Progress.advance, kept("made.vqcal.safetensors").parent

    def stop_in(wanted: str, after: int):
        seen = []

        def advance(self, units=0.0, detail=None):
            seen.extend([units] * (self.stage == wanted and units > 0))
            if len(seen) == after and units:
                comfy.model_management.interrupt_current_processing()
            return real(self, units, detail)
        return advance

    for stage, after in (("drawing", 3), ("capturing", 1), ("sensitivities", 1)):
        run.Progress.advance = stop_in(stage, after)
        DRAWN.clear()
        end = refused(calibrated, model, clip, name="stopped")
        left = touched(model)
        found[stage] = [end, sum(steps > 1 for steps in DRAWN), left["hooks"] + left["forwards"],
                        sorted(p.name for p in folder.glob("stopped*"))]
    run.Progress.advance = real
    DRAWN.clear()
    name = calibrated(model, clip, name="stopped")[0]
    drawn = sum(steps > 1 for steps in DRAWN)
    return {"interrupted": found, "resumed": [drawn, kept(name).read_bytes() == kept(
        "made.vqcal.safetensors").read_bytes()], "parts_left": sorted(p.name for p in folder.glob("*.parts"))}


def trouble(model, clip) -> dict:
    """One sentence each."""
    inputs = folder_paths.get_input_directory()
    with open(f"{inputs}/empty.txt", "w", encoding="utf-8") as file:
        file.write("\n\n")
    found = {"empty": refused(calibrated, model, clip, prompts="", prompt_file="empty.txt"),
             "gone": refused(calibrated, model, clip, prompt_file="gone.txt"),
             "no_clip": refused(calibrated, model, None), "outside": refused(calibrated, model, clip, name="../x")}
    for name, shapes in (("refiner", unets.refiner_like()), ("inpaint", unets.vega_like(9))):
        found[name] = refused(calibrated, stand_in(shapes), clip)
    for name, left in (("no_g", "clip_l"), ("no_l", "clip_g")):
        weights = {f"{left}.transformer.text_model.final_layer_norm.weight": (8,)}
        found[name] = refused(calibrated, model, SimpleNamespace(patcher=fake(weights)))
    hooked = model.clone()
    hooked.forced_hooks = SimpleNamespace()
    found["hooked"] = refused(calibrated, hooked, clip)
    found["memory"] = refused(calibrated, model, clip, prompts="x", name="x", memory_gb=0.001)
    base = {"target": plan.BITS, "amount": 3.0, "method": "uniform", "text_encoder_bits": "16", "checkpoint": "?"}
    few = {"calibration_file": "made.vqcal.safetensors"}                   # knows every twelfth layer only
    found["other_base_plan"] = refused(node, plan.VQPlan, model=model, **base, **few)
    coding = {"bits": 3.0, "method": "uniform", "text_encoder_bits": "16", "name": "x"}
    found["other_base_quantize"] = refused(node, VQQuantizeModel, model=model, **coding, **few)
    found["lost"] = refused(node, VQQuantizeModel, model=model, **coding, calibration="lost.vqcal.safetensors")
    found["no_plan"] = refused(node, VQQuantizeModel, model=model, **coding, plan_file="made.vqcal.safetensors")
    found["too_small"] = refused(node, plan.VQPlan, model=model, **{**base, "amount": 0.1})
    found["clip_alone"] = refused(node, plan.VQPlan, clip=clip, **base)
    found["left_results"] = sorted(p.name for p in (FILES / "base" / "models").rglob("x*"))
    return {"trouble": found, "planned": planned(model), "schemas": schemas()}


def planned(model) -> dict:
    """A plan of the model in the graph; the same once more is the same file, another gets a number."""
    base = {"checkpoint": "?", "target": plan.BITS, "amount": 3.2, "method": "uniform", "text_encoder_bits": "16",
            "name": "mine", "model": model}
    name, text, picture, shown = node(plan.VQPlan, **base)
    data = json.loads(kept(name).read_text(encoding="utf-8"))
    again, other = plan.write(kept(name), data), plan.write(kept(name), {**data, "seen": 1})
    return {"names": [name, again.name, other.name], "text": text, "listed": kept_files.plans(),
            "picture": [list(picture.shape), float(picture.std())], "ui": sorted(shown),
            "kinds": sorted({spec["kind"] for spec in data["layers"].values()}),
            "rates": sorted({spec.get("bits", 0) for spec in data["layers"].values()})}


def stand_in(shapes: dict):
    """A MODEL that has only these weights."""
    model = fake({key.removeprefix("model."): shape for key, shape in shapes.items()})
    model.model.model_sampling = None
    return model


def schemas() -> dict:
    return {cls.__name__: [[i.id for i in cls.define_schema().inputs], [o.io_type for o in cls.define_schema().outputs]]
            for cls in (calibrate.VQCalibrate, plan.VQPlan, VQQuantizeCheckpoint)}


if __name__ == "__main__":
    with torch.inference_mode():
        result = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(result))
