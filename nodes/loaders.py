"""The nodes that open a VQ file: Load Checkpoint (VQ) and Load Diffusion Model (VQ)."""
from __future__ import annotations

from comfy_api.latest import io

from . import files
from .file_input import VQFileNode, file_input, file_name_input
from .schema import ACTIVATIONS, COMPRESSED, FULL, MEMORY_MODES, make_schema

_MEMORY_MODE = ("compressed: weights stay small in memory and are decoded in each step. "
                "decoded: decoded once while loading, as fast and as large as the original checkpoint. "
                "dynamic (experimental): compressed under ComfyUI's dynamic VRAM, not yet measured on a GPU.")
_KEEP = ("Memory mode compressed: so many MB of decoded weights may stay on the device, as long as nothing else needs "
         "them, so that these layers are not decoded in each step. 0: none.")
_ACTIVATIONS = ("int8: what linear layers are given is rounded to 8 bits, token by token, and multiplied in int8, "
                "which many devices, CPUs too, do faster; pictures change a little, LoRA stays exact. With memory mode "
                "decoded these layers take one byte a weight. as the file says: what it was quantized with.")


def _inputs() -> list:
    return [
        file_input(),
        io.Combo.Input("memory_mode", options=list(MEMORY_MODES), default=COMPRESSED, tooltip=_MEMORY_MODE),
        file_name_input(),
        io.Int.Input("keep_decoded", display_name="keep decoded (MB)", default=0, min=0, max=1 << 17, step=64,
                     optional=True, tooltip=_KEEP, extra_dict={"advanced": True}),
        io.Combo.Input("activations", options=list(ACTIVATIONS), default=FULL, optional=True, tooltip=_ACTIVATIONS),
    ]


class VQCheckpointLoader(VQFileNode):
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
    def execute(cls, file, memory_mode, file_name=None, keep_decoded=0, activations=FULL) -> io.NodeOutput:
        """-> MODEL, CLIP, VAE"""
        from .loading import load_checkpoint

        return io.NodeOutput(*load_checkpoint(files.vq_path(file_name or file), memory_mode, keep_decoded << 20,
                                              activations))


class VQDiffusionModelLoader(VQFileNode):
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
    def execute(cls, file, memory_mode, file_name=None, keep_decoded=0, activations=FULL) -> io.NodeOutput:
        """-> MODEL"""
        from .loading import load_diffusion_model

        return io.NodeOutput(load_diffusion_model(files.vq_path(file_name or file), memory_mode, keep_decoded << 20,
                                                  activations))
