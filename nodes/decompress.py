"""The node that gives an ordinary checkpoint back: Decompress Checkpoint (VQ)."""
from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from . import files, host
from .file_input import VQFileNode, file_input, file_name_input
from .node_progress import NodeProgress
from .schema import make_schema

SOURCE = "source"
DTYPES = (SOURCE, "fp16", "bf16", "fp32")


class VQDecompressCheckpoint(VQFileNode):
    """VQ file in, checkpoint file out; no model is loaded for it."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQDecompressCheckpoint", display_name="Decompress Checkpoint (VQ)", category="vqpack/files",
            description="Writes the ordinary checkpoint behind a VQ file, which every program reads: to the folder "
                        "checkpoints, or diffusion_models for a UNet alone. The same run again finds it there.",
            search_aliases=["decompress", "dequantize", "convert to fp16", "export checkpoint", "unpack"],
            is_output_node=True,
            inputs=[
                file_input(),
                io.Combo.Input("dtype", options=list(DTYPES), default=SOURCE,
                               tooltip="Type of the numbers. source: as the original checkpoint had them."),
                io.String.Input("name", default="",
                                tooltip="File name of the checkpoint, perhaps with a subfolder. Empty: the VQ file's "
                                        "name and the type."),
                file_name_input(),
            ],
            outputs=[io.String.Output(display_name="file_name",
                                      tooltip="Name of the checkpoint in its folder, as ComfyUI's own loader lists it "
                                              "after a refresh.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, file, dtype, name="", file_name=None):
        """Run again when the file changed, or when what it was made into is gone."""
        inputs = [*super().fingerprint_inputs(file, file_name), dtype, name]
        return [*inputs, files.lost_results(inputs)]

    @classmethod
    def execute(cls, file, dtype, name="", file_name=None) -> io.NodeOutput:
        """-> the checkpoint's name"""
        from ..vq_core.decompress import decompress, find_decompressed
        from ..vq_core.describe import size
        from ..vq_core.progress import Progress

        source, wanted = files.vq_path(file_name or file), None if dtype == SOURCE else dtype
        output = files.checkpoint_path(source, _is_unet_only(source), name or "")
        shown = NodeProgress(cls.hidden.unique_id)
        path = find_decompressed(source, output, wanted)
        verb = "was there already" if path else "written"
        with host.as_interruption():
            path = path or decompress(source, output, wanted, progress=Progress(shown, host.interrupted))
        files.remember_result([*super().fingerprint_inputs(file, file_name), dtype, name], path)
        shown.say(f"{path.name}\n{size(path.stat().st_size)}, {verb}")
        return io.NodeOutput(files.name_of(path))


def _is_unet_only(path: Path) -> bool:
    from ..vq_core.container import Reader

    with Reader(path, mapped=False) as reader:
        return files.is_unet_only(reader.keys())
