"""Writing an ordinary .safetensors file whose keys, dtypes and shapes are known beforehand: stream, sync, rename."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import torch

from .errors import VQError
from .locked_files import WINDOWS, delete_locked, open_slot
from .open_files import is_open
from .progress import Progress
from .publish import Flushed, NotRenamed, check_space, os_error, publish
from .safetensors_io import CHUNK, DTYPES, Entry, dump_header, frame_header
from .writer import HASH_KEY

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
        self._entries, end = [], 0
        for key, dtype, shape in tensors:
            start, end = end, end + prod(shape) * DTYPES[dtype][0]
            self._entries.append(Entry(key, dtype, tuple(shape), start, end))
        self._metadata = dict(metadata)
        self._hash = hashlib.sha256() if HASH_KEY in self._metadata else None
        if self._hash is not None:
            self._metadata[HASH_KEY] = _NO_HASH
        header = self._header()
        self._written, self._end, self._keep = 0, end, False
        if not self.target.parent.is_dir():
            raise VQError(f"the folder '{self.target.parent}' does not exist: create it or choose another one")
        if overwrite and is_open(self.target):
            raise VQError(f"'{self.target.name}' is loaded and cannot be replaced: unload it or choose another name")
        self._try(lambda: check_space(self.target.parent, end + len(header)))
        self._part, self._file = self._try(lambda: open_slot(self.target, ".part", delete_locked))
        self._flushed = Flushed(self._file)
        try:
            self._try(lambda: self._file.truncate(0))      # what a dead run left
            self._file.seek(0)
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
        self._try(lambda: self._flushed.wrote(len(data)))

    def close(self, progress: Progress | None = None) -> Path:
        """Check that all tensors are there, sync, ask `progress` whether to stop, rename -> the final path."""
        if self._written != self._end:
            raise VQError(f"'{self.target.name}' got {self._written} bytes of tensors, its header has {self._end}")
        if self._hash is not None:
            self._metadata[HASH_KEY] = "0x" + self._hash.hexdigest()
            self._try(lambda: self._file.seek(0))
            self._write(memoryview(self._header()))
        self._try(self._flushed.flush)
        (progress or Progress()).check()   # the last moment: what has its name stays
        if WINDOWS:                        # renames no open file; elsewhere the lock holds until it has its name
            self._file.close()
        try:
            final = self._try(lambda: publish(self._part, self.target, self.overwrite))
        except NotRenamed:
            self._keep = True
            raise
        self._file.close()
        return final

    def abort(self) -> None:
        """Delete what was written, unless it is finished and only its name was refused."""
        if self._keep:
            self._file.close()
        else:
            delete_locked(self._part, self._file)

    def _header(self) -> bytes:
        return frame_header(dump_header(self._entries, 0, self._metadata))

    def _write(self, data: memoryview) -> None:
        while len(data):
            data = data[self._try(lambda chunk=data[:CHUNK]: self._file.write(chunk)):]

    def _try(self, action):
        try:
            return action()
        except OSError as error:
            raise os_error(error, self.target.parent) from None
