"""Decompressed copies of VQ files in a folder of their own, whose size is kept below a limit."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..vq_core.decompress import ORIGIN_KEY, decompress, decompressed_bytes, find_decompressed
from ..vq_core.describe import size
from ..vq_core.errors import VQError
from ..vq_core.file_names import SUFFIX
from ..vq_core.progress import Progress
from ..vq_core.safetensors_io import SafetensorsFile

FOLDER = "vq-decompressed"
_NAME = re.compile(rf".*-decompressed(-\d+)?{re.escape(SUFFIX)}")      # as decompress names them; a renamed one is kept


def copy_of(vq_file: Path, folder: Path, most_bytes: int, keep: Iterable[Path] = (), progress: Progress | None = None
            ) -> Path:
    """The ordinary checkpoint behind a VQ file, made unless it is there -> its path.

    Before one is made, copies go, least recently chosen first, until all together have at most `most_bytes`; those of
    `keep`, and files that decompress did not write, stay. VQError where that is not enough.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = find_decompressed(vq_file, folder)
    if found is None:
        make_room(folder, decompressed_bytes(vq_file), most_bytes, keep)
        found = decompress(vq_file, folder, progress=progress)
    os.utime(found)                                                # chosen now
    return found


def make_room(folder: Path, needed: int, most_bytes: int, keep: Iterable[Path] = ()) -> list[Path]:
    """Delete the oldest copies until `needed` more bytes fit -> those that were deleted; VQError before any is."""
    kept = {Path(path).resolve() for path in keep}
    old = sorted((path for path in copies(folder) if path.resolve() not in kept), key=lambda p: p.stat().st_mtime)
    total = sum(path.stat().st_size for path in copies(folder))
    gone: list[Path] = []
    while total + needed > most_bytes and len(gone) < len(old):
        gone.append(old[len(gone)])
        total -= gone[-1].stat().st_size
    if total + needed > most_bytes:
        raise VQError(f"a decompressed copy of {size(needed)} does not fit: copies may take {size(most_bytes)}, and "
                      f"{size(total)} are in use or not deleted; raise the limit or choose another checkpoint first")
    for path in gone:
        path.unlink()
    return gone


def copies(folder: Path) -> list[Path]:
    """What decompress wrote into a folder and nobody gave another name."""
    return [path for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name) and _is_copy(path)]


def _is_copy(path: Path) -> bool:
    try:
        with SafetensorsFile(path) as file:
            return ORIGIN_KEY in file.metadata
    except (VQError, OSError):
        return False
