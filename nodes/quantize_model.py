"""The node that makes a VQ file of what is in the graph: Quantize Model (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from . import files, kept_files
from .node_progress import NodeProgress
from .quantize import calibrated_inputs, code, coding_inputs, file_name_output, stamps
from .schema import make_schema
from .shown import about_file


class VQQuantizeModel(io.ComfyNode):
    """MODEL, CLIP and VAE in, with their LoRA and merges; VQ file out."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQQuantizeModel", display_name="Quantize Model (VQ)", category="vqpack/quantize",
            description="Compresses the model in the graph with its LoRA and merges applied, layer by layer, without a "
                        "full-size file in between. The model itself is not changed. The result goes to the folder "
                        "vq_checkpoints; the same run again finds it there.",
            search_aliases=["quantize merge", "compress model", "bake LoRA", "save merged checkpoint", "GGUF", "small"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model, with LoRA and merges as they are here."),
                io.Clip.Input("clip", optional=True,
                              tooltip="Text encoders, with their LoRA. Without them the file holds none."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE, kept as it is. Without it the file holds none."),
                *coding_inputs(),
                io.String.Input("name", default="",
                                tooltip="File name of the result, perhaps with a subfolder. Empty: the name of the "
                                        "model's own file and the bits it came to."),
                *calibrated_inputs(),
            ],
            outputs=[file_name_output()],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, bits, method, text_encoder_bits, name="", calibration=None, plan=None, **linked):
        """Run again when a chosen file changed or the result is gone; the host knows when what is linked changed."""
        inputs = [cls.__name__, bits, method, text_encoder_bits, name, *stamps(calibration, plan)]
        return [*inputs, files.lost_results(inputs)]

    @classmethod
    def execute(cls, model, bits, method, text_encoder_bits, name="", clip=None, vae=None, calibration=None,
                calibration_file=None, plan=None, plan_file=None) -> io.NodeOutput:
        """-> the file's name"""
        from .live import live, output_path, say_left_out

        graph, output = live(model, clip, vae), output_path(model, name or "")
        shown, note = NodeProgress(cls.hidden.unique_id), say_left_out(model, clip)
        source = graph.source(model, output if output.is_dir() else output.parent)
        made = code(source, output, bits, method, text_encoder_bits, shown, note,
                    kept_files.kept_path(calibration, calibration_file, "calibration"),
                    kept_files.kept_path(plan, plan_file, "plan"))
        files.remember_result([cls.__name__, bits, method, text_encoder_bits, name, *stamps(calibration, plan)],
                              files.vq_path(made))
        return io.NodeOutput(made, ui=about_file(made))
