"""The node that shows what a VQ file lost: Report (VQ), as text and as a picture."""
from __future__ import annotations

from comfy_api.latest import io

from . import files
from .file_input import VQFileNode, file_input, file_name_input
from .node_progress import NodeProgress
from .schema import make_schema
from .shown import picture_output


class VQReport(VQFileNode):
    """VQ file in, text and picture of its quality out; reads headers and the report, no weights."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQReport", display_name="Report (VQ)", category="vqpack/files",
            description="Shows what a VQ file lost: its plan, the weight error by what layers do and of every layer, "
                        "and the comparison of pictures that was attached to it. Loads no model.",
            search_aliases=["quality report", "quantization error", "model quality", "comparison", "PSNR"],
            is_output_node=True,
            inputs=[file_input(), file_name_input()],
            outputs=[io.String.Output(display_name="text", tooltip="What the file lost, in words."),
                     io.Image.Output(display_name="picture", tooltip="Weight error of every layer in network order.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, file, file_name=None) -> io.NodeOutput:
        """-> text, picture [1, height, width, 3]"""
        from ..vq_core.container import Reader
        from ..vq_core.file_report import describe_report
        from ..vq_core.inspection import inspect_file, stored_tensors
        from .report_picture import draw

        path = files.vq_path(file_name or file)
        info = inspect_file(path)
        with Reader(path) as reader:
            tensors = stored_tensors(reader)
        text = f"{path.name}\n{describe_report(info, tensors)}"
        return picture_output(text, draw(path.name, info, tensors), NodeProgress(cls.hidden.unique_id),
                              file=files.name_of(path))
