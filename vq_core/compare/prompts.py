"""Prompts to draw: a built-in list, or a file of lines or a CSV column in whatever encoding it was saved."""
from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError, PlanError, UnsupportedError

BUILT_IN = "built-in"
# What pictures show soonest when weights lose bits: faces, hands, text, counts, relations, texture, line art, light.
SDXL_PROMPTS = ("portrait photo of an old fisherman with a gray beard, soft window light",
                "two hands shaping a clay bowl on a potter's wheel, close-up",
                "a small bookshop at night with a glowing sign that says OPEN",
                "three red apples and one green pear on a wooden table",
                "a white cat sitting on top of a blue car in the rain",
                "aerial view of a winding river through an autumn forest",
                "ink drawing of a medieval town, fine lines, white background",
                "a glass of water on a marble table, caustics, studio photograph")
MOST = 200                                 # drawn without being asked: an hour and more on any machine
MAX_FILE_BYTES, MAX_PROMPT = 64 << 20, 4000                # a longer prompt is no prompt: CLIP reads 75 tokens
COLUMNS = ("prompt", "prompts", "caption", "captions", "text", "description")
_TABLES = {".csv": ",", ".tsv": "\t"}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
          (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_LINE_END = re.compile(r"\r\n|\n|\r")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class Prompts:
    """What will be drawn and one sentence for everything that was left out."""

    texts: tuple[str, ...]
    origin: str                            # file name or "built-in"
    notes: tuple[str, ...] = ()


def read_prompts(given: str | Path, count: int | None = None, built_in: Sequence[str] = SDXL_PROMPTS,
                 longest: int = MAX_PROMPT) -> Prompts:
    """given: "built-in" or a file: UTF-8 or UTF-16 text with one prompt a line, or .csv / .tsv with a column of them.

    count: draw so many, spread evenly over the list; None = all, up to MOST. longest: characters of one prompt.
    Raises VQError in one sentence.
    """
    if count is not None and count < 1:
        raise PlanError(f"--count must be at least 1, got {count}")
    if str(given) == BUILT_IN:
        return Prompts(tuple(spread(built_in, count or len(built_in))), BUILT_IN)
    path = Path(given)
    texts = _texts(_decode(_bytes(path), path.name), path, longest)
    unique = list(dict.fromkeys(texts))
    if not unique:
        raise FormatError(f"'{path.name}' holds no prompt: expected one prompt a line, or '{BUILT_IN}' as --prompts")
    if count is None and len(unique) > MOST:
        raise UnsupportedError(f"'{path.name}' holds {len(unique)} prompts, more than the {MOST} that are drawn "
                               f"unasked: choose how many with --count N (spread evenly over the file)")
    chosen, notes = spread(unique, count or len(unique)), []
    if len(texts) > len(unique):
        notes.append(f"{len(texts) - len(unique)} repeated prompts of '{path.name}' were left out.")
    if len(chosen) < len(unique):
        notes.append(f"{len(chosen)} of the {len(unique)} prompts of '{path.name}' were drawn, spread evenly over it.")
    return Prompts(tuple(chosen), path.name, tuple(notes))


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` of them at even distances: lists are often sorted by subject."""
    count = min(count, len(texts))
    return [texts[index * len(texts) // count] for index in range(count)]


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise FormatError(f"the prompt file '{path.name}' is {what}: give a text file, or '{BUILT_IN}'")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnsupportedError(f"'{path.name}' has {path.stat().st_size / 1e6:.0f} MB, a prompt file at most "
                               f"{MAX_FILE_BYTES / 1e6:.0f} MB: cut it")
    return path.read_bytes()


def _decode(data: bytes, name: str) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _strict(data[len(mark):], encoding, name)
    if b"\0" in data[:4096]:               # UTF-16 without its mark: Latin text has a zero in every other byte
        even, odd = data[:4096:2].count(0), data[1:4096:2].count(0)
        many, few = max(even, odd), min(even, odd)
        if 8 * many < min(len(data), 4096) or many < 4 * few or len(data) % 2:
            raise FormatError(f"'{name}' is not a text file: expected UTF-8 or UTF-16 text with one prompt a line")
        return _strict(data, "utf-16-le" if odd > even else "utf-16-be", name)
    return _strict(data, "utf-8", name)


def _strict(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise FormatError(f"'{name}' is not {encoding.upper()} text (line {line}): save it as UTF-8") from None


def _texts(text: str, path: Path, longest: int) -> list[str]:
    separator = _TABLES.get(path.suffix.lower()) or _header_separator(text)
    if separator:
        lines = _column(text, separator, path.name)
    elif text.lstrip()[:1] in ("{", "[") and path.suffix.lower() in (".json", ".jsonl"):
        raise FormatError(f"'{path.name}' is JSON: expected text with one prompt a line, or a CSV file with a column "
                          f"named 'prompt'")
    else:
        lines = list(enumerate(_LINE_END.split(text), 1))
    found = []
    for number, line in lines:
        line = _CONTROL.sub(" ", line).strip()
        if len(line) > longest:
            raise FormatError(f"line {number} of '{path.name}' has {len(line)} characters, a prompt at most "
                              f"{longest}: is it one prompt a line?")
        if line:
            found.append(line)
    return found


def _header_separator(text: str) -> str | None:
    """Of a table under another file ending: its first line names a column of prompts among others."""
    first = _LINE_END.split(text, maxsplit=1)[0]
    for separator in ("\t", ","):
        names = [name.strip().strip('"').lower() for name in first.split(separator)]
        if len(names) > 1 and any(name in ("prompt", "caption") for name in names):
            return separator
    return None


def _column(text: str, separator: str, name: str) -> list[tuple[int, str]]:
    """(line, prompt) of the column that holds prompts; a table of one column needs no heading."""
    if separator == "," and ";" in text.partition("\n")[0] and "," not in text.partition("\n")[0]:
        separator = ";"                    # as spreadsheets save CSV where the comma is the decimal sign
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise FormatError(f"'{name}' is not a readable CSV file ({error}): save it again as CSV, or as text with one "
                          f"prompt a line") from None
    if not rows:
        return []
    heading = [cell.strip().lower() for cell in rows[0][1]]
    column = next((heading.index(title) for title in COLUMNS if title in heading), None)
    if column is None and max(len(row) for _, row in rows) == 1:
        return [(number, row[0]) for number, row in rows]
    if column is None:
        raise FormatError(f"'{name}' has the columns {', '.join(cell[:20] for cell in heading[:6])}: expected one "
                          f"named 'prompt' (or {', '.join(COLUMNS[2:])})")
    return [(number, row[column]) for number, row in rows[1:] if len(row) > column]
