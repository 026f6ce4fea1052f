"""Draws what the ComfyUI registry shows of this pack: registry_pictures.py [--out docs/images]

icon.png (400 x 400, the registry's most) and banner.png (21:9): a smooth disc, one side of it in tiles of few colors,
which is what a codebook does to a picture. Nothing random: the same files from the same Pillow.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
ICON, BANNER = (400, 400), (1260, 540)
SCALE = 4                                  # drawn larger and reduced, for smooth edges
TILE = 25                                  # pixels of a tile
DARK, LIGHT = (16, 20, 32), (238, 242, 255)
RAMP = ((38, 70, 160), (64, 150, 210), (120, 210, 170), (250, 210, 90), (240, 120, 70))      # shadow to highlight


def main() -> int:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(ROOT / "docs" / "images"))
    out = Path(parser.parse_args().out)
    for name, picture in (("icon", icon()), ("banner", banner())):
        picture.save(out / f"{name}.png", optimize=True)
        print(out / f"{name}.png", picture.size, (out / f"{name}.png").stat().st_size, "bytes")
    return 0


def icon() -> Image.Image:
    """The disc alone."""
    return disc(ICON, (200, 200), 170)


def banner() -> Image.Image:
    """The disc, and the pack's name beside it."""
    picture = disc(BANNER, (300, 270), 200)
    draw = ImageDraw.Draw(picture)
    for text, size, y in (("vqpack", 120, 175), ("SDXL checkpoints at 1 to 4 bits a weight", 33, 325)):
        draw.text((560, y), text, fill=LIGHT, font=ImageFont.load_default(size))
    return picture


def disc(size: tuple[int, int], center: tuple[int, int], radius: int) -> Image.Image:
    """A lit disc on a dark ground: smooth on its left, tiles of the ramp's five colors on its right."""
    width, height = (side * SCALE for side in size)
    y, x = np.mgrid[:height, :width] / SCALE
    tile_x, tile_y = ((axis // TILE + 0.5) * TILE for axis in (x, y))
    right = x >= center[0]
    shown = np.where(right[..., None], coded(light(tile_x, tile_y, center, radius)),
                     smooth(light(x, y, center, radius)))
    tile_inside = np.hypot(tile_x - center[0], tile_y - center[1]) < radius
    joint = right & ((x % TILE < 1.5) | (y % TILE < 1.5))
    inside = np.where(right, tile_inside & ~joint, np.hypot(x - center[0], y - center[1]) < radius)
    pixels = np.where(inside[..., None], shown, np.array(DARK))
    return Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.LANCZOS)


def light(x: np.ndarray, y: np.ndarray, center: tuple[int, int], radius: int) -> np.ndarray:
    """Brightness of a ball lit from the upper left, 0 to 1."""
    across, down = (x - center[0]) / radius, (y - center[1]) / radius
    depth = np.sqrt(np.clip(1 - across**2 - down**2, 0, 1))
    return np.clip(0.5 * depth - 0.35 * across - 0.4 * down + 0.25, 0, 1)


def smooth(values: np.ndarray) -> np.ndarray:
    """The ramp between its colors -> [height, width, 3]"""
    places = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(values, places, [color[i] for color in RAMP]) for i in range(3)], -1)


def coded(values: np.ndarray) -> np.ndarray:
    """The ramp's nearest color -> [height, width, 3]"""
    return np.array(RAMP)[np.rint(values * (len(RAMP) - 1)).astype(int)]


if __name__ == "__main__":
    sys.exit(main())
