"""The node that makes a VQ file: Quantize Checkpoint (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from . import files, host, kept_files
from .node_progress import NodeProgress
from .schema import make_schema
from .shown import about_file

METHODS = ("trellis", "additive", "product", "palette", "uniform")
TEXT_ENCODER_BITS = ("6", "8", "4", "16")


def coding_inputs() -> list:
    """How to code: what every node that quantizes asks for."""
    return [
        io.Float.Input("bits", default=3.0, min=1.0, max=8.0, step=0.5, round=0.5,
                       tooltip="Bits per coded UNet weight. trellis: 1 to 4 in halves; additive and product: 1 to 4; "
                               "palette and uniform: 1 to 8. The file needs a little more."),
        io.Combo.Input("method", options=list(METHODS), default=METHODS[0],
                       tooltip="How weights are coded. trellis is the most exact at every size; the others are simpler "
                               "and there for comparison."),
        io.Combo.Input("text_encoder_bits", options=list(TEXT_ENCODER_BITS), default=TEXT_ENCODER_BITS[0],
                       tooltip="Bits per text encoder weight. 16 keeps the text encoders as they are."),
    ]


def file_name_output():
    """What links to the loaders' file_name."""
    return io.String.Output(display_name="file_name",
                            tooltip="Name of the VQ file, for the file_name input of a VQ loader.")


def calibrated_inputs() -> list:
    """What helps coding; the last of the inputs."""
    return [*kept_files.calibration_inputs(), *kept_files.plan_inputs()]


def stamps(calibration: str | None, plan: str | None) -> list:
    """For fingerprints: what changes when the chosen files do."""
    return [kept_files.stamp(calibration, "calibration"), kept_files.stamp(plan, "plan")]


def code(source, output, bits: float, method: str, text_encoder_bits: str, shown: NodeProgress,
         note: str = "", calibration=None, plan=None) -> str:
    """Quantize a path or an opened Source, with progress and the stop button -> name of the result for the loaders.

    note: shown in the node below what came out; calibration, plan: paths or None.
    """
    from ..vq_core.device_memory import CODING_BYTES
    from ..vq_core.plan import load_plan
    from ..vq_core.progress import Progress
    from ..vq_core.provenance import license_note_of
    from ..vq_core.quantize import quantize
    from .coding_picture import showing

    chosen = load_plan(plan) if plan else None
    host.make_room(CODING_BYTES, host.compute_device())
    with host.as_interruption():
        result = quantize(source, output, bits=bits, method=method, text_encoder_bits=int(text_encoder_bits),
                          plan=chosen, calibration=calibration, device=str(host.compute_device()),
                          graph=host.writes_metadata(), progress=Progress(shown, host.interrupted),
                          show=showing(shown))
    size, rate = result.file_bytes / 1e9, result.bits["unet"]
    lines = (result.path.name, f"{size:.2f} GB, {rate:.2f} bits per UNet weight", str(result.fallbacks), note,
             license_note_of(result.path))
    shown.say("\n".join(line for line in lines if line))
    return files.name_of(result.path)


class VQQuantizeCheckpoint(io.ComfyNode):
    """Checkpoint file in, VQ file out; no model is loaded for it."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQQuantizeCheckpoint", display_name="Quantize Checkpoint (VQ)", category="vqpack/quantize",
            description="Compresses an SDXL checkpoint to about 3 bits per UNet weight, layer by layer. It goes "
                        "to the folder vq_checkpoints beside the checkpoint's own; the same run again finds it there.",
            search_aliases=["quantize", "compress checkpoint", "make smaller", "GGUF", "low VRAM", "small"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("checkpoint", options=files.source_files(),
                               tooltip="The SDXL checkpoint or diffusion model to compress. It is only read."),
                *coding_inputs(),
                io.String.Input("name", default="",
                                tooltip="File name of the result, perhaps with a subfolder. Empty: the checkpoint's "
                                        "name and the bits it came to."),
                *calibrated_inputs(),
            ],
            outputs=[file_name_output()],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, checkpoint, bits, method, text_encoder_bits, name="", calibration=None, plan=None,
                           **linked):
        """Run again when a file it reads changed (path, time and size), or when the result is gone."""
        inputs = [*files.stamp(files.source_path(checkpoint)), bits, method, text_encoder_bits, name,
                  *stamps(calibration, plan)]
        return [*inputs, files.lost_results(inputs)]

    @classmethod
    def execute(cls, checkpoint, bits, method, text_encoder_bits, name="", calibration=None, calibration_file=None,
                plan=None, plan_file=None) -> io.NodeOutput:
        """-> the file's name"""
        source = files.source_path(checkpoint)
        made = code(source, files.output_path(source, name or ""), bits, method, text_encoder_bits,
                    NodeProgress(cls.hidden.unique_id),
                    calibration=kept_files.kept_path(calibration, calibration_file, "calibration"),
                    plan=kept_files.kept_path(plan, plan_file, "plan"))
        files.remember_result([*files.stamp(source), bits, method, text_encoder_bits, name,
                               *stamps(calibration, plan)], files.vq_path(made))
        return io.NodeOutput(made, ui=about_file(made))
