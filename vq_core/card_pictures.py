"""Pictures for a model page: some of those of a compare.html, the reference above one checkpoint, as one PNG."""
from __future__ import annotations

import base64
import binascii
import io
import re
from pathlib import Path

from .compare.short import read_comparison
from .container import Reader
from .errors import FormatError
from .inspection import content_id

MOST, SIDE = 4, 512                        # pictures of each, pixels of the longer side: about 1 MB of PNG at 1024 px
_FIGURE = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"[^<]*</button><figcaption>'
                     r'<span class="key k\d">(\w+)</span>')


def comparison_sheet(path: str | Path, comparison: str | Path) -> bytes:
    """-> PNG: up to four prompts side by side, reference above, the file at `path` below.

    comparison: folder, compare.html or compare.json of a comparison with these very weights. FormatError otherwise.
    """
    folder = Path(comparison) if Path(comparison).is_dir() else Path(comparison).parent
    data = read_comparison(folder)
    letters = data["checkpoints"][0].get("letter"), _letter(data, path)
    rows = [_figures(folder / "compare.html", letter) for letter in letters]
    count = min(map(len, rows))
    if not count:
        raise FormatError(f"'{folder.name}' has no compare.html with pictures: run vqpack compare again")
    chosen = sorted({i * count // min(MOST, count) for i in range(min(MOST, count))})
    return _sheet([[row[i] for i in chosen] for row in rows])


def _letter(data: dict, path: str | Path) -> str:
    with Reader(path) as reader:
        content = content_id(reader)
    for checkpoint in data["checkpoints"][1:]:
        if content is not None and isinstance(checkpoint, dict) and checkpoint.get("content") == content:
            return checkpoint.get("letter")
    raise FormatError(f"the comparison says nothing of '{Path(path).name}': none of the checkpoints it measured "
                      f"against its reference has the same weights")


def _figures(page: Path, letter: str) -> list[bytes]:
    """PNG of a checkpoint's pictures, in the page's order."""
    try:
        text = page.read_text(encoding="utf-8")
        return [base64.b64decode(data) for data, whose in _FIGURE.findall(text) if whose == letter]
    except (OSError, UnicodeDecodeError, binascii.Error):
        return []


def _sheet(rows: list[list[bytes]]) -> bytes:
    from PIL import Image

    try:
        pictures = [[Image.open(io.BytesIO(data)).convert("RGB") for data in row] for row in rows]
    except OSError:
        raise FormatError("the pictures of compare.html are damaged: run vqpack compare again") from None
    for picture in (picture for row in pictures for picture in row):
        picture.thumbnail((SIDE, SIDE))
    width, height = pictures[0][0].size
    sheet = Image.new("RGB", (width * len(pictures[0]), height * len(pictures)))
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()
