"""vqpack: codebook-compressed SDXL checkpoints for ComfyUI. The pack's entry points, and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI asks for the pack's nodes here; everything is imported now and not before."""
    from .nodes import VQExtension

    return VQExtension()


def __getattr__(name):
    """`vqpack.load_unet`, `load_pipeline`, `quantize` and `apply_adapters`, imported when they are first asked for."""
    if name in ("load_unet", "load_pipeline"):
        from .vq_core import pipeline

        return getattr(pipeline, name)
    if name == "quantize":
        from .vq_core.quantize import quantize

        return quantize
    if name == "apply_adapters":
        from .vq_core.adapters.attach import apply_adapters

        return apply_adapters
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
