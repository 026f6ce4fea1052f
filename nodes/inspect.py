"""The node that shows what a VQ file holds: Inspect (VQ), as text and as a picture."""
from __future__ import annotations

from comfy_api.latest import io

from . import files
from .file_input import VQFileNode, file_input, file_name_input
from .node_progress import NodeProgress
from .schema import make_schema
from .shown import picture_output


class VQInspect(VQFileNode):
    """VQ file in, text and picture out; reads headers, no weights."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQInspect", display_name="Inspect (VQ)", category="vqpack/files",
            description="Shows what a VQ file holds and what each layer costs: bits, bytes and, where the file knows "
                        "it, the error of its weights. Loads no model.",
            search_aliases=["inspect", "model info", "file info", "bits per weight", "analyze"],
            is_output_node=True,
            inputs=[file_input(), file_name_input()],
            outputs=[io.String.Output(display_name="text", tooltip="What the file holds, in words."),
                     io.Image.Output(display_name="picture", tooltip="Bits of every layer in network order.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, file, file_name=None) -> io.NodeOutput:
        """-> text, picture [1, height, width, 3]"""
        from ..vq_core.container import Reader
        from ..vq_core.describe import describe
        from ..vq_core.inspection import inspect_file, stored_tensors
        from .picture import draw

        path = files.vq_path(file_name or file)
        info = inspect_file(path)
        with Reader(path) as reader:
            picture = draw(path.name, info, stored_tensors(reader))
        return picture_output(f"{path.name}\n{describe(info)}", picture, NodeProgress(cls.hidden.unique_id))
