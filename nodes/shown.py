"""What a node shows: text in the node and below it, a picture where there is one."""
from __future__ import annotations

from comfy_api.latest import io, ui

from .node_progress import NodeProgress


def about_file(name: str) -> dict:
    """For the page (web/): the VQ file a node made or read, by the name the loaders know."""
    return {"vq_file": [name]}


def text_output(text: str, shown: NodeProgress, *outputs) -> io.NodeOutput:
    """-> *outputs; the text in the node itself, in every frontend"""
    shown.say(text)
    return io.NodeOutput(*outputs, ui=ui.PreviewText(text).as_dict())


def picture_output(text: str, picture, shown: NodeProgress, *outputs, file: str | None = None) -> io.NodeOutput:
    """-> *outputs, text, picture [1, height, width, 3]; picture: of Pillow, RGB; file: what they are about"""
    import numpy as np
    import torch

    shown.say(text)
    pixels = torch.from_numpy(np.asarray(picture).copy()).float().div_(255)[None]      # [1, height, width, 3]
    return io.NodeOutput(*outputs, text, pixels,
                         ui={**ui.PreviewText(text).as_dict(), **ui.PreviewImage(pixels).as_dict(),
                             **(about_file(file) if file else {})})
