"""The node that measures this machine: Benchmark (VQ)."""
from __future__ import annotations

import json

from comfy_api.latest import io

from . import host
from .node_progress import NodeProgress
from .schema import make_schema
from .shown import text_output

ROOM = 2 << 30                             # bytes of inputs and weights at once; the largest matmul has 0.4 GB


class VQBenchmark(io.ComfyNode):
    """Text and JSON out; loads no model."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQBenchmark", display_name="Benchmark (VQ)", category="vqpack/files",
            description="Measures how fast this machine decodes and multiplies SDXL's layers, ours beside fp16, with "
                        "and without a LoRA. The JSON holds hardware and versions, no names and no paths.",
            search_aliases=["benchmark", "speed test", "GPU speed", "decode speed"],
            is_output_node=True,
            inputs=[io.Boolean.Input("quick", default=True,
                                     tooltip="Under a minute. On the CPU with shapes of a quarter, which do not tell "
                                             "SDXL's speed.")],
            outputs=[io.String.Output(display_name="text", tooltip="The numbers as a table."),
                     io.String.Output(display_name="json", tooltip="The same for programs.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, quick=True):
        """Measure again in every run."""
        return float("nan")

    @classmethod
    def execute(cls, quick=True) -> io.NodeOutput:
        """-> text, json"""
        from ..vq_core.bench.run import make_settings, run
        from ..vq_core.bench.tell import tell
        from ..vq_core.progress import Progress

        shown, device = NodeProgress(cls.hidden.unique_id), host.compute_device()
        host.make_room(ROOM, device)
        with host.as_interruption():
            found = run(make_settings(str(device), quick), Progress(shown, host.interrupted))
        text = tell(found)
        return text_output(text, shown, text, json.dumps(found, indent=1))
