"""Result files of a comparison: JSON with infinities as text, everything complete or not there."""
from __future__ import annotations

import json
import math
import os
from pathlib import Path


def write_json(path: Path, data: dict) -> None:
    """Write a result file; it is complete or the old one."""
    write_text(path, [json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False), "\n"])


def read_json(path: Path) -> dict:
    """A JSON object, {} where there is none that can be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_text(path: Path, pieces) -> None:
    """Write pieces of text one after the other; the file appears under its name when it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.writelines(pieces)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file; it appears under its name when it is complete. Never through a link."""
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        with open(part, "xb") as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def plain(value):
    """Numbers JSON has no spelling for become "inf", "-inf" and null (not a number)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def numeric(value: float | str | None) -> float:
    """The number behind what `plain` made of one."""
    return math.nan if value is None else float(value)
