"""Which files this process holds open or mapped, so that none of them is replaced under its reader."""
from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

_OPEN: weakref.WeakSet = weakref.WeakSet()


class Mapping(mmap.mmap):
    """A whole file as memory, private: a write neither fails nor reaches the file. Lives as long as its views."""


class Handle:
    """Marks a file as open until it is closed or forgotten."""


def map_file(file) -> Mapping:
    """Map an open file."""
    mapping = Mapping(file.fileno(), 0, access=mmap.ACCESS_COPY)
    _mark(mapping, file)
    return mapping


def mark_open(file) -> Handle:
    """Mark an open file without mapping it."""
    handle = Handle()
    _mark(handle, file)
    return handle


def close_handle(handle: Handle) -> None:
    """Forget a mark; mappings of the same file still count while they live."""
    _OPEN.discard(handle)


def is_open(path: str | os.PathLike) -> bool:
    """True where this process reads the file at `path`, under whatever name."""
    try:
        stat = os.stat(Path(path))
    except OSError:
        return False
    return any(marked.identity == (stat.st_dev, stat.st_ino) for marked in list(_OPEN))


def _mark(marked, file) -> None:
    stat = os.fstat(file.fileno())
    marked.identity = (stat.st_dev, stat.st_ino)
    _OPEN.add(marked)
