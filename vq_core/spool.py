"""The half-way store of a file being written: tensors appended as they come, a journal that lets a dead run resume."""
from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import VQError
from .locked_files import delete_locked, is_abandoned, open_slot, sweep
from .progress import Progress
from .safetensors_io import CHUNK

_JOURNAL = "vqpack spool 1"


@dataclass(frozen=True)
class Spooled:
    """One tensor in the spool."""

    key: str
    dtype: str                             # safetensors' name
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    crc32: int
    coded: bool
    tables: tuple[int, ...] = ()           # shared tables a coded weight needs
    note: dict | None = None               # anything JSON the caller wants back after a resume


class Spool:
    """Append-only file beside the target, locked while in use. `entries`: key -> Spooled, in order of arrival.

    A spool left by a dead run with the same `fingerprint` is taken over up to its last intact tensor; any other is
    discarded. Without a fingerprint nothing is ever taken over. progress: asked whether to stop at each tensor.
    """

    def __init__(self, target: Path, fingerprint: str | None, progress: Progress | None = None):
        self.fingerprint = fingerprint
        self.entries: dict[str, Spooled] = {}
        self.end = 0
        self.path, self._file = open_slot(target, ".spool", _remove)
        self._journal_path = _journal_of(self.path)
        try:
            kept = self._take_over(progress or Progress()) if fingerprint is not None else 0
        except BaseException:
            self._file.close()             # as it was, for the next run
            raise
        self._file.truncate(self.end)
        try:
            self._journal = open(self._journal_path, "r+b" if kept else "wb", buffering=0)
            self._journal.truncate(kept)
            self._journal.seek(kept)
            if not kept:
                self._write_line({"journal": _JOURNAL, "fingerprint": fingerprint})
        except OSError:
            _delete(self._file, self.path)
            raise

    def append(self, key: str, dtype: str, shape: tuple[int, ...], data: memoryview, **fields) -> None:
        """Write a tensor's bytes, then its journal line: what the journal names is complete. fields: see Spooled."""
        self._file.seek(self.end)
        crc = 0
        for start in range(0, len(data), CHUNK):
            chunk = data[start:start + CHUNK]
            crc = zlib.crc32(chunk, crc)
            write_all(self._file, chunk)
        entry = Spooled(key, dtype, tuple(shape), self.end, len(data), crc, **fields)
        self._write_line(asdict(entry))
        self.entries[key] = entry
        self.end += len(data)

    def chunks(self, entry: Spooled) -> Iterator[memoryview]:
        """A tensor's bytes, a few MiB at a time; VQError where they are no longer what was written."""
        buffer, crc = memoryview(bytearray(min(CHUNK, entry.nbytes))), 0
        self._file.seek(entry.offset)
        for start in range(0, entry.nbytes, CHUNK):
            view = buffer[:min(CHUNK, entry.nbytes - start)]
            _read_all(self._file, view)
            crc = zlib.crc32(view, crc)
            yield view
        if crc != entry.crc32:
            raise VQError(f"the disk gave back other bytes for '{entry.key}' than were written to '{self.path.name}': "
                          f"run again, and check the disk")

    def close(self, keep: bool) -> None:
        """Let go of the spool; delete it unless it is to be resumed."""
        self._journal.close()
        if keep:
            self._file.close()
        else:
            _delete(self._file, self.path)

    def _write_line(self, value: dict) -> None:
        write_all(self._journal, memoryview(json.dumps(value, sort_keys=True).encode() + b"\n"))

    def _take_over(self, progress: Progress) -> int:
        """Adopt intact entries of an earlier run -> length of the journal that stays."""
        try:
            lines = self._journal_path.read_bytes().splitlines(keepends=True)
        except OSError:
            return 0
        if not lines or _line(lines[0]) != {"journal": _JOURNAL, "fingerprint": self.fingerprint}:
            return 0
        kept = len(lines[0])
        for line in lines[1:]:
            progress.check()
            entry = _entry(_line(line))
            if entry is None or entry.offset != self.end or entry.key in self.entries or not self._intact(entry):
                break
            self.entries[entry.key] = entry
            self.end += entry.nbytes
            kept += len(line)
        return kept

    def _intact(self, entry: Spooled) -> bool:
        try:
            for _ in self.chunks(entry):
                pass
        except (VQError, EOFError):
            return False
        return True


def _line(line: bytes):
    """A journal line, None where it is torn."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _entry(value) -> Spooled | None:
    try:
        entry = Spooled(**{**value, "shape": tuple(value["shape"]), "tables": tuple(value["tables"])})
        return entry if min(entry.offset, entry.nbytes) >= 0 else None
    except (TypeError, KeyError):
        return None


def sweep_abandoned(folder: Path, keep: Path) -> list[str]:
    """Delete spools of runs that nobody will go on with -> their names.

    Only files that are ours (a journal of this program lies beside them), that no living run holds and that were not
    written to for ABANDONED_DAYS; with each its journal and `.part`. What cannot be deleted is left, and `keep` is the
    caller's own.
    """
    swept = []
    for path in sorted(folder.glob("*.safetensors*.spool")):
        journal = _journal_of(path)
        try:
            if path != keep and is_abandoned(path, journal) and _is_ours(journal):
                sweep(path, _remove)
                swept += [] if path.exists() else [path.name]
        except OSError:
            continue
    return swept


def _is_ours(journal: Path) -> bool:
    with open(journal, "rb") as file:
        first = _line(file.readline(4096))
    return isinstance(first, dict) and first.get("journal") == _JOURNAL


def _journal_of(spool: Path) -> Path:
    return spool.with_name(spool.name + ".journal")


def _remove(path: Path, file) -> None:
    """Delete a spool we hold, its journal and its `.part`."""
    path.with_suffix(".part").unlink(missing_ok=True)
    _delete(file, path)


def _delete(file, path: Path) -> None:
    _journal_of(path).unlink(missing_ok=True)
    delete_locked(path, file)


def write_all(file, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data):]


def _read_all(file, view: memoryview) -> None:
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
