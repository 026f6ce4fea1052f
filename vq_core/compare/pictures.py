"""Pictures in a page that lie over each other at a click: their markup, written here and read again from a page."""
from __future__ import annotations

import base64
import binascii
import io
import re
from pathlib import Path

import torch

from .markup import text

SMALL = 256                                # pixels; smaller pictures are enlarged without smoothing
HINT = "<span class=\"soft small\">Click a picture to lay it over the reference.</span>"
# What report.js opens: the reference below, the other picture above it, and how much of each a slider says.
VIEW = ("<dialog id=\"view\"><div class=\"ends\"></div><div class=\"stack\"><img alt=\"\"><img alt=\"\"></div>"
        "<input type=\"range\" min=\"0\" max=\"100\" value=\"50\" aria-label=\"How much of each picture\">"
        "<p><button type=\"button\">Close</button></p></dialog>")
_FIGURE = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"[^<]*</button><figcaption>'
                     r'<span class="key k\d">(\w+)</span>')
_SIGNATURE, _FIRST_CHUNK = b"\x89PNG\r\n\x1a\n", b"\0\0\0\rIHDR"


def figure(png: bytes, order: int, letter: str, said: str, alt: str) -> str:
    """One picture with its caption; in a row the first one is the reference. order: of its color; said: escaped."""
    height, width = png_size(png) or (0, 0)
    tiny = " class=\"tiny\"" if min(height, width) < SMALL else ""
    return (f"<figure><button type=\"button\" aria-label=\"Compare\"><img{tiny} src=\"data:image/png;base64,"
            f"{base64.b64encode(png).decode()}\" width=\"{width}\" height=\"{height}\" alt=\"{text(alt)}\">"
            f"</button><figcaption><span class=\"key k{order % 6}\">{text(letter)}</span> {said}</figcaption></figure>")


def figures_of(page: Path, letter: str) -> list[bytes]:
    """PNG of a checkpoint's pictures in a page, in the page's order; [] where it has none."""
    try:
        found = _FIGURE.findall(page.read_text(encoding="utf-8"))
        return [base64.b64decode(data) for data, whose in found if whose == letter]
    except (OSError, UnicodeDecodeError, binascii.Error):
        return []


def make_png(pixels: torch.Tensor, most: int | None = None) -> bytes:
    """uint8 [height, width, 3] -> PNG, made smaller where a side has more than `most` pixels"""
    from PIL import Image

    stream, image = io.BytesIO(), Image.fromarray(pixels.numpy())
    if most is not None:
        image.thumbnail((most, most))
    image.save(stream, "PNG")
    return stream.getvalue()


def png_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that a PNG states, None for what is none."""
    if data[:16] != _SIGNATURE + _FIRST_CHUNK or len(data) < 33:
        return None
    width, height = (int.from_bytes(data[at:at + 4], "big") for at in (16, 20))
    return height, width
