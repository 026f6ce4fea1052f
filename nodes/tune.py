"""The node that lets a VQ file learn from its original: Tune (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from . import files, host, kept_files
from .calibrate import PRESETS, drawing, duration, prompt_stamp, read, telling
from .file_input import VQFileNode, file_input, file_name_input
from .learning import STOPPED, forget, last_picture, require_diffusers, showing
from .node_progress import NodeProgress
from .quantize import file_name_output
from .schema import make_schema
from .shown import picture_output

LOSSES, TRAJECTORIES = ("halves", "guided", "both"), ("teacher", "student", "mixed")
# Where each stage stands on the bar; guessed for half an hour of learning, not measured on a GPU.
SPANS = {"loading the file": (0.0, 0.01), "reading the model": (0.01, 0.02), "low-rank branches": (0.02, 0.03),
         "recording the teacher": (0.03, 0.2), "tuning": (0.2, 0.97), "saving": (0.97, 0.99),
         "writing the file": (0.99, 1.0)}
_ADVANCED = {"advanced": True}
_OPTIONAL = {"tuning_steps": 0, "rank": 0, "loss": LOSSES[0], "trajectory": TRAJECTORIES[0], "rate": 1.0, "batch": 8,
             "together": 0, "width": 1024, "height": 1024, "steps": 0, "cfg": 0.0, "first_seed": 0, "finish": False}


def advanced_inputs() -> list:
    """How it learns and draws, where the defaults do not fit."""
    return [
        io.Int.Input("tuning_steps", default=0, min=0, max=10**7, optional=True, extra_dict=_ADVANCED,
                     tooltip="Steps of learning instead of minutes. 0: as many as fit into the minutes."),
        io.Int.Input("rank", default=0, min=0, max=1024, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of a trained low-rank branch for every coded layer. It is stored: about 0.1 bits a "
                             "weight at 4. 0: none, the file keeps its size."),
        io.Combo.Input("loss", options=list(LOSSES), default=LOSSES[0], optional=True, extra_dict=_ADVANCED,
                       tooltip="halves: predictions with and without the prompt alike; guided: what guidance makes of "
                               "them; both: the mean."),
        io.Combo.Input("trajectory", options=list(TRAJECTORIES), default=TRAJECTORIES[0], optional=True,
                       extra_dict=_ADVANCED,
                       tooltip="Whose pictures it learns on: the original's, its own, or in turns. A linked model "
                               "teaches on its own only."),
        io.Float.Input("rate", default=1.0, min=0.001, max=1000.0, step=0.1, round=0.001, optional=True,
                       extra_dict=_ADVANCED, tooltip="Times the learning rates."),
        io.Int.Input("batch", default=8, min=1, max=4096, optional=True, extra_dict=_ADVANCED,
                     tooltip="Calls of the UNet a step."),
        io.Int.Input("together", default=0, min=0, max=4096, optional=True, extra_dict=_ADVANCED,
                     tooltip="Calls made at once; fewer take less memory. 0: one on a GPU, all on the CPU."),
        io.Int.Input("width", default=1024, min=64, max=4096, step=8, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pixels; those the model is used with."),
        io.Int.Input("height", default=1024, min=64, max=4096, step=8, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pixels; those the model is used with."),
        io.Int.Input("steps", default=0, min=0, max=1000, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of the sampler. 0: the preset's."),
        io.Float.Input("cfg", default=0.0, min=0.0, max=50.0, step=0.1, round=0.01, optional=True,
                       extra_dict=_ADVANCED, tooltip="Guidance; 1 leaves the empty prompt out. 0: the preset's."),
        io.Int.Input("first_seed", default=0, min=0, max=2**53, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of the first picture; the others follow."),
        io.Boolean.Input("finish", default=False, optional=True, extra_dict=_ADVANCED,
                         tooltip="Write the best that a stopped run has found, without another step."),
    ]


class VQTune(VQFileNode):
    """VQ file, its original and prompts in; a better VQ file of the same codes out."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQTune", display_name="Tune (VQ)", category="vqpack/quantize",
            description="Lets a VQ file learn to predict what its original predicts. Codes and size stay; scales, "
                        "tables, biases and norms are trained. The new file goes beside the old one. It takes all "
                        "memory while it runs; a stopped run goes on when it is queued again. Needs the package "
                        "diffusers.",
            search_aliases=["fine-tune", "finetune quantized", "distill", "recover quality", "PV-tuning", "QAT"],
            is_output_node=True,
            inputs=[
                file_input(),
                io.Combo.Input("teacher", options=files.source_files(),
                               tooltip="The checkpoint the VQ file was made from. Where a model is linked, that "
                                       "teaches instead."),
                io.String.Input("prompts", multiline=True, default="",
                                tooltip="What the model is used for, one prompt a line; a fifth only judges. Empty, "
                                        "and no file: a built-in list."),
                io.Combo.Input("prompt_file", options=kept_files.prompt_files(), default=kept_files.NONE,
                               tooltip="More prompts: a text with one a line, or a table with a column 'prompt', in "
                                       "ComfyUI's input folder."),
                io.Combo.Input("preset", options=list(PRESETS), default=PRESETS[0],
                               tooltip="Kind of model: decides steps, guidance, sampler and scheduler. A checkpoint "
                                       "does not say whether it is distilled."),
                io.Int.Input("count", default=32, min=0, max=100000,
                             tooltip="Prompts that are drawn, spread evenly over the list. 0: all."),
                io.Float.Input("minutes", default=30.0, min=0.01, max=100000.0, step=5.0, round=0.01,
                               tooltip="Of learning; drawing with the original comes before and is kept for the "
                                       "next time."),
                io.String.Input("name", default="",
                                tooltip="File name of the result, perhaps with a subfolder. Empty: the name of the "
                                        "VQ file and '-tuned'. An existing file is kept and the new one numbered."),
                file_name_input(),
                io.Model.Input("model", optional=True,
                               tooltip="Learn from this model instead, LoRA and merges included: the one Quantize "
                                       "Model (VQ) was given."),
                io.Clip.Input("clip", optional=True, tooltip="With a model: its text encoders."),
                *advanced_inputs(),
            ],
            outputs=[file_name_output(),
                     io.String.Output(display_name="text", tooltip="What was learned, in words."),
                     io.Image.Output(display_name="picture", tooltip="The error over the steps, and one prompt by the "
                                                                     "original, before and after.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, file, file_name=None, **others):
        """Run again when a file it reads changed or the result is gone; the host knows when what is linked changed."""
        inputs = _key(file, file_name, others)
        return [*inputs, files.lost_results(inputs)]

    @classmethod
    def execute(cls, file, teacher, prompts, prompt_file, preset, count, minutes, name="", file_name=None, model=None,
                clip=None, **advanced) -> io.NodeOutput:
        """-> the tuned file's name, text, picture [1, height, width, 3]"""
        require_diffusers("Tune (VQ)", "`vqpack tune`")
        given, path = _OPTIONAL | advanced, files.vq_path(file_name or file)
        shown, preview = NodeProgress(cls.hidden.unique_id, SPANS), host.sdxl_previewer()
        asked = {"prompts": read(prompts, prompt_file), "count": count or None, "finish": given["finish"],
                 "size": (given["height"], given["width"]), "tuning": _tuning(given, minutes),
                 **_drawing(preset, given, model)}
        looks, said = [], []
        host.free_models()
        try:
            result = _learned(path, _teacher(teacher, model, clip, path, shown), files.tuned_path(path, name or ""),
                              asked, shown, said, showing(shown, preview, looks))
        except BaseException as error:
            if isinstance(error, host.Interruption):
                shown.say(STOPPED)
            forget(error)
            raise
        finally:
            host.give_back()
        text = "\n".join([files.name_of(result.path), _outcome(result), *said])
        others = {"teacher": teacher, "prompts": prompts, "prompt_file": prompt_file, "preset": preset, "count": count,
                  "minutes": minutes, "name": name, **given}
        files.remember_result(_key(file, file_name, others), result.path)
        return picture_output(text, last_picture(result, looks, path, preview), shown, files.name_of(result.path))


def _learned(path, teacher, output, asked: dict, shown: NodeProgress, said: list[str], show):
    """vq_core.tuning.run.tune() out of the host's inference mode -> its result"""
    import torch

    from ..vq_core.progress import Progress
    from ..vq_core.tuning.run import tune

    with torch.inference_mode(False), torch.enable_grad(), host.as_interruption():
        return tune(path, teacher, output, device=str(host.compute_device()), threads=torch.get_num_threads(),
                    progress=Progress(shown, host.interrupted), tell=telling(shown, said), show=show, **asked)


def _teacher(name, model, clip, path, shown: NodeProgress):
    """The path of a checkpoint, or the linked model."""
    from ..vq_core.errors import PlanError

    if model is None:
        if clip is not None:
            raise PlanError("a CLIP is linked without a model: link the model too, or neither")
        return files.source_path(name)
    from .teacher import TuningTeacher

    picture = host.previewer(model)
    return TuningTeacher(model, clip, path.parent,
                         None if picture is None else lambda denoised: shown.preview(picture(denoised)))


def _tuning(given: dict, minutes: float):
    from ..vq_core.tuning.masters import Trained
    from ..vq_core.tuning.settings import Tuning

    steps = given["tuning_steps"] or None
    at_once = given["together"] or (given["batch"] if host.is_cpu(host.compute_device()) else 1)
    return Tuning(steps, None if steps else minutes, given["batch"], at_once, given["rate"], loss=given["loss"],
                  trajectory=given["trajectory"], seed=given["first_seed"], trained=Trained(rank=given["rank"]))


def _drawing(preset: str, given: dict, model) -> dict:
    """Arguments of tune() for a preset: samplers by the host's names for a model in the graph."""
    asked = {"steps": given["steps"] or None, "guidance": given["cfg"] or None, "seed": given["first_seed"]}
    if model is not None:
        return drawing(preset, {**asked, "sampler": None, "scheduler": None})
    return {"preset": "v" if preset == "v-prediction" else preset, **asked}


def _outcome(result) -> str:
    size, rate = result.path.stat().st_size / 1e9, result.bits["unet"]
    took = "was there already" if result.already_there else f"took {duration(result.seconds)}"
    return (f"{size:.2f} GB, {rate:.2f} bits per UNet weight, error on held-out prompts {result.gain:.2f} dB lower "
            f"after {result.steps} steps, {took}")


def _key(file, file_name, others: dict) -> list:
    """What tells one run of the node from another, links apart."""
    from ..vq_core.errors import FormatError

    stamps = []
    for find, name in ((files.vq_path, file_name or file), (files.source_path, others.get("teacher"))):
        try:
            stamps.append(files.stamp(find(name)))
        except (FormatError, OSError, TypeError):
            stamps.append([])              # by link, or a linked model teaches
    return ["VQTune", *stamps, prompt_stamp(others.get("prompt_file")),
            *(others.get(field) for field in ("prompts", "preset", "count", "minutes", "name")),
            *((_OPTIONAL | others)[field] for field in _OPTIONAL)]
