"""The ComfyUI nodes: what the host is given, and nothing else."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class VQExtension(ComfyExtension):
    """The pack's nodes; asking for them registers the model folders and the page's routes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        from . import files, kept_files, routes
        from .bench import VQBenchmark
        from .calibrate import VQCalibrate
        from .compare import VQCompare
        from .decompress import VQDecompressCheckpoint
        from .inspect import VQInspect
        from .loaders import VQCheckpointLoader, VQDiffusionModelLoader
        from .personalize import VQPersonalize
        from .plan import VQPlan
        from .quantize import VQQuantizeCheckpoint
        from .quantize_model import VQQuantizeModel
        from .report import VQReport
        from .save import VQSaveCheckpoint
        from .scale_adapter import VQScaleAdapter
        from .tune import VQTune

        files.register_folders()
        kept_files.register_folders()
        routes.register()
        return [VQCheckpointLoader, VQDiffusionModelLoader, VQQuantizeCheckpoint, VQQuantizeModel, VQSaveCheckpoint,
                VQDecompressCheckpoint, VQInspect, VQReport, VQCompare, VQCalibrate, VQPlan, VQTune, VQBenchmark,
                VQScaleAdapter, VQPersonalize]
