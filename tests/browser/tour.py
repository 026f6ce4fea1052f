"""Draws docs/images/tour.jpg from the pictures of a first visit: usage tour.py SHOTS, the folder that
test_first_time.py kept them in ($SCREENSHOTS). Needs Pillow.
"""
from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "tour.jpg"
DIALOG = (372, 96, 908, 760)               # pixels of a page of 1280 x 860
PANELS = (("2-dialog", (372, 130, 908, 730), "Main menu, Quantize (VQ)…: choose what it may cost"),
          ("4-ready", DIALOG, "Quantize: every layer's error as it is coded"),
          ("6-picture", (150, 300, 1130, 560), "New workflow, Run: the small file with a LoRA"))
HEIGHT, GAP, LABEL, BACK, INK = 560, 14, 34, "#17191d", "#f0f1f3"


def main() -> None:
    shots, panels = Path(sys.argv[1]), []
    for name, box, text in PANELS:
        shot = Image.open(shots / f"nodes2-first-{name}.png").convert("RGB").crop(box)
        wide = shot.width > 1.5 * shot.height
        size = (2 * HEIGHT, round(2 * HEIGHT * shot.height / shot.width)) if wide else (
            round(HEIGHT * shot.width / shot.height), HEIGHT)
        panels.append((shot.resize(size, Image.LANCZOS), text))
    above, below = panels[:2], panels[2]
    width = max(sum(shot.width for shot, _ in above) + GAP, below[0].width) + 2 * GAP
    image = Image.new("RGB", (width, HEIGHT + below[0].height + 2 * LABEL + 4 * GAP), BACK)
    pen, font, x = ImageDraw.Draw(image), ImageFont.load_default(size=19), GAP
    for number, (shot, text) in enumerate(above, 1):
        pen.text((x, GAP), f"{number}  {text}", INK, font)
        image.paste(shot, (x, GAP + LABEL))
        x += shot.width + GAP
    y = HEIGHT + LABEL + 2 * GAP
    pen.text((GAP, y), f"3  {below[1]}", INK, font)
    image.paste(below[0], (GAP, y + LABEL))
    image.save(OUT, quality=86, optimize=True)


if __name__ == "__main__":
    main()
