"""What the nodes that learn share: how a course is shown, and what must not stay in memory."""
from __future__ import annotations

import importlib.util
import traceback

from . import host
from .node_progress import NodeProgress
from .tune_picture import TITLE, draw

STOPPED = "Stopped; what was learned is kept. Queue it again to go on, or with 'finish' to write the best so far."


def showing(shown: NodeProgress, preview, looks: list, title: str = TITLE):
    """Shows the curve, and what the student draws where the host makes previews; the last look is kept in `looks`."""
    import torch

    def show(look) -> None:
        looks[:] = [look]
        with torch.inference_mode():       # previewers are the host's
            pictures = {} if preview is None else {name: preview(latents)[1] for name, latents in look.pictures.items()}
        shown.preview(("JPEG", draw(look.history, look.steps, pictures, title), 1024))

    return show


def last_picture(result, looks: list, path, preview, title: str = TITLE):
    """The curve, and the last pictures through the file's own VAE; without one as the host previews them."""
    from PIL import Image

    from .loading import load_vae

    if not looks:                          # the result was there already
        return draw(((0, result.before), (result.steps, result.after)), result.steps, {}, title)
    look, vae = looks[0], load_vae(path) if looks[0].pictures else None
    pictures = {}
    for name, latents in look.pictures.items():
        if vae is not None:
            pixels = host.decode_sdxl(vae, latents)[0].clamp(0, 1).mul(255).byte().cpu()      # [height, width, 3]
            pictures[name] = Image.fromarray(pixels.numpy())
        elif preview is not None:
            pictures[name] = preview(latents)[1]
    return draw(look.history, result.steps, pictures, title)


def forget(error: BaseException | None) -> None:
    """Let go of the job's tensors, which the frames of its exceptions hold as long as the host keeps those."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def require_diffusers(node: str, command: str) -> None:
    """UnsupportedError where this Python cannot learn."""
    from ..vq_core.errors import UnsupportedError

    if importlib.util.find_spec("diffusers") is None:
        raise UnsupportedError(f"{node} learns with the package diffusers, which this Python does not have: install "
                               f"it (pip install diffusers), or use {command} where it is")
