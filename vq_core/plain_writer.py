"""Writing an ordinary .safetensors file whose keys, dtypes and shapes are known beforehand: stream, sync, rename."""
from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import torch

from .errors import VQError
from .file_names import numbered
from .open_files import is_open
from .safetensors_io import CHUNK, DTYPES, Entry, dump_header, frame_header
from .writer import HASH_KEY, _flushed, _os_error, _rename_new

_NO_HASH = "0x" + "0" * 64                 # as long as the real one, which is known only at the end


class PlainWriter:
    """Writes tensors in the order they were announced, rows at a time, into `<target>.part`; close() renames it.

    tensors: (key, safetensors' dtype name, shape). Where `metadata` has a modelspec hash it is computed anew.
    An existing target gets a number unless `overwrite`. abort() leaves nothing behind. Raises VQError for what the
    file system refuses.
    """

    def __init__(self, target: str | Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]],
                 metadata: Mapping[str, str], overwrite: bool = False):
        self.target, self.overwrite = Path(target), overwrite
        self._part = self.target.with_name(self.target.name + ".part")
        self._entries, end = [], 0
        for key, dtype, shape in tensors:
            start, end = end, end + prod(shape) * DTYPES[dtype][0]
            self._entries.append(Entry(key, dtype, tuple(shape), start, end))
        self._metadata = dict(metadata)
        self._hash = hashlib.sha256() if HASH_KEY in self._metadata else None
        if self._hash is not None:
            self._metadata[HASH_KEY] = _NO_HASH
        header = self._header()
        self._written, self._end = 0, end
        if not self.target.parent.is_dir():
            raise VQError(f"the folder '{self.target.parent}' does not exist: create it or choose another one")
        if overwrite and is_open(self.target):
            raise VQError(f"'{self.target.name}' is loaded and cannot be replaced: unload it or choose another name")
        self._check_space(end + len(header))
        self._file = self._try(lambda: open(self._part, "wb", buffering=0))  # noqa: SIM115 - kept open
        try:
            self._write(memoryview(header))
        except BaseException:
            self.abort()
            raise

    def write(self, rows: torch.Tensor) -> None:
        """Append the bytes of some rows of the next tensor."""
        if not rows.numel():
            return
        data = memoryview(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        if self._hash is not None:
            self._hash.update(data)
        self._written += len(data)
        self._write(data)

    def close(self) -> Path:
        """Check that all tensors are there, sync, rename -> the final path."""
        if self._written != self._end:
            raise VQError(f"'{self.target.name}' got {self._written} bytes of tensors, its header has {self._end}")
        if self._hash is not None:
            self._metadata[HASH_KEY] = "0x" + self._hash.hexdigest()
            self._try(lambda: self._file.seek(0))
            self._write(memoryview(self._header()))
        self._try(lambda: os.fsync(self._file.fileno()))
        self._file.close()
        return _flushed(self._try(self._publish))

    def abort(self) -> None:
        """Delete what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _header(self) -> bytes:
        return frame_header(dump_header(self._entries, 0, self._metadata))

    def _publish(self) -> Path:
        if self.overwrite:
            os.replace(self._part, self.target)
            return self.target
        while True:
            final = numbered(self.target)
            try:
                _rename_new(self._part, final)
                return final
            except FileExistsError:        # somebody was faster: take the next number
                continue

    def _check_space(self, needed: int) -> None:
        free = self._try(lambda: shutil.disk_usage(self.target.parent).free)
        if free < needed:
            raise VQError(f"not enough space in '{self.target.parent}': {needed / 1e9:.2f} GB are needed, "
                          f"{free / 1e9:.2f} GB are free")

    def _write(self, data: memoryview) -> None:
        while len(data):
            data = data[self._try(lambda chunk=data[:CHUNK]: self._file.write(chunk)):]

    def _try(self, action):
        try:
            return action()
        except OSError as error:
            raise _os_error(error, self.target.parent) from None
