"""What VQ files made of a checkpoint already say about it: the error at a plan, and whether pictures were compared."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

from .arch import UNET_PREFIX
from .compare.gallery import unet_id
from .compare.short import stored_comparison
from .container import Reader
from .errors import VQError
from .inspection import json_field, read_report


@dataclass(frozen=True)
class Result:
    """One VQ file and the checkpoint it says it was made of."""

    file: str
    source: tuple                          # name and bytes
    plan: dict
    unet_error: float | None               # squared error over squared norm, mean over the coded UNet weights
    comparison: dict | None                # compare/short.py
    unet: str | None                       # compare/gallery.py, unet_id


def results_of(name: str, nbytes: int, paths: Iterable[Path]) -> list[Result]:
    """What these files hold of the checkpoint of this name and size, newest first; damaged ones are left out.

    Its SHA-256 would prove more and takes half a minute; name and size are what a header tells.
    """
    dated = []
    for path in paths:
        try:
            status = path.stat()
            found = _read(path, status.st_mtime_ns, status.st_size)
        except (VQError, OSError):
            continue
        if found.source == (name, nbytes):
            dated.append((status.st_mtime_ns, found))
    return [found for _, found in sorted(dated, key=lambda pair: -pair[0])]


@lru_cache(maxsize=256)
def _read(path: Path, _time: int, _size: int) -> Result:
    with Reader(path) as reader:
        metadata, report, unet = reader.metadata, read_report(reader), unet_id(reader)
    source, plan = json_field(metadata, "vqpack.source", {}), json_field(metadata, "vqpack.plan", {})
    source = source if isinstance(source, dict) else {}
    return Result(path.name, (source.get("name"), source.get("bytes")), plan if isinstance(plan, dict) else {},
                  _unet_error(report.get("layers")), stored_comparison(report), unet)


def _unet_error(rows) -> float | None:
    """From a report that a foreign hand may have written."""
    try:
        unet = [(prod(row["shape"]), float(row["relative_error"])) for row in rows
                if row["name"].startswith(UNET_PREFIX)]
        return sum(size * error for size, error in unet) / sum(size for size, _ in unet)
    except (TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError):
        return None
