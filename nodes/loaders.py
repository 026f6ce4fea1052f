"""The nodes that open a VQ file: Load Checkpoint (VQ) and Load Diffusion Model (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from ..vq_core.errors import FormatError
from . import files
from .schema import COMPRESSED, MEMORY_MODES, make_schema

_FILE = "The VQ file. Files are found in vq_checkpoints, checkpoints and diffusion_models."
_MEMORY_MODE = ("compressed: weights stay small in memory and are decoded in each step. "
                "decoded: decoded once while loading, as fast and as large as the original checkpoint. "
                "dynamic (experimental): compressed under ComfyUI's dynamic VRAM, not yet measured on a GPU.")
_FILE_NAME = "The file name by link, e.g. from Quantize Checkpoint (VQ). Where it is linked, 'file' is not used."


def _inputs() -> list:
    return [
        io.Combo.Input("file", options=files.vq_files(), tooltip=_FILE),
        io.Combo.Input("memory_mode", options=list(MEMORY_MODES), default=COMPRESSED, tooltip=_MEMORY_MODE),
        io.String.Input("file_name", optional=True, force_input=True, tooltip=_FILE_NAME),
    ]


class _Loader(io.ComfyNode):
    """Inputs, validation and caching that both loaders share."""

    @classmethod
    def validate_inputs(cls, file, input_types):
        """Before the run: the chosen file exists. A linked name may not exist yet and is checked when it arrives."""
        if "file_name" in input_types:
            return True
        try:
            files.vq_path(file)
        except FormatError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, memory_mode, file_name=None):
        """Load again when the file changed: path, time and size, not a hash of gigabytes."""
        try:
            return files.stamp(files.vq_path(file_name or file))
        except FormatError:
            return []                      # linked: the node before this one decides


class VQCheckpointLoader(_Loader):
    """A whole checkpoint: MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQCheckpointLoader", display_name="Load Checkpoint (VQ)", category="loaders/vqpack",
            description="Loads a compressed SDXL checkpoint made by Quantize Checkpoint (VQ). LoRA and everything else "
                        "work as with the original.",
            search_aliases=["load quantized checkpoint", "compressed checkpoint", "GGUF", "low VRAM", "small model"],
            inputs=_inputs(),
            outputs=[io.Model.Output(tooltip="The UNet."), io.Clip.Output(tooltip="The text encoders."),
                     io.Vae.Output(tooltip="The VAE.")])

    @classmethod
    def execute(cls, file, memory_mode, file_name=None) -> io.NodeOutput:
        """-> MODEL, CLIP, VAE"""
        from .loading import load_checkpoint

        return io.NodeOutput(*load_checkpoint(files.vq_path(file_name or file), memory_mode))


class VQDiffusionModelLoader(_Loader):
    """The UNet alone."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQDiffusionModelLoader", display_name="Load Diffusion Model (VQ)", category="loaders/vqpack",
            description="Loads the UNet of a compressed SDXL file, with or without text encoders and VAE in it.",
            search_aliases=["load quantized unet", "compressed unet", "GGUF unet loader", "low VRAM", "small model"],
            inputs=_inputs(), outputs=[io.Model.Output(tooltip="The UNet.")])

    @classmethod
    def execute(cls, file, memory_mode, file_name=None) -> io.NodeOutput:
        """-> MODEL"""
        from .loading import load_diffusion_model

        return io.NodeOutput(load_diffusion_model(files.vq_path(file_name or file), memory_mode))
