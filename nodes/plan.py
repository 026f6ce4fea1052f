"""The node that chooses each layer's bits: Plan (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from . import files, host, kept_files
from .node_progress import NodeProgress
from .quantize import TEXT_ENCODER_BITS
from .schema import make_schema
from .shown import picture_output

SIZE, BITS = "size in GB", "bits a weight"
METHODS = ("trellis", "palette", "uniform")


class VQPlan(io.ComfyNode):
    """Checkpoint or model, size and calibration in; plan file and its picture out."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQPlan", display_name="Plan (VQ)", category="vqpack/quantize",
            description="Chooses the bits of every layer, so that a file of this size loses least. Layers differ by "
                        "orders of magnitude in what they cost the picture: with a calibration that is measured, "
                        "without one it is a guess. The plan goes to the folder vqpack in models; it is text and may "
                        "be edited.",
            search_aliases=["bit allocation", "mixed precision", "target size", "sensitivity", "layer bits"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("checkpoint", options=files.source_files(),
                               tooltip="What will be quantized. Where a model is linked, it is planned instead."),
                io.Combo.Input("target", options=[SIZE, BITS], default=SIZE,
                               tooltip="What the amount limits: the whole file, or everything stored for the UNet's "
                                       "coded layers."),
                io.Float.Input("amount", default=1.2, min=0.001, max=100.0, step=0.05, round=0.001,
                               tooltip="Gigabytes (decimal) or bits a weight, at most."),
                io.Combo.Input("method", options=list(METHODS), default=METHODS[0],
                               tooltip="How weights are coded. trellis: 1 to 4 bits in halves, 5, 6, palettes of 8, "
                                       "or kept; the others: 2 to 8 bits."),
                io.Combo.Input("text_encoder_bits", options=list(TEXT_ENCODER_BITS), default=TEXT_ENCODER_BITS[0],
                               tooltip="Bits per text encoder weight. 16 keeps the text encoders as they are."),
                io.String.Input("name", default="",
                                tooltip="File name of the plan, perhaps with a subfolder. Empty: the checkpoint's name "
                                        "and the amount. Another plan of this name is kept and the new one numbered."),
                *kept_files.calibration_inputs(),
                io.Combo.Input("sensitivity", options=kept_files.sensitivities(), default=kept_files.NONE,
                               optional=True, tooltip="What errors of each layer cost, measured on another fine-tune "
                                                      "of the same model; a plan needs no calibration then."),
                io.Boolean.Input("export_sensitivity", default=False, optional=True, extra_dict={"advanced": True},
                                 tooltip="Also write a sensitivity file, for plans of other fine-tunes."),
                io.Model.Input("model", optional=True, tooltip="Plan this model, with its LoRA and merges, instead of "
                                                               "the checkpoint."),
                io.Clip.Input("clip", optional=True,
                              tooltip="With a model: its text encoders, which take their part of the size."),
                io.Vae.Input("vae", optional=True, tooltip="With a model: its VAE, which takes its part of the size."),
            ],
            outputs=[io.String.Output(display_name="plan_file", tooltip="Name of the plan, for Quantize (VQ)."),
                     io.String.Output(display_name="text", tooltip="What the plan holds and promises, in words."),
                     io.Image.Output(display_name="picture", tooltip="Bits of every layer in network order.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, checkpoint=None, target=SIZE, amount=0.0, method="", text_encoder_bits="", name="",
                           calibration=None, sensitivity=None, export_sensitivity=False, **linked):
        """Run again when a file it reads changed, or when the plan is gone."""
        inputs = _inputs(checkpoint, target, amount, method, text_encoder_bits, name, calibration, sensitivity,
                         export_sensitivity)
        return [*inputs, files.lost_results(inputs)]

    @classmethod
    def execute(cls, checkpoint, target, amount, method, text_encoder_bits, name="", calibration=None,
                calibration_file=None, sensitivity=None, export_sensitivity=False, model=None, clip=None,
                vae=None) -> io.NodeOutput:
        """-> the plan's name, text, picture [1, height, width, 3]"""
        from ..vq_core.planning.run import plan
        from ..vq_core.planning.tell import describe
        from ..vq_core.progress import Progress
        from .plan_picture import draw

        origin, source, stem = _source(checkpoint, model, clip, vae)
        default = f"{stem}-{amount:g}{'GB' if target == SIZE else 'bits'}"
        output = kept_files.output_path(origin, name or "", default, kept_files.PLAN)
        known = _sensitivity(sensitivity)
        shown = NodeProgress(cls.hidden.unique_id)
        budget = {"size": int(amount * 1e9)} if target == SIZE else {"bits": amount}
        with host.as_interruption():
            found = plan(source, **budget, method=method, text_encoder_bits=int(text_encoder_bits), sensitivity=known,
                         calibration=kept_files.kept_path(calibration, calibration_file, "calibration"),
                         progress=Progress(shown, host.interrupted))
        path, text = write(output, found.plan.to_json()), describe(found)
        if export_sensitivity:
            text += f"\n{export(path, found)}"
        inputs = _inputs(checkpoint, target, amount, method, text_encoder_bits, name, calibration, sensitivity,
                         export_sensitivity)
        files.remember_result(inputs, path)
        return picture_output(f"{path.name}\n{text}", draw(found), shown, kept_files.name_of(path))


def write(path, data: dict):
    """A JSON file -> its path: the one that says the same already, else the first free number."""
    from ..vq_core.compare.output import plain, read_json, write_json
    from ..vq_core.errors import PlanError
    from ..vq_core.publish import os_error

    stem, ending = path.name[:path.name.index(".vq")], path.name[path.name.index(".vq"):]
    count, candidate = 1, path
    while candidate.exists() and read_json(candidate) != plain(data):
        count += 1
        candidate = path.with_name(f"{stem}-{count}{ending}")
    try:
        if not candidate.exists():
            write_json(candidate, data)
    except OSError as error:
        raise PlanError(str(os_error(error, candidate.parent))) from None
    return candidate


def export(path, found) -> str:
    """Write the sensitivities beside a plan -> what the node says about it"""
    if found.sensitivity is None:
        return "no sensitivities exported: none were measured, calibrate with sensitivity switched on"
    stem = path.name[:path.name.index(".vq")]
    return f"sensitivities: {write(path.with_name(stem + kept_files.SENSITIVITY), found.sensitivity.to_json()).name}"


def _source(checkpoint, model, clip, vae):
    """(file it comes from or None, what is planned, what it is called)"""
    from ..vq_core.errors import PlanError

    if model is None:
        if clip is not None or vae is not None:
            raise PlanError("a CLIP or VAE is linked without a model: link the model too, or neither")
        path = files.source_path(checkpoint)
        return path, path, path.stem
    from .live import live, source_file

    graph, origin = live(model, clip, vae), source_file(model)
    folder = origin.parent if origin else kept_files.output_path(None, "", "model", kept_files.PLAN).parent
    return origin, graph.source(model, folder), graph.name


def _sensitivity(name):
    from ..vq_core.planning.sensitivity import load_sensitivity

    path = kept_files.kept_path(name, None, "sensitivity file")
    return None if path is None else load_sensitivity(path)


def _inputs(checkpoint, target, amount, method, text_encoder_bits, name, calibration, sensitivity, export) -> list:
    """What tells one run of the node from another, links apart."""
    from ..vq_core.errors import FormatError

    try:
        stamp = files.stamp(files.source_path(checkpoint))
    except (FormatError, OSError):
        stamp = []                         # a linked model is planned
    return ["VQPlan", *stamp, target, amount, method, text_encoder_bits, name, export,
            kept_files.stamp(calibration, "calibration"), kept_files.stamp(sensitivity, "sensitivity file")]
