"""A folder of pictures to learn from: their names, captions and pixels; what cannot be read is named and left out."""
from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import FormatError
from ..progress import Progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_NAMED = 5                             # files in a sentence
WIDEST = 2.0                               # of a bucket: longer pictures are cut (SDXL's own buckets end at 4)


@dataclass(frozen=True)
class Image:
    """One picture that can be read. bucket: (height, width) it is brought to."""

    path: Path
    name: str                              # below the folder
    caption: str
    sha256: str
    size: tuple[int, int]                  # height, width as stored, upright
    bucket: tuple[int, int]


def read_folder(folder: str | Path, area: int, step: int, progress: Progress, least: int = 2,
                caption: str | None = None) -> tuple[list[Image], list[str]]:
    """All pictures in a folder and those below it, by name -> and a sentence about files that were left out.

    area: pixels of a bucket, about; step: what its sides are multiples of. least: FormatError where fewer are left (of
    two, one judges). caption: of those without a text file beside them, None = their names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FormatError(f"--images must be a folder of pictures, '{folder}' is not one")
    paths = sorted((path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()),
                   key=lambda path: path.relative_to(folder).as_posix())
    found, bad = [], []
    progress.start("reading pictures", max(1, len(paths)))
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            height, width = pixels(path).shape[:2]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found.append(Image(path, name, caption_of(path, caption), digest, (height, width),
                               bucket(height, width, area, step)))
        except FormatError:
            bad.append(name)
        progress.advance(1, name)
    progress.finish()
    if len(found) < least:
        raise FormatError(f"'{folder.name}' holds {len(found)} pictures that can be read, and --images needs at least "
                          f"{'two' if least == 2 else 'one'}: {', '.join(SUFFIXES)}")
    return found, [_left_out(bad)] if bad else []


def caption_of(path: Path, otherwise: str | None = None) -> str:
    """The text file beside a picture, in one line; where there is none, `otherwise` or its name without _ and -."""
    beside = path.with_suffix(".txt")
    try:
        text = " ".join(beside.read_text(encoding="utf-8-sig", errors="replace").split()) if beside.is_file() else ""
    except OSError:
        text = ""
    return text or otherwise or " ".join(path.stem.replace("_", " ").replace("-", " ").split())


def pixels(path: Path) -> np.ndarray:
    """uint8 [height, width, 3], upright; transparent places white, of an animation the first picture.

    FormatError where the file is no picture, is cut off, or would take absurd memory.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):                             # 16-bit gray: convert() would cut it at 255
                gray = (np.asarray(image, np.float64).clip(0, 65535) / 257).round().astype(np.uint8)
                return np.repeat(gray[..., None], 3, 2)
            image = image.convert("RGBA")
            white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
            return np.asarray(Pillow.alpha_composite(white, image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error, MemoryError,
            Pillow.DecompressionBombError) as error:
        raise FormatError(f"'{path.name}' cannot be read as a picture: {type(error).__name__}") from None


def bucket(height: int, width: int, area: int, step: int) -> tuple[int, int]:
    """(height, width) in multiples of `step` with about `area` pixels and nearly the picture's shape."""
    ratio = min(WIDEST, max(1 / WIDEST, height / width))
    tall = max(step, round(math.sqrt(area * ratio) / step) * step)
    return tall, max(step, round(math.sqrt(area / ratio) / step) * step)


def fitted(image: Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """A picture scaled to cover its bucket and cut in the middle -> float32 [3, h, w] of -1..1, (top, left) of the cut.

    The cut is in pixels of the scaled picture, which is how SDXL is told about it.
    """
    from PIL import Image as Pillow

    picture, (tall, wide) = Pillow.fromarray(pixels(image.path)), image.bucket
    scale = max(tall / picture.height, wide / picture.width)
    height, width = max(tall, round(picture.height * scale)), max(wide, round(picture.width * scale))
    top, left = (height - tall) // 2, (width - wide) // 2
    if (height, width) != (picture.height, picture.width):
        picture = picture.resize((width, height), Pillow.Resampling.LANCZOS)
    cut = np.array(picture)[top:top + tall, left:left + wide]
    return torch.from_numpy(cut).permute(2, 0, 1).float() / 127.5 - 1, (top, left)


def _left_out(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    count = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{count} could not be read as pictures and {'was' if len(names) == 1 else 'were'} left out: " \
           f"{', '.join(names[:MOST_NAMED])}{more}."
