"""Writing a vqpack file: tensors into a spool, then header and data into `.part`, flushed, renamed. All or nothing."""
from __future__ import annotations

import errno
import hashlib
import os
import zlib
from pathlib import Path

import torch

from .errors import FormatError, VQError
from .file_names import SUFFIX
from .open_files import is_open
from .progress import Progress
from .publish import FULL, Flushed, NotRenamed, check_space, os_error, publish
from .record import read_layout
from .safetensors_io import DTYPES, Entry, dtype_name, dump_header, frame_header
from .spool import Spool, Spooled, sweep_abandoned, write_all
from .table_record import table_key
from .version import FORMAT_VERSION

MAX_HEADER = 1 << 20                       # ComfyUI's view of metadata reads no further
_TWICE = " for a while (twice the result, whose parts are collected first and then put in order)"
_BESIDE = " for the result beside its collected parts"
CRC_KEY, HEADER_CRC_KEY, HASH_KEY = "vqpack.crc32", "vqpack.header_crc32", "modelspec.hash_sha256"


class Writer:
    """Collects tensors, then writes one file; until `close` nothing stands under the final name.

    path: the file to be made. overwrite: replace what is there; otherwise an existing name gets a number.
    fingerprint: text that decides the content (source, plan, settings); with it a run that died or was aborted with
    keep_spool is resumed: `key in writer` tells what is there already. expected_bytes: checked against free space.
    progress: asked whether to stop while an earlier run's tensors are read.
    VQError: no such folder, not writable, too little space, the file to be replaced is loaded.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool = False, fingerprint: str | None = None,
                 expected_bytes: int = 0, progress: Progress | None = None):
        self.path, self.overwrite = Path(path), overwrite
        self._spool: Spool | None = None
        if self.path.suffix != SUFFIX:
            raise VQError(f"expected a file name ending in {SUFFIX}, got '{self.path.name}'")
        if not self.path.parent.is_dir():
            raise VQError(f"the folder '{self.path.parent}' does not exist: create it or choose another one")
        self._refuse_open(self.path)
        try:
            self._spool = Spool(self.path, fingerprint, progress)
        except OSError as error:
            raise os_error(error, self.path.parent) from None
        self._part = self._spool.path.with_suffix(".part")
        try:
            self._part.unlink(missing_ok=True)
            sweep_abandoned(self.path.parent, keep=self._spool.path)
            check_space(self.path.parent, 2 * expected_bytes - self._spool.end, _TWICE)
        except BaseException:
            self.abort(keep_spool=True)
            raise

    def __contains__(self, key: str) -> bool:
        return key in self._entries()

    def keys(self) -> list[str]:
        """What is in the file so far, in order of arrival (an earlier run's keys first)."""
        return list(self._entries())

    def note(self, key: str) -> dict | None:
        """The note a tensor was added with."""
        return self._entries()[key].note

    def nbytes(self, key: str) -> int:
        """Stored bytes of a tensor."""
        return self._entries()[key].nbytes

    def blob(self, key: str) -> torch.Tensor:
        """The bytes of a tensor that was added, uint8 [nbytes]."""
        entry = self._entries()[key]
        return torch.frombuffer(bytearray(b"".join(self._spool.chunks(entry))), dtype=torch.uint8)

    def add(self, key: str, tensor: torch.Tensor, note: dict | None = None) -> None:
        """Add a tensor as it is: its bytes are what the file will hold. note: JSON kept for a resumed run."""
        data = tensor.detach().cpu().contiguous().reshape(-1)
        self._append(key, dtype_name(tensor.dtype), tuple(tensor.shape), _memory(data), False, note)

    def add_bytes(self, key: str, dtype: str, shape: tuple[int, ...], data: torch.Tensor,
                  note: dict | None = None) -> None:
        """Add bytes, uint8 [n], under any dtype safetensors names, known to this torch or not."""
        if dtype not in DTYPES or data.numel() != DTYPES[dtype][0] * torch.Size(shape).numel():
            raise FormatError(f"tensor '{key}': {data.numel()} bytes are no {dtype} {list(shape)}")
        self._append(key, dtype, tuple(shape), _memory(data.contiguous()), False, note)

    def add_blob(self, key: str, blob: torch.Tensor, note: dict | None = None) -> None:
        """Add a coded weight, uint8 [bytes] from build_blob. The shared tables it names must be added before close."""
        layout = read_layout(blob, key)
        tables = sorted({part.table_id for part in layout.parts if part.kind == "trellis"})
        self._append(key, "U8", (blob.numel(),), _memory(blob.cpu().contiguous()), True, note, tuple(tables))

    def rename(self, path: str | os.PathLike) -> None:
        """Change the final name within the same folder (a name that waits for the measured bits)."""
        path = self.path.parent / Path(path).name
        if path.suffix != SUFFIX:
            raise VQError(f"expected a file name ending in {SUFFIX}, got '{path.name}'")
        self.path = path

    def file_bytes(self, metadata: dict[str, str]) -> int:
        """Size of the file that close(metadata) would write."""
        ordered = self._ordered()
        return len(self._header(ordered, metadata, "0" * 64)) + sum(e.nbytes for e in ordered)

    def close(self, metadata: dict[str, str], progress: Progress | None = None) -> Path:
        """Write the file and put it under its name -> that name (numbered where the name was taken or is in use).

        Adds format, vqpack.version, checksums and modelspec.hash_sha256 to `metadata`. On any error, and where
        `progress` was told to stop, nothing of the file stays; the spool stays for `abort` to decide.
        """
        ordered, progress = self._ordered(), progress or Progress()
        missing = [table_key(t) for e in ordered for t in e.tables if table_key(t) not in self._entries()]
        if missing:
            raise FormatError(f"the shared table '{missing[0]}' was not added, but a coded weight needs it")
        try:
            file_bytes = self.file_bytes(metadata)
            check_space(self.path.parent, file_bytes, _BESIDE)
            progress.start("writing the file", file_bytes)
            self._write_part(ordered, metadata, progress)
            progress.check()               # the last moment: what has its name stays
            final = publish(self._part, self.path, self.overwrite)
        except NotRenamed:
            self.abort()                   # the spool goes, the finished file stays
            raise
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise self._failed(error) from None
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        self.abort()
        progress.finish()
        return final

    def abort(self, keep_spool: bool = False) -> None:
        """Give up: leaves nothing behind, or only the spool if it can be resumed. Harmless after close."""
        if self._spool is not None:
            spool, self._spool = self._spool, None
            spool.close(keep=keep_spool and spool.fingerprint is not None and bool(spool.entries))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, *_) -> None:
        self.abort(keep_spool=kind is not None)

    def _entries(self) -> dict[str, Spooled]:
        if self._spool is None:
            raise VQError(f"'{self.path.name}' is closed already")
        return self._spool.entries

    def _append(self, key: str, dtype: str, shape, data: memoryview, coded: bool, note: dict | None,
                tables: tuple[int, ...] = ()) -> None:
        if key in self._entries():
            raise FormatError(f"tensor '{key}' was added twice")
        if key == "__metadata__" or key.endswith(".comfy_quant") or not _is_text(key):
            raise FormatError(f"'{key!r:.80}' cannot be the name of a tensor in a vqpack file")
        try:
            self._spool.append(key, dtype, shape, data, coded=coded, tables=tables, note=note)
        except OSError as error:
            raise self._failed(error) from None

    def _ordered(self) -> list[Spooled]:
        """Blobs (multiples of 64 bytes) by key, then the rest by element size: so every tensor is aligned."""
        return sorted(self._entries().values(),
                      key=lambda e: (not e.coded, -DTYPES[e.dtype][0] if not e.coded else 0, e.key))

    def _header(self, ordered: list[Spooled], metadata: dict[str, str], sha256: str) -> bytes:
        position, entries = 0, []
        for e in ordered:
            entries.append(Entry(e.key, e.dtype, e.shape, position, position + e.nbytes))
            position += e.nbytes
        crcs = [(entry.start, entry.stop, e.key, e.crc32) for entry, e in zip(entries, ordered, strict=True)]
        full = {**metadata, "format": "pt", "vqpack.version": str(FORMAT_VERSION), HASH_KEY: f"0x{sha256}",
                CRC_KEY: "".join(f"{crc:08x}" for *_, crc in sorted(crcs))}
        full.pop(HEADER_CRC_KEY, None)
        full[HEADER_CRC_KEY] = f"{zlib.crc32(dump_header(entries, 0, full)):08x}"
        framed = frame_header(dump_header(entries, 0, full))
        if len(framed) > MAX_HEADER:
            raise VQError(f"the header of '{self.path.name}' would be {len(framed)} bytes long, at most {MAX_HEADER} "
                          f"are allowed: the source's own metadata is too long")
        return framed

    def _write_part(self, ordered: list[Spooled], metadata: dict[str, str], progress: Progress) -> None:
        header, digest = self._header(ordered, metadata, "0" * 64), hashlib.sha256()
        with open(self._part, "wb", buffering=0) as file:
            flushed = Flushed(file)
            write_all(file, memoryview(header))
            for entry in ordered:
                for view in self._spool.chunks(entry):
                    digest.update(view)
                    write_all(file, view)
                    flushed.wrote(len(view))
                    progress.advance(len(view))
            file.seek(0)
            write_all(file, memoryview(self._header(ordered, metadata, digest.hexdigest())))
            flushed.flush()

    def _refuse_open(self, path: Path) -> None:
        if self.overwrite and is_open(path):
            raise VQError(f"'{path.name}' is loaded and cannot be replaced: unload it or choose another name")

    def _failed(self, error: OSError) -> VQError:
        """An error of the system in words; a full disk is given its space back at once."""
        if error.errno in FULL or error.errno == errno.EFBIG:
            self.abort()
        return os_error(error, self.path.parent)


def _memory(data: torch.Tensor) -> memoryview:
    return memoryview(data.view(torch.uint8).numpy()) if data.numel() else memoryview(b"")


def _is_text(key: str) -> bool:
    try:
        return bool(key.encode("utf-8"))
    except UnicodeEncodeError:
        return False
