"""What a training run shows of itself: the loss curve and a grid of pictures, as PNG."""
from __future__ import annotations

import math
from pathlib import Path

import torch

WIDTH, HEIGHT, MARGIN, COLUMNS = 760, 260, 44, 8


def curve(losses: dict[str, list[float]], path: Path, every: int) -> None:
    """One panel a stage, loss on a logarithmic axis over steps; `every` steps lie between two points."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT * len(losses)), "white")
    draw = ImageDraw.Draw(image)
    for panel, (name, values) in enumerate(losses.items()):
        top, bottom = panel * HEIGHT + MARGIN, (panel + 1) * HEIGHT - MARGIN
        logs = [math.log10(max(value, 1e-12)) for value in values]
        low, high = min(logs), max(max(logs), min(logs) + 1e-6)
        span = max(1, len(logs) - 1)
        points = [(2 * MARGIN + i / span * (WIDTH - 3 * MARGIN), bottom - (value - low) / (high - low) * (bottom - top))
                  for i, value in enumerate(logs)]
        draw.rectangle((2 * MARGIN, top, WIDTH - MARGIN, bottom), outline="gray")
        draw.line(points if len(points) > 1 else points * 2, fill=(30, 80, 200), width=2)
        draw.text((2 * MARGIN, top - 16), f"{name}: loss, mean over {every} steps, {len(logs) * every} steps", "black")
        for value, y in ((high, top), (low, bottom)):
            draw.text((6, y - 6), f"{10**value:.4g}", "black")
    image.save(path)


def grid(images: torch.Tensor, path: Path, zoom: int = 2) -> None:
    """Pictures [n, 3, h, w] of 0..1, COLUMNS a row, each pixel `zoom` wide."""
    from PIL import Image

    count, _, height, width = images.shape
    sheet = Image.new("RGB", (min(count, COLUMNS) * width * zoom, -(-count // COLUMNS) * height * zoom), "white")
    for index, pixels in enumerate((images.clamp(0, 1) * 255).round().to(torch.uint8)):
        tile = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).resize((width * zoom, height * zoom),
                                                                             Image.Resampling.NEAREST)
        sheet.paste(tile, (index % COLUMNS * width * zoom, index // COLUMNS * height * zoom))
    sheet.save(path)
