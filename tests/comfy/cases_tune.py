"""Tune (VQ), observed inside a ComfyUI process: usage as cases.py, files of test_tune_node.py.

Small pictures, few steps; diffusers gets the configuration of the short text encoders and a VAE of its own.
"""
from __future__ import annotations

import gc
import json
import shutil
import weakref

from cases_calibrate import PROMPTS, SHOWN, graph, node, refused  # starts ComfyUI

from cases import CASE, FILES, apart  # isort: skip
import comfy.model_management  # isort: skip
import comfy.sample  # isort: skip
import folder_paths  # isort: skip
import torch  # isort: skip
from vqpack.nodes import files, host, kept_files, learning, live, loading, tune  # isort: skip
from vqpack.nodes.node_progress import NodeProgress  # isort: skip
from vqpack.nodes.tune import VQTune  # isort: skip
from vqpack.vq_core import pipeline  # isort: skip
from vqpack.vq_core.configs import read_config  # isort: skip
from vqpack.vq_core.container import Reader  # isort: skip
from vqpack.vq_core.layout import Kind  # isort: skip
from vqpack.vq_core.source_model import ModelSource  # isort: skip
from vqpack.vq_core.tuning import lessons, loop, student, teacher  # isort: skip
from vqpack.vq_core.weight import section_views  # isort: skip

CODED = "coarse.safetensors"
BARS: list = []
ALIVE: list[weakref.ref] = []              # everything large that a job makes
DRAWN: list[int] = []                      # pictures recorded


def hasten() -> None:
    """Files that diffusers lacks; note what is shown, recorded and made."""
    files.register_folders()
    kept_files.register_folders()
    for name in ("text_encoder", "text_encoder_2"):
        config = read_config(name)
        (FILES / name).mkdir(exist_ok=True)
        (FILES / name / "config.json").write_text(json.dumps(
            {**config, "num_hidden_layers": 3, "intermediate_size": config["hidden_size"]}))
    teacher.find_configs = lambda *_: FILES
    pipeline._Loader.vae = lambda self: small_vae()
    ModelSource.sha256 = lambda self, progress=None: self.name.ljust(64, "0")
    live._narrow = lambda tensors: torch.float16
    host.sdxl_previewer = lambda: lambda latents: ("JPEG", host_picture(latents), 512)
    NodeProgress.preview = lambda self, picture: SHOWN.append(picture)
    NodeProgress.say = lambda self, text: SHOWN.append(text)
    called, saved = NodeProgress.__call__, lessons.Lessons._save
    NodeProgress.__call__ = lambda self, *args: (called(self, *args), BARS.append((args[0], self._shown)))[0]
    lessons.Lessons._save = lambda self, index, *rest: (DRAWN.append(index), saved(self, index, *rest))[1]
    prepared, started = student.Student.prepare, loop.Loop.__init__

    def prepare(self):
        prepared(self)
        ALIVE.extend(map(weakref.ref, (self.unet, *self.unet.parameters())))

    def start(self, *args, **named):
        started(self, *args, **named)
        ALIVE.extend(map(weakref.ref, (self, self.lessons, *self.best.values())))
    student.Student.prepare, loop.Loop.__init__ = prepare, start


def host_picture(latents):
    from PIL import Image

    pixels = latents[0, :3].movedim(0, -1).clamp(0, 1).mul(255).byte()
    return Image.fromarray(pixels.numpy())


def small_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
                         up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8)


def tuned(**more):
    """Tune (VQ) with few steps on small pictures -> its outputs"""
    inputs = {"file": CODED, "teacher": "whole.safetensors", "prompts": PROMPTS, "prompt_file": kept_files.NONE,
              "preset": "lightning", "count": 0, "minutes": 30.0, "tuning_steps": 4, "rate": 2.0, "batch": 2,
              "width": 64, "height": 64, "steps": 2}
    return node(VQTune, **{**inputs, **more})


def left() -> int:
    """How much of all jobs so far is still there."""
    gc.collect()
    return sum(ref() is not None for ref in ALIVE)


def folder():
    return files.vq_path(CODED).parent


def drawn_by(name: str) -> torch.Tensor:
    """Two steps with the loader's model -> latents"""
    model = loading.load_diffusion_model(files.vq_path(name))
    empty = [[torch.ones([1, 77, 2048]), {"pooled_output": torch.zeros([1, 1280])}]]
    latent = torch.zeros([1, 4, 8, 8])
    noise = comfy.sample.prepare_noise(latent, 1)
    return comfy.sample.sample(model, noise, 2, 1.0, "euler", "normal", empty, empty, latent, seed=1, disable_pbar=True)


def kinds(a: str, b: str) -> dict[str, list[int]]:
    """Section of a coded UNet weight -> in how many of them it is the same, in how many not."""
    found: dict[str, list[int]] = {}
    with Reader(files.vq_path(a)) as one, Reader(files.vq_path(b)) as other:
        for key in one.coded_keys():
            views = [section_views(w.layout, 0, w.blob) for w in (one.weight(key), other.weight(key))]
            for kind in (kind for kind in views[0] if key.startswith("model.")):
                count = found.setdefault(Kind(kind).name, [0, 0])
                count[not torch.equal(views[0][kind], views[1][kind])] += 1
    return found


def history(name: str) -> dict:
    with Reader(files.vq_path(name)) as reader:
        return json.loads(reader.metadata["vqpack.settings"])["tuning"]


def case_all() -> dict:
    """In one process: starting one takes longer than most of it."""
    hasten()
    return case_node() | {"again": again()} | {"stopped": stopped()} | {"graph": by_graph()} | {"trouble": trouble()}


def case_short() -> dict:
    """For an old host."""
    hasten()
    return case_node()


def case_node() -> dict:
    """A run, what it shows, makes and leaves; a model of the same file was loaded before, and one is loaded after."""
    before = drawn_by(CODED)               # tables and rotations are cached in the host's inference mode
    name, text, picture, shown = tuned()
    modes = [torch.is_inference_mode_enabled(), torch.is_grad_enabled()]
    pictures = [one for one in SHOWN if isinstance(one, tuple)]
    return {"name": name, "text": text, "ui": sorted(shown), "modes": modes, "left": left(), "made": len(ALIVE),
            "picture": [list(picture.shape), float(picture.std())], "kinds": kinds(CODED, name),
            "apart": apart(drawn_by(name), before), "same": apart(drawn_by(CODED), before), "facts": history(name),
            "stages": list(dict.fromkeys(stage for stage, _ in BARS)), "bar": [value for _, value in BARS],
            "previews": [len(pictures), list(pictures[-1][1].size)], "listed": files.vq_files(),
            "files": sorted(path.name for path in folder().iterdir()),
            "bytes": [files.vq_path(one).stat().st_size for one in (CODED, name)]}


def again() -> list:
    """The same run once more."""
    DRAWN.clear()
    name, text, picture, _ = tuned()
    return [name, text.splitlines()[1], list(picture.shape), len(DRAWN)]


def stopped() -> dict:
    """Stopped while recording and while learning; then finished where it was stopped, and to the end."""
    found = {}
    clean = files.vq_path("coarse-tuned.safetensors").read_bytes()
    for stage, count in (("recording the teacher", 3), ("tuning", 2)):
        with stop_in(stage, count):
            DRAWN.clear()
            SHOWN.clear()
            try:
                tuned(name="sub/stopped")
                end = None
            except BaseException as error:
                end = error
            found[stage] = [type(end).__name__, len(DRAWN), left(), tune.STOPPED in SHOWN,
                            sorted(path.suffix for path in (folder() / "sub" / "stopped.tuning").rglob("*.npz")
                                   if path.parent.name == "stopped.tuning")]
    shutil.copytree(folder() / "sub" / "stopped.tuning", folder() / "finished.tuning")
    name, *_ = tuned(name="finished", finish=True)
    found["finished"] = [name, history(name)["of"], kinds(CODED, name)["codes"][1]]
    DRAWN.clear()
    name, text, *_ = tuned(name="sub/stopped")
    found["resumed"] = [name, "Going on after step" in text, len(DRAWN), files.vq_path(name).read_bytes() == clean,
                        sorted(path.name for path in (folder() / "sub").iterdir())]
    return found


class stop_in:
    """Press stop at so many advances of a stage."""

    def __init__(self, stage: str, count: int):
        self.stage, self.count = stage, count

    def __enter__(self):
        real, seen = loop.Progress.advance, []
        self.real = real

        def advance(progress, units=0.0, detail=None):
            seen.extend([units] * (progress.stage == self.stage and units > 0))
            if len(seen) == self.count and units:
                comfy.model_management.interrupt_current_processing()
            return real(progress, units, detail)
        loop.Progress.advance = advance

    def __exit__(self, *_):
        loop.Progress.advance = self.real


def by_graph() -> dict:
    """The original as MODEL and CLIP: the same calls, the same errors; and stopped while the host draws."""
    model, clip, _ = graph()
    name, text, *_ = tuned(name="graph", model=model, clip=clip)
    ended = {"student": refused(tuned, name="x", model=model, clip=clip, trajectory="student"),
             "no_clip": refused(tuned, name="x", model=model), "clip_alone": refused(tuned, name="x", clip=clip)}
    parameters = [p for p in model.model.diffusion_model.parameters()]
    return {"facts": history(name), "text": text, "left": left(), "ended": ended,
            "untouched": not any(p.requires_grad for p in parameters)}


def trouble() -> dict:
    """One sentence each, and nothing left behind."""
    inputs = folder_paths.get_input_directory()
    with open(f"{inputs}/empty.txt", "w", encoding="utf-8") as file:
        file.write("\n\n")
    found = {"empty": refused(tuned, name="x", prompts="", prompt_file="empty.txt"),
             "outside": refused(tuned, name="../x"), "finish": refused(tuned, name="x", finish=True),
             "other": refused(tuned, name="x", teacher="refiner.safetensors"),
             "v": refused(tuned, name="x", teacher="v.safetensors"),
             "gone": refused(tuned, name="x", teacher="gone.safetensors"),
             "ordinary": refused(tuned, name="x", file="whole.safetensors")}
    real = learning.importlib.util.find_spec
    learning.importlib.util.find_spec = lambda name: None
    found["no_diffusers"] = refused(tuned, name="x")
    learning.importlib.util.find_spec = real
    found["left"] = sorted(path.name for path in (FILES / "base" / "models").rglob("x*"))
    return found | {"schema": [[i.id for i in VQTune.define_schema().inputs],
                               [o.io_type for o in VQTune.define_schema().outputs]]}


if __name__ == "__main__":
    with torch.inference_mode():
        result = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(result))
