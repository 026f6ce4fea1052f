"""Pictures that Compare (VQ) drew, kept on this machine for the reports of VQ files: a folder for each UNet.

A run is a small JSON and the PNGs it names by their SHA-256: it appears whole, the JSON last. Nothing that lies in the
folders is trusted, and nothing is written or deleted through a link.
"""
from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..adapters.file import base_id
from ..container import Reader
from ..inspection import content_id
from .gallery_record import Run, read_run
from .output import write_bytes
from .pictures import make_png, png_size

# So that a page stays one that a browser shows: at worst 32 pictures, which at 1024 pixels cannot exceed 3.1 MB each
# (3 bytes a pixel) and a third more in the page. Most runs draw one picture.
MOST_RUNS, MOST_PICTURES = 4, 4            # newest runs of a file; pictures of each model in a run, all are measured
MOST_FILES = 16                            # files with pictures; those drawn with longest ago are forgotten
MOST_SIDE = 2048                           # pixels; larger pictures are kept smaller, as a page shows them anyway
_MAX_JSON, _MAX_PNG = 1 << 16, 16 << 20    # bytes; 2048 x 2048 pixels of noise are 12.6 MB
_MOST_LISTED = 1000                        # entries of a folder that are looked at
_JSON, _PNG = ".json", ".png"
_HEX = re.compile(r"[0-9a-f]{64}")


def unet_id(reader: Reader) -> str | None:
    """Which UNet a VQ file holds (adapters/file.py, base_id), from its header alone; None where that was edited.

    It stays the same when a comparison is attached, when a license is written into the header, and between a
    checkpoint and its UNet alone.
    """
    return None if content_id(reader) is None else base_id(reader)


def keep(root: Path, unet: str, run: Run, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Keep a run and the first of its pictures, in place of an earlier one of the same models and settings.

    pairs: pictures of A and B, uint8 [height, width, 3]. Older runs and files beyond the limits go. OSError where
    nothing can be written there; nothing of the run is left then.
    """
    folder = _made(_made(root, parents=True) / _checked(unet))
    try:
        digests = [tuple(_put_png(folder, pixels) for pixels in pair) for pair in pairs[:MOST_PICTURES]]
        text = replace(run, pictures=tuple(digests)).to_json()
        write_bytes(folder / (run.key + _JSON), text.encode())
    finally:
        with contextlib.suppress(OSError):
            _forget_old(root, folder)


def runs(root: Path, unet: str) -> list[Run]:
    """What is kept of a file, newest first."""
    return [run for _, run in itertools.islice(_readable(root / _checked(unet)), MOST_RUNS)]


def pictures(root: Path, unet: str, run: Run) -> list[tuple[bytes, bytes] | None]:
    """PNG of A and B for each pair that a run kept; None where one is gone or damaged."""
    folder, found = root / _checked(unet), []
    for pair in run.pictures[:MOST_PICTURES]:
        a, b = (_png(folder, digest) for digest in pair)
        found.append(None if a is None or b is None else (a, b))
    return found


def _checked(unet: str) -> str:
    """An id that names a folder, and can be nothing else."""
    if not _HEX.fullmatch(unet):
        raise ValueError(f"expected 64 hexadecimal digits, got '{unet:.80}'")
    return unet


def _made(folder: Path, parents: bool = False) -> Path:
    folder.mkdir(parents=parents, exist_ok=True)
    if folder.is_symlink():
        raise OSError(None, f"'{folder.name}' is a link")
    return folder


def _put_png(folder: Path, pixels: torch.Tensor) -> str:
    data = make_png(pixels, MOST_SIDE)
    digest = hashlib.sha256(data).hexdigest()
    write_bytes(folder / (digest + _PNG), data)
    return digest


def _readable(folder: Path) -> Iterator[tuple[Path, Run]]:
    """Runs that are as `keep` wrote them, newest first."""
    for path in _listed(folder, _JSON):
        data = _read(path, _MAX_JSON)
        run = None if data is None else read_run(data.decode("utf-8", "replace"))
        if run is not None:
            yield path, run


def _png(folder: Path, digest: str) -> bytes | None:
    data = _read(folder / (digest + _PNG), _MAX_PNG)
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        return None
    size = png_size(data)
    return data if size and all(0 < side <= MOST_SIDE for side in size) else None


def _read(path: Path, most: int) -> bytes | None:
    """A plain file of at most so many bytes; a pipe or a device is not even opened."""
    try:
        status = path.lstat()
        return path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= most else None
    except OSError:
        return None


def _listed(folder: Path, ending: str = "") -> list[Path]:
    """Entries with an ending, newest first; [] for a folder that is none or a link."""
    try:
        if folder.is_symlink():
            return []
        found = [(path.lstat().st_mtime_ns, path.name, path) for path in itertools.islice(folder.iterdir(),
                                                                                          _MOST_LISTED)
                 if path.name.endswith(ending)]
    except OSError:
        return []
    return [path for *_, path in sorted(found, reverse=True)]


def _forget_old(root: Path, folder: Path) -> None:
    """Delete what is beyond the limits, and what no run names."""
    newest = list(itertools.islice(_readable(folder), MOST_RUNS))
    wanted = {path.name for path, _ in newest}
    wanted |= {digest + _PNG for _, run in newest for pair in run.pictures for digest in pair}
    for path in _listed(folder):
        if path.name not in wanted and (path.is_symlink() or not path.is_dir()):
            path.unlink(missing_ok=True)
    others = [path for path in _listed(root) if _HEX.fullmatch(path.name) and path.is_dir() and path != folder]
    for path in others[MOST_FILES - 1:]:
        shutil.rmtree(path, ignore_errors=True)                        # refuses a link by itself
