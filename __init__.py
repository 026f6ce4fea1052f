"""vqpack: codebook-compressed SDXL checkpoints for ComfyUI. The pack's entry points, and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI asks for the pack's nodes here; everything is imported now and not before."""
    from .nodes import VQExtension

    return VQExtension()
