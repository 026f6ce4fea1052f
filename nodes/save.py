"""The node that writes a loaded VQ model as it is: Save Checkpoint (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from . import files, host
from .node_progress import NodeProgress
from .quantize import file_name_output
from .schema import make_schema


class VQSaveCheckpoint(io.ComfyNode):
    """MODEL, CLIP and VAE in, VQ file out; nothing is coded anew."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQSaveCheckpoint", display_name="Save Checkpoint (VQ)", category="vqpack/save",
            description="Writes a model from a VQ loader into a VQ file, with LoRA and merges. Coded weights are kept "
                        "byte for byte; what a LoRA or merge changed is written in full, exactly, and takes its full "
                        "size. Quantize Model (VQ) makes a small file of a merge instead.",
            search_aliases=["save checkpoint", "save quantized model", "export VQ", "save merged checkpoint"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model from a VQ loader in the memory mode 'compressed'."),
                io.Clip.Input("clip", optional=True, tooltip="Text encoders. Without them the file holds none."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE. Without it the file holds none."),
                io.String.Input("name", default="",
                                tooltip="File name of the result, perhaps with a subfolder. Empty: the name of the "
                                        "model's own file. An existing file is kept and the new one numbered."),
            ],
            outputs=[file_name_output()],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, name="", **linked):
        """Run again when the result is gone; the host knows by itself when what is linked changed."""
        return files.lost_results([cls.__name__, name])

    @classmethod
    def execute(cls, model, name="", clip=None, vae=None) -> io.NodeOutput:
        """-> the file's name"""
        from ..vq_core.progress import Progress
        from .live import say_left_out
        from .saving import save

        shown, note = NodeProgress(cls.hidden.unique_id), say_left_out(model, clip)
        with host.as_interruption():
            result = save(model, clip, vae, name or "", Progress(shown, host.interrupted))
        shown.say(f"{summary(result)}\n{note}".strip())
        files.remember_result([cls.__name__, name], result.path)
        return io.NodeOutput(files.name_of(result.path))


def summary(result) -> str:
    """What the node says about a vq_core.save_model.SaveResult."""
    text = f"{result.path.name}\n{result.file_bytes / 1e9:.2f} GB, {result.coded} weights kept as they were coded"
    if result.dense:
        text += (f"\n{result.dense} weights changed by LoRA or merges are written in full, {result.more / 1e9:.2f} GB "
                 f"more: for a small file use Quantize Model (VQ)")
    return text
