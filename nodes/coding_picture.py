"""The picture of a file that is being made: the weight error of each layer coded so far, in network order."""
from __future__ import annotations

import time
from collections.abc import Mapping

from PIL import Image, ImageDraw

from .node_progress import NodeProgress
from .picture import BACKGROUND, COLORS, GRID, MUTED, PANEL, TEXT, font

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 190, 68, 34, 14
_BAR = COLORS["self attention"]
EVERY = 0.5                                # seconds between two pictures: a layer may take some milliseconds


def showing(shown: NodeProgress):
    """For quantize's `show`: the picture beside the node's bar."""
    told = -EVERY

    def show(errors: Mapping[str, float | None]) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= EVERY or None not in errors.values():
            told = now
            shown.preview(("JPEG", draw(errors), WIDTH))

    return show


def draw(errors: Mapping[str, float | None]) -> Image.Image:
    """Layer key -> squared error over squared norm, None before it is coded -> RGB picture"""
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    pen = ImageDraw.Draw(image)
    known = [error for error in errors.values() if error is not None]
    most, bottom, high = max(known, default=0.0) or 1.0, HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    pen.text((LEFT, 10), "Weight error of each layer", TEXT, font(14))
    pen.text((WIDTH - 10, 11), f"{len(known)} of {len(errors)} coded", MUTED, font(13), anchor="ra")
    pen.rectangle((LEFT, TOP, WIDTH - 10, bottom), PANEL)
    for share in (0.0, 0.5, 1.0) if known else ():
        y = bottom - share * high
        pen.line((LEFT, y, WIDTH - 10, y), GRID)
        pen.text((LEFT - 8, y), f"{100 * share * most:.2g} %", MUTED, font(12), anchor="rm")
    step = (WIDTH - 10 - LEFT) / max(1, len(errors))
    for place, error in enumerate(errors.values()):
        if error is not None:
            x = LEFT + place * step
            pen.rectangle((x, bottom - high * error / most, max(x, x + 0.85 * step - 1), bottom), _BAR)
    return image
