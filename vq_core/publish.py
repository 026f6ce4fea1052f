"""Putting a finished file under its name, and what the file system refuses on the way, in words."""
from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

from .errors import VQError
from .file_names import numbered
from .locked_files import WINDOWS
from .open_files import is_open

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_USE = (32, 33)                         # Windows: sharing violation, lock violation
_LONGEST_WINDOWS_PATH = 259
_FLUSHED = 128 << 20                       # bytes at a time: no stop reaches what the system does at the end of 7 GB
_PATIENCE = (0.1, 0.3, 0.6, 1.0, 2.0)      # seconds between tries: a virus scanner lets go of a new file in that time


class Flushed:
    """An open file whose bytes the system is told to put on the disk a part at a time."""

    def __init__(self, file):
        self._file, self._waiting = file, 0

    def wrote(self, nbytes: int) -> None:
        """So many bytes more were written."""
        self._waiting += nbytes
        if self._waiting >= _FLUSHED:
            self.flush()

    def flush(self) -> None:
        """Return when all of it is there."""
        os.fsync(self._file.fileno())
        self._waiting = 0


class NotRenamed(VQError):
    """The finished file is complete but still under its temporary name, which the message tells."""


def publish(part: Path, target: Path, overwrite: bool) -> Path:
    """Rename a finished, closed file -> its final name, made to last.

    Never over a file that this process has open, nor over one nobody allowed to replace: such a name gets a number,
    also where Windows refuses to replace a file that another program has open. NotRenamed where the system does not
    let go of `part`: it stays, complete. OSError for anything else.
    """
    if overwrite and not is_open(target):
        try:
            os.replace(part, target)
            return flush_folder(target)
        except PermissionError:            # another program has it open or mapped
            pass
    return flush_folder(_rename_numbered(part, target))


def _rename_numbered(part: Path, target: Path) -> Path:
    waits = iter(_PATIENCE)
    while True:
        final = numbered(target)
        try:
            rename_new(part, final)
            return final
        except FileExistsError:            # somebody was faster: take the next number
            continue
        except PermissionError as error:
            wait = next(waits, None)
            if wait is None:
                raise NotRenamed(f"'{final.name}' is finished, but the system refuses to rename it from '{part.name}' "
                                 f"in '{part.parent}' ({error.strerror}): close what holds it open and rename it "
                                 f"yourself") from None
            time.sleep(wait)


def rename_new(part: Path, final: Path) -> None:
    """Rename without replacing: a hard link is atomic; systems without links get a plain rename."""
    if WINDOWS:                            # refuses an existing name by itself
        os.rename(part, final)
        return
    try:
        os.link(part, final)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, "exists", str(final)) from None
        os.rename(part, final)
    else:
        part.unlink()


def flush_folder(path: Path) -> Path:
    """Make the rename of `path` last -> path; not every system can flush a folder (Windows cannot open one)."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:
        return path
    try:
        os.fsync(folder)
    except OSError:
        pass
    finally:
        os.close(folder)
    return path


def check_space(folder: Path, needed: int, why: str = "") -> None:
    """VQError, with the bytes that are needed and free, where a folder's disk has not enough of them."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise VQError(f"not enough space in '{folder}': {needed / 1e9:.2f} GB are needed{why}, {free / 1e9:.2f} GB "
                      f"are free; delete something or choose another folder")


def os_error(error: OSError, folder: Path) -> VQError:
    """An error of the system while writing into `folder`, in one sentence."""
    length = len(str(error.filename or ""))
    if error.errno == errno.ENAMETOOLONG or getattr(error, "winerror", None) == 206 or (
            WINDOWS and length > _LONGEST_WINDOWS_PATH):
        return VQError(f"the path of a file in '{folder}' is too long for this system ({length} characters, Windows "
                       f"takes {_LONGEST_WINDOWS_PATH}): choose a shorter name or a folder nearer to the disk's root")
    if error.errno in FULL:
        return VQError(f"the disk of '{folder}' is full: free some space and run again; no half-written file was left")
    if getattr(error, "winerror", None) in _IN_USE:
        return VQError(f"another program holds a file in '{folder}' that is to be written ({error.strerror}): close it "
                       f"and run again")
    if error.errno in _DENIED:
        return VQError(f"cannot write into '{folder}' ({error.strerror}): choose another folder")
    return VQError(f"writing into '{folder}' failed: {error.strerror or error}")
