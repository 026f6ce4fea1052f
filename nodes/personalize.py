"""The node that teaches a VQ file a subject: Personalize (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from . import files, host, kept_files
from .calibrate import duration, telling
from .file_input import VQFileNode, file_input, file_name_input
from .learning import STOPPED, forget, last_picture, require_diffusers, showing
from .node_progress import NodeProgress
from .schema import make_schema
from .shown import picture_output

# Where each stage stands on the bar; guessed, not measured on a GPU.
SPANS = {"reading pictures": (0.0, 0.01), "loading the file": (0.01, 0.03), "encoding pictures": (0.03, 0.1),
         "tuning": (0.1, 0.99), "writing the file": (0.99, 1.0)}
TITLE = "Error on held-out pictures and noise"
_ADVANCED = {"advanced": True}
_OPTIONAL = {"experts": 2, "prior": "", "prior_count": 24, "rate": 1.0, "batch": 4, "together": 0, "width": 1024,
             "height": 1024, "preview_steps": 25, "cfg": 5.0, "first_seed": 0, "finish": False}


def advanced_inputs() -> list:
    """How it learns and draws, where the defaults do not fit."""
    return [
        io.Int.Input("experts", default=2, min=1, max=16, optional=True, extra_dict=_ADVANCED,
                     tooltip="Sets of scales, which take turns as the noise falls. An adapter of one can be merged "
                             "into a file."),
        io.String.Input("prior", default="", optional=True, extra_dict=_ADVANCED,
                        tooltip="What the subject is one of, 'a photo of a dog': pictures of it are drawn first and "
                                "learned along, so that it is not forgotten. Empty: none."),
        io.Int.Input("prior_count", default=24, min=2, max=10**4, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of these pictures."),
        io.Float.Input("rate", default=1.0, min=0.001, max=1000.0, step=0.1, round=0.001, optional=True,
                       extra_dict=_ADVANCED, tooltip="Times the learning rate."),
        io.Int.Input("batch", default=4, min=1, max=4096, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pictures a step."),
        io.Int.Input("together", default=0, min=0, max=4096, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pictures at once; fewer take less memory. 0: one on a GPU, all on the CPU."),
        io.Int.Input("width", default=1024, min=64, max=4096, step=8, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pixels; those the model is used with. Pictures keep their shape."),
        io.Int.Input("height", default=1024, min=64, max=4096, step=8, optional=True, extra_dict=_ADVANCED,
                     tooltip="Pixels; those the model is used with. Pictures keep their shape."),
        io.Int.Input("preview_steps", default=25, min=1, max=1000, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of the sampler that draws previews and prior pictures."),
        io.Float.Input("cfg", default=5.0, min=1.0, max=50.0, step=0.1, round=0.01, optional=True,
                       extra_dict=_ADVANCED, tooltip="Its guidance."),
        io.Int.Input("first_seed", default=0, min=0, max=2**53, optional=True, extra_dict=_ADVANCED,
                     tooltip="Of noise and previews."),
        io.Boolean.Input("finish", default=False, optional=True, extra_dict=_ADVANCED,
                         tooltip="Write the best that a stopped run has found, without another step."),
    ]


class VQPersonalize(VQFileNode):
    """VQ file and a subject's pictures in; a scale adapter out."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQPersonalize", display_name="Personalize (VQ)", category="vqpack/quantize",
            description="Teaches a VQ file a subject from 3 to 10 pictures: a small file of scales comes out, for VQ "
                        "Scale Adapter; the VQ file stays as it is. It takes all memory while it runs; a stopped run "
                        "goes on when it is queued again. Needs the package diffusers.",
            search_aliases=["dreambooth", "train subject", "TuneQDM", "fine-tune", "scale adapter"],
            is_output_node=True,
            inputs=[
                file_input(),
                io.Combo.Input("pictures", options=kept_files.picture_folders(), default=kept_files.NONE,
                               tooltip="A folder in ComfyUI's input folder with the subject's pictures. A text file "
                                       "beside a picture says what it shows; others get the prompt."),
                io.String.Input("prompt", multiline=True, default="a photo of sks dog",
                                tooltip="What the pictures show, with a rare word for the subject; previews draw it."),
                io.Int.Input("steps", default=400, min=1, max=10**6, tooltip="Of learning."),
                io.String.Input("name", default="",
                                tooltip="File name of the adapter, perhaps with a subfolder. Empty: the name of the VQ "
                                        "file and '-personal'. An existing file is kept and the new one numbered."),
                file_name_input(),
                *advanced_inputs(),
            ],
            outputs=[io.String.Output(display_name="adapter_name", tooltip="For VQ Scale Adapter."),
                     io.String.Output(display_name="text", tooltip="What was learned, in words."),
                     io.Image.Output(display_name="picture", tooltip="The error over the steps, and the prompt before "
                                                                     "and after.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, file, file_name=None, **others):
        """Run again when the file or a picture changed, or the result is gone."""
        inputs = _key(file, file_name, others)
        return [*inputs, files.lost_results(inputs)]

    @classmethod
    def execute(cls, file, pictures, prompt, steps, name="", file_name=None, **advanced) -> io.NodeOutput:
        """-> the adapter's name, text, picture [1, height, width, 3]"""
        require_diffusers("Personalize (VQ)", "`vqpack personalize`")
        given, path = _OPTIONAL | advanced, files.vq_path(file_name or file)
        folder = kept_files.picture_folder(pictures)
        output = kept_files.output_path(path, name or "", f"{path.stem}-personal", kept_files.ADAPTER)
        shown, preview = NodeProgress(cls.hidden.unique_id, SPANS), host.sdxl_previewer()
        looks, said = [], []
        host.free_models()
        try:
            result = _learned(path, folder, prompt.strip() or None, output, _asked(given, steps), shown, said,
                              showing(shown, preview, looks, TITLE))
        except BaseException as error:
            if isinstance(error, host.Interruption):
                shown.say(STOPPED)
            forget(error)
            raise
        finally:
            host.give_back()
        text = "\n".join([kept_files.name_of(result.path), _outcome(result), *said])
        others = {"pictures": pictures, "prompt": prompt, "steps": steps, "name": name, **given}
        files.remember_result(_key(file, file_name, others), result.path)
        return picture_output(text, last_picture(result, looks, path, preview, TITLE), shown,
                              kept_files.name_of(result.path))


def _learned(path, folder, prompt, output, asked: dict, shown: NodeProgress, said: list[str], show):
    """personalize() out of the host's inference mode -> its result"""
    import torch

    from ..vq_core.adapters.personalize import personalize
    from ..vq_core.progress import Progress

    with torch.inference_mode(False), torch.enable_grad(), host.as_interruption():
        return personalize(path, folder, output, prompt=prompt, device=str(host.compute_device()),
                           threads=torch.get_num_threads(), progress=Progress(shown, host.interrupted),
                           tell=telling(shown, said), show=show, **asked)


def _asked(given: dict, steps: int) -> dict:
    """Arguments of personalize()"""
    from ..vq_core.adapters.personalize import RATE, defaults
    from ..vq_core.adapters.settings import Scaling
    from ..vq_core.adapters.subject import Prior

    at_once = given["together"] or (given["batch"] if host.is_cpu(host.compute_device()) else 1)
    tuning = defaults(steps=steps, batch=given["batch"], together=at_once, rate=RATE * given["rate"],
                      seed=given["first_seed"], scaling=Scaling(given["experts"]))
    prior = Prior(given["prior"], given["prior_count"]) if given["prior"].strip() else None
    return {"tuning": tuning, "prior": prior, "size": (given["height"], given["width"]), "finish": given["finish"],
            "steps": given["preview_steps"], "guidance": given["cfg"], "seed": given["first_seed"]}


def _outcome(result) -> str:
    took = "was there already" if result.already_there else f"took {duration(result.seconds)}"
    return (f"{result.path.stat().st_size / 1e6:.1f} MB, error on held-out pictures {result.gain:.2f} dB lower after "
            f"{result.steps} steps, {took}")


def _key(file, file_name, others: dict) -> list:
    """What tells one run of the node from another, links apart."""
    from ..vq_core.errors import VQError

    stamps = []
    for find in (lambda: [files.vq_path(file_name or file)],
                 lambda: sorted(kept_files.picture_folder(others.get("pictures")).rglob("*"))):
        try:
            stamps.append([files.stamp(path) for path in find()])
        except (VQError, OSError, TypeError, AttributeError):
            stamps.append([])              # by link, or not there
    return ["VQPersonalize", *stamps, *(others.get(field) for field in ("pictures", "prompt", "steps", "name")),
            *((_OPTIONAL | others)[field] for field in _OPTIONAL)]
