"""The node that draws prompts and notes what layers see: Calibrate (VQ)."""
from __future__ import annotations

import logging
import re

from comfy_api.latest import io

from . import files, host, kept_files
from .node_progress import NodeProgress
from .schema import make_schema
from .shown import text_output

PRESETS = ("base", "v-prediction", "lcm", "lightning", "hyper", "turbo")
FROM_PRESET = "(preset)"
# Where each stage stands on the bar; shares of SDXL's time on a GPU are not measured.
SPANS = {"reading the model": (0.0, 0.03), "loading the model": (0.03, 0.03), "drawing": (0.03, 0.45),
         "capturing": (0.45, 0.85), "sensitivities": (0.85, 0.99), "writing the file": (0.99, 1.0)}
_SWEEP = re.compile(r"(.*), sweep (\d+) of (\d+)")
_ADVANCED = {"advanced": True}
_OPTIONAL = {"width": 1024, "height": 1024, "steps": 0, "cfg": 0.0, "sampler_name": FROM_PRESET,
             "scheduler": FROM_PRESET, "timesteps": 8, "first_seed": 0, "sensitivity": True}


def advanced_inputs() -> list:
    """How it draws, where the preset does not fit."""
    return [
        io.Int.Input("width", default=1024, min=64, max=4096, step=8, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pixels; those the model is used with."),
        io.Int.Input("height", default=1024, min=64, max=4096, step=8, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pixels; those the model is used with."),
        io.Int.Input("steps", default=0, min=0, max=1000, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of the sampler. 0: the preset's."),
        io.Float.Input("cfg", default=0.0, min=0.0, max=50.0, step=0.1, round=0.01, optional=True,
                       extra_dict=_ADVANCED, tooltip="Guidance; 1 leaves the empty prompt out. 0: the preset's."),
        io.Combo.Input("sampler_name", options=[FROM_PRESET, *host.samplers()], default=FROM_PRESET, optional=True,
                       extra_dict=_ADVANCED, tooltip="As in KSampler."),
        io.Combo.Input("scheduler", options=[FROM_PRESET, *host.schedulers()], default=FROM_PRESET, optional=True,
                       extra_dict=_ADVANCED, tooltip="As in KSampler."),
        io.Int.Input("timesteps", default=8, min=1, max=1000, optional=True, extra_dict=_ADVANCED,
                     tooltip="Steps looked at in each picture, spread over the trajectory."),
        io.Int.Input("first_seed", default=0, min=0, max=2**53, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of the first picture; the others follow."),
        io.Boolean.Input("sensitivity", default=True, optional=True, extra_dict=_ADVANCED,
                         tooltip="Also measure what errors of each layer do to the picture, for Plan (VQ). Needs more "
                                 "memory for a while."),
    ]


class VQCalibrate(io.ComfyNode):
    """MODEL, CLIP and prompts in, calibration file out."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQCalibrate", display_name="Calibrate (VQ)", category="vqpack/quantize",
            description="Draws prompts with the model in the graph, LoRA and patches included, and notes what its "
                        "layers get as inputs. Quantizing for these inputs saves about a bit a weight. The result goes "
                        "to the folder vqpack in models; it serves every size, and fine-tunes of the same model. A "
                        "stopped run goes on when it is queued again.",
            search_aliases=["calibration", "imatrix", "importance matrix", "GPTQ", "activation statistics"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model, with LoRA and merges as they are here."),
                io.Clip.Input("clip", tooltip="Its text encoders, with their LoRA."),
                io.String.Input("prompts", multiline=True, default="",
                                tooltip="What the model is used for, one prompt a line; as various as your use. Empty, "
                                        "and no file: a built-in list."),
                io.Combo.Input("prompt_file", options=kept_files.prompt_files(), default=kept_files.NONE,
                               tooltip="More prompts: a text with one a line, or a table with a column 'prompt', in "
                                       "ComfyUI's input folder."),
                io.Combo.Input("preset", options=list(PRESETS), default=PRESETS[0],
                               tooltip="Kind of model: decides steps, guidance, sampler and scheduler. A checkpoint "
                                       "does not say whether it is distilled."),
                io.Int.Input("count", default=32, min=0, max=100000,
                             tooltip="Prompts that are drawn, spread evenly over the list. 0: all."),
                io.Float.Input("memory_gb", default=8.0, min=0.1, max=1024.0, step=0.5, round=0.001,
                               tooltip="For what is gathered, on the device that draws. Less memory takes more sweeps, "
                                       "not more pictures; SDXL gathers 24 GB in all."),
                io.String.Input("name", default="",
                                tooltip="File name of the result, perhaps with a subfolder. Empty: the name of the "
                                        "model's own file. An existing file is kept and the new one numbered."),
                *advanced_inputs(),
            ],
            outputs=[io.String.Output(display_name="calibration_file",
                                      tooltip="Name of the calibration, for the inputs of that name."),
                     io.String.Output(display_name="text", tooltip="What was done, in words.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, prompts="", prompt_file=None, name="", **others):
        """Run again when the prompts changed or the result is gone; the host knows when what is linked changed."""
        return [prompt_stamp(prompt_file), files.lost_results(_key(prompts, prompt_file, name, _OPTIONAL | others))]

    @classmethod
    def execute(cls, model, clip, prompts, prompt_file, preset, count, memory_gb, name="", width=1024, height=1024,
                steps=0, cfg=0.0, sampler_name=FROM_PRESET, scheduler=FROM_PRESET, timesteps=8, first_seed=0,
                sensitivity=True) -> io.NodeOutput:
        """-> the calibration's name, text"""
        import torch

        from ..vq_core.calibration.run import calibrate
        from ..vq_core.progress import Progress
        from .live import source_file
        from .teacher import LiveTeacher

        shown, picture = NodeProgress(cls.hidden.unique_id, SPANS), host.previewer(model)
        preview = None if picture is None else lambda denoised: shown.preview(picture(denoised))
        origin = source_file(model)
        output = kept_files.output_path(origin, name or "", origin.stem if origin else "model", kept_files.CALIBRATION)
        teacher = LiveTeacher(model, clip, output.parent, preview)
        options = drawing(preset, {"steps": steps or None, "guidance": cfg or None, "sampler": chosen(sampler_name),
                                   "scheduler": chosen(scheduler), "timesteps": timesteps, "seed": first_seed})
        said: list[str] = []
        with host.as_interruption():
            result = calibrate(teacher, output, prompts=read(prompts, prompt_file), count=count or None,
                               size=(height, width), memory=int(memory_gb * 1e9), sensitivity=sensitivity,
                               threads=torch.get_num_threads(), progress=Progress(listener(shown), host.interrupted),
                               tell=telling(shown, said), **options)
        text = "\n".join([result.path.name, f"{result.path.stat().st_size / 1e9:.2f} GB, "
                          + ("was there already" if result.already_there else f"took {duration(result.seconds)}"),
                          *said])
        others = {"preset": preset, "count": count, "memory_gb": memory_gb, "width": width, "height": height,
                  "steps": steps, "cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler,
                  "timesteps": timesteps, "first_seed": first_seed, "sensitivity": sensitivity}
        files.remember_result(_key(prompts, prompt_file, name, others), result.path)
        return text_output(text, shown, kept_files.name_of(result.path), text)


def telling(shown: NodeProgress, said: list[str]):
    """Sentences, memory first of all, as they come: in the node, in the log and for its text."""
    def tell(note: str) -> None:
        said.append(note)
        shown.say("\n".join(said))
        logging.getLogger(__name__).info("vqpack: %s", note)

    return tell


def drawing(preset: str, given: dict) -> dict:
    """Arguments of calibrate() for a preset of the node: samplers and schedules by the host's names."""
    from ..vq_core.calibration.settings import PRESETS as KNOWN

    name = "v" if preset == "v-prediction" else preset
    known = KNOWN[name]
    sampler = "euler" if known["sampler"] == "model" else known["sampler"]
    scheduler = known["scheduler"] if known["scheduler"] != "model" else "sgm_uniform" if name == "lcm" else "normal"
    return {"preset": name, **given, "sampler": given["sampler"] or sampler,
            "scheduler": given["scheduler"] or scheduler}


def chosen(name: str) -> str | None:
    """A widget's value; None: the preset decides."""
    return None if name == FROM_PRESET else name


def read(prompts: str, prompt_file: str | None) -> list[str] | str:
    """The prompts of the text and of the file; "built-in" where there is neither. FormatError for an empty file."""
    from ..vq_core.calibration.run import LONGEST_PROMPT
    from ..vq_core.compare.prompts import BUILT_IN, MAX_FILE_BYTES, read_prompts

    lines = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
    if prompt_file and prompt_file != kept_files.NONE:
        path = kept_files.prompt_path(prompt_file)
        lines += read_prompts(path, MAX_FILE_BYTES, longest=LONGEST_PROMPT).texts
    return lines or BUILT_IN


def listener(shown: NodeProgress):
    """Progress of several sweeps as one stage of the bar."""
    def tell(stage: str, done: float, total: float, detail: str, seconds_left: float | None) -> None:
        sweep = _SWEEP.fullmatch(stage)
        if sweep and total:
            number, count = int(sweep[2]), int(sweep[3])
            shown(sweep[1], (number - 1 + done / total) / count, 1.0, f"sweep {number} of {count}", seconds_left)
        else:
            shown(stage, done, total, detail, seconds_left)

    return tell


def duration(seconds: float) -> str:
    """`2:05`"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def prompt_stamp(prompt_file: str | None) -> list:
    """What changes when the chosen file of prompts does; [] where none is."""
    from ..vq_core.errors import FormatError

    try:
        return files.stamp(kept_files.prompt_path(prompt_file)) if prompt_file not in (None, kept_files.NONE) else []
    except (FormatError, OSError):
        return []


def _key(prompts, prompt_file, name, others: dict) -> list:
    """What tells one run of the node from another, models apart."""
    return ["VQCalibrate", prompts, prompt_file, name,
            *(others.get(field) for field in ("preset", "count", "memory_gb", *_OPTIONAL))]
