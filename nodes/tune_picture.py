"""The picture of a fine-tune: the held-out error over the steps, and one held-out prompt before and after."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from .picture import BACKGROUND, COLORS, GRID, MARGIN, MUTED, PANEL, TEXT, WIDTH, font

_CURVE, _GAP, _LEFT = 220, 16, 44          # pixels: height of the curve, between pictures, left of the curve
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_LINE = COLORS["self attention"]
TITLE = "Error on prompts that are not learned from"


def draw(history: Sequence[tuple[int, float]], steps: int | None, pictures: Mapping[str, Image.Image],
         title: str = TITLE) -> Image.Image:
    """(step, held-out error), steps of the whole run and captioned pictures of one size -> RGB picture, WIDTH wide."""
    side = (WIDTH - 2 * MARGIN - _GAP * 2) // 3
    shown = {name: picture.resize((side, round(side * picture.height / picture.width))) for name, picture in
             pictures.items()}
    below = max((picture.height for picture in shown.values()), default=-40) + 40
    image = Image.new("RGB", (WIDTH, 68 + _CURVE + 48 + below), BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 22), title, TEXT, font(20))
    pen.text((WIDTH - MARGIN, 28), "dB below the start", MUTED, font(13), anchor="ra")
    _curve(pen, gains(history), max(steps or 0, history[-1][0] if history else 0, 1))
    for place, (name, picture) in enumerate(shown.items()):
        x, y = MARGIN + place * (side + _GAP), 68 + _CURVE + 40
        pen.text((x, y), name, MUTED, font(13))
        image.paste(picture, (x, y + 22))
    return image


def gains(history: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """(step, error) -> (step, dB below the first error); what is no number is left out."""
    first = history[0][1] if history else math.nan
    return [(step, 10 * math.log10(first / error)) for step, error in history
            if math.isfinite(first) and math.isfinite(error) and first > 0 and error > 0]


def _curve(pen: ImageDraw.ImageDraw, points: list[tuple[int, float]], steps: int) -> None:
    top, bottom, left, right = 68, 68 + _CURVE, MARGIN + _LEFT, WIDTH - MARGIN
    values = [value for _, value in points] or [0.0]
    tick = next((t for t in _TICKS if (max(values) - min(values)) / t <= 5), 100)
    low, high = tick * math.floor(min(*values, 0.0) / tick), tick * max(math.ceil(max(values) / tick), 1)

    def place(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / steps, bottom - (bottom - top) * (value - low) / (high - low)

    pen.rectangle((left, top, right, bottom), PANEL)
    for number in range(round((high - low) / tick) + 1):
        y = place(0, low + number * tick)[1]
        pen.line((left, y, right, y), GRID)
        pen.text((left - 8, y), f"{low + number * tick:g}", MUTED, font(13), anchor="rm")
    for step, anchor in ((0, "la"), (steps, "ra")):
        pen.text((place(step, low)[0], bottom + 8), f"step {step}" if step else "0", MUTED, font(13), anchor=anchor)
    line = [place(*point) for point in points]
    if len(line) > 1:
        pen.line(line, _LINE, 3)
    for x, y in line:
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), _LINE)
