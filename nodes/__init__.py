"""The ComfyUI nodes: what the host is given, and nothing else."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class VQExtension(ComfyExtension):
    """The pack's nodes; asking for them registers the model folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        from . import files
        from .loaders import VQCheckpointLoader, VQDiffusionModelLoader
        from .quantize import VQQuantizeCheckpoint

        files.register_folders()
        return [VQCheckpointLoader, VQDiffusionModelLoader, VQQuantizeCheckpoint]
