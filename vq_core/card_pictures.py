"""Pictures for a model page: some of those of a compare.html, the reference above one checkpoint, as one PNG."""
from __future__ import annotations

import io
from pathlib import Path

from .compare.pictures import figures_of
from .compare.short import checkpoint_of, read_comparison
from .container import Reader
from .errors import FormatError
from .inspection import content_id

MOST, SIDE = 4, 512                        # pictures of each, pixels of the longer side: about 1 MB of PNG at 1024 px


def comparison_sheet(path: str | Path, comparison: str | Path) -> bytes:
    """-> PNG: up to four prompts side by side, reference above, the file at `path` below.

    comparison: folder, compare.html or compare.json of a comparison with these very weights. FormatError otherwise.
    """
    folder = Path(comparison) if Path(comparison).is_dir() else Path(comparison).parent
    data = read_comparison(folder)
    with Reader(path) as reader:
        mine = checkpoint_of(data, content_id(reader), folder.name)
    letters = data["checkpoints"][0].get("letter"), mine.get("letter")
    rows = [figures_of(folder / "compare.html", letter) for letter in letters]
    count = min(map(len, rows))
    if not count:
        raise FormatError(f"'{folder.name}' has no compare.html with pictures: run vqpack compare again")
    chosen = sorted({i * count // min(MOST, count) for i in range(min(MOST, count))})
    return _sheet([[row[i] for i in chosen] for row in rows])


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
