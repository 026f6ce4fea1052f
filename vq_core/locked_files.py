"""Files that one run holds for itself: numbered names beside a target, locks, and what dead runs left behind."""
from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from .errors import VQError

WINDOWS = os.name == "nt"
SLOTS = 20                                 # runs that may write beside each other under one name
ABANDONED_DAYS = 30                        # a stopped run goes on from its spool; after so long nobody waits for it


def open_slot(target: Path, ending: str, remove) -> tuple[Path, object]:
    """-> (path, locked file) of the first of `<target><ending>`, `<target>.1<ending>` ... that no living run holds.

    What dead runs left under later names is handed to remove(path, file). VQError where all names are taken.
    """
    names = [target.with_name(target.name + (f".{slot}{ending}" if slot else ending)) for slot in range(SLOTS)]
    for index, path in enumerate(names):
        file = open_locked(path)
        if file is not None:
            for other in names[index + 1:]:
                sweep(other, remove)
            return path, file
    raise VQError(f"{SLOTS} other runs are writing '{target.name}' in '{target.parent}': wait for them or choose "
                  f"another name")


def sweep(path: Path, remove) -> None:
    """Hand a file to remove(path, file) if it is there and no living run holds it."""
    file = open_locked(path) if path.exists() else None
    if file is not None:
        remove(path, file)


def is_abandoned(*paths: Path) -> bool:
    """Whether none of these files was written to for ABANDONED_DAYS; False where one cannot be asked."""
    try:
        newest = max(path.stat().st_mtime for path in paths)
    except OSError:
        return False
    return time.time() - newest > ABANDONED_DAYS * 86400


def delete_locked(path: Path, file) -> None:
    """Delete a file we hold; still locked where the system lets us delete an open file."""
    if WINDOWS:
        file.close()
    path.unlink(missing_ok=True)
    file.close()


def open_locked(path: Path):
    """Open for reading and writing, made if absent -> file, None where a living run holds it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b", buffering=0)
    if not lock(file):
        file.close()
        return None
    if not WINDOWS:
        try:
            same = os.path.samestat(os.stat(path), os.fstat(file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:                       # its owner deleted it between our open and our lock
            file.close()
            return open_locked(path)
    return file


def lock(file) -> bool:
    """True unless a living process holds the file; systems that cannot lock count as free."""
    try:
        if WINDOWS:
            import msvcrt

            file.seek(0x7FFFFFF0)          # far behind any byte we read, Windows locks forbid reading
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True
