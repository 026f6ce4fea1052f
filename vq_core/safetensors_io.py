"""Safetensors files at byte level: a header nobody has to trust, one tensor at a time, checksums. Knows no vqpack."""
from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import FormatError, UnsupportedError
from .progress import Progress

# name in the file -> (bytes of one element, torch's name; not every torch has every type)
DTYPES = {
    "BOOL": (1, "bool"), "U8": (1, "uint8"), "I8": (1, "int8"), "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"), "F8_E8M0": (1, "float8_e8m0fnu"), "F8_E4M3FNUZ": (1, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (1, "float8_e5m2fnuz"), "I16": (2, "int16"), "U16": (2, "uint16"), "F16": (2, "float16"),
    "BF16": (2, "bfloat16"), "I32": (4, "int32"), "U32": (4, "uint32"), "F32": (4, "float32"), "I64": (8, "int64"),
    "U64": (8, "uint64"), "F64": (8, "float64"), "C64": (8, "complex64"),
}
MAX_HEADER = 100_000_000   # bytes; the limit of the safetensors library itself
CHUNK = 4 << 20            # bytes of one read: large enough for full disk speed, small beside any tensor set
_MAX_DIMS = 16


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `start` and `stop` are byte offsets from the start of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Length of the data in bytes."""
        return self.stop - self.start

    @property
    def torch_dtype(self) -> torch.dtype:
        """torch's dtype; UnsupportedError where the running torch has none."""
        dtype = getattr(torch, DTYPES[self.dtype][1], None)
        if dtype is None:
            raise UnsupportedError(f"tensor '{self.key}' has dtype {self.dtype}, which torch {torch.__version__} "
                                   f"does not know: install a newer torch")
        return dtype


@dataclass(frozen=True)
class Header:
    """A checked header; entries are in ascending order of (start, stop, key)."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int
    text: bytes             # the JSON as it stands in the file, padding included


def dtype_name(dtype: torch.dtype) -> str:
    """Safetensors' name of a torch dtype."""
    for name, (_, torch_name) in DTYPES.items():
        if getattr(torch, torch_name, None) is dtype:
            return name
    raise UnsupportedError(f"safetensors has no name for {dtype}")


def dump_header(entries: Iterable[Entry], data_start: int, metadata: dict[str, str]) -> bytes:
    """Canonical JSON of a header (sorted keys, no spaces, UTF-8); offsets are taken relative to `data_start`."""
    table = {e.key: {"dtype": e.dtype, "shape": list(e.shape),
                     "data_offsets": [e.start - data_start, e.stop - data_start]} for e in entries}
    if metadata:
        table["__metadata__"] = metadata
    return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def frame_header(text: bytes, align: int = 64) -> bytes:
    """Length prefix + JSON + spaces, so that the data behind it starts at a multiple of `align`."""
    padded = text + b" " * (-(8 + len(text)) % align)
    return struct.pack("<Q", len(padded)) + padded


def read_header(path: str | os.PathLike) -> Header:
    """Read and check a file's header; FormatError says what is wrong with a file that is not exactly safetensors."""
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            return _read_header(file, name)
    except OSError as error:
        raise FormatError(f"cannot open '{name}': {error.strerror or error}") from None


def _read_header(file, name: str) -> Header:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise FormatError(f"'{name}' is not a safetensors file: it is {f'only {size} bytes long' if size else 'empty'}")
    length = struct.unpack("<Q", file.read(8))[0]
    if length > MAX_HEADER:
        raise FormatError(f"'{name}' is not a safetensors file or is damaged: its header claims {length} bytes, "
                          f"at most {MAX_HEADER} are allowed")
    if length < 2 or 8 + length > size:
        raise FormatError(f"'{name}' is truncated or not a safetensors file: its header claims {length} bytes, "
                          f"the file has {size}")
    text = file.read(length)
    if len(text) != length or text[:1] != b"{":
        raise FormatError(f"'{name}' is not a safetensors file: its header does not start with '{{'")
    entries, metadata = parse_header(text, 8 + length, name)
    _check_tiling(entries, 8 + length, size, name)
    return Header({e.key: e for e in entries}, metadata, 8 + length, size, text)


def parse_header(text: bytes, data_start: int, name: str) -> tuple[list[Entry], dict[str, str]]:
    """-> (entries in ascending order of offsets, metadata); FormatError for anything but a well-formed header."""
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise FormatError(f"the header of '{name}' is not valid JSON ({reason:.120})") from None
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"the header of '{name}' has a __metadata__ that is not text by text")
    entries = [_entry(key, value, data_start, name) for key, value in table.items()]
    return sorted(entries, key=lambda e: (e.start, e.stop, e.key)), metadata


def _unique(pairs: list[tuple[str, object]]) -> dict:
    out = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {key!r:.80} appears twice")
        key.encode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
        out[key] = value
    return out


def _no_constant(text: str):
    raise ValueError(f"{text} is not a JSON number")


def _counts(value, most: int) -> bool:
    return (isinstance(value, list) and len(value) <= most
            and all(type(v) is int and 0 <= v < 2**63 for v in value))


def _entry(key: str, value, data_start: int, name: str) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"tensor '{key:.80}' of '{name}' needs exactly dtype, shape and data_offsets in the header")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"tensor '{key:.80}' of '{name}' has dtype {dtype!r:.40}, which is not one of safetensors' "
                          f"whole-byte types")
    if not _counts(shape, _MAX_DIMS) or not _counts(offsets, 2) or len(offsets) != 2:
        raise FormatError(f"tensor '{key:.80}' of '{name}' has a bad shape or bad data_offsets in the header")
    needed = math.prod(shape) * DTYPES[dtype][0]
    if offsets[1] - offsets[0] != needed:
        raise FormatError(f"tensor '{key:.80}' of '{name}' has {offsets[1] - offsets[0]} bytes, its shape "
                          f"{shape} in {dtype} needs {needed}")
    return Entry(key, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _check_tiling(entries: list[Entry], position: int, size: int, name: str) -> None:
    for entry in entries:
        if entry.start != position:
            raise FormatError(f"tensor '{entry.key:.80}' of '{name}' starts at byte {entry.start}, expected "
                              f"{position}: tensors must follow each other without holes")
        position = entry.stop
    if position > size:
        raise FormatError(f"'{name}' is truncated: its header describes {position} bytes, the file has {size}")
    if position < size:
        raise FormatError(f"'{name}' has {size - position} bytes behind its last tensor: it is damaged")


class SafetensorsFile:
    """One open file, read tensor by tensor with plain reads, so the process never grows by the file's size.

    Usable from several threads (reads are serialized). Close it, or use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.header = read_header(path)
        self._file = open(path, "rb", buffering=0)
        self._lock = threading.Lock()

    @property
    def entries(self) -> dict[str, Entry]:
        """key -> Entry, in ascending order of offsets."""
        return self.header.entries

    @property
    def metadata(self) -> dict[str, str]:
        """The header's `__metadata__`."""
        return self.header.metadata

    def fileno(self) -> int:
        """The system's number of the open file."""
        return self._file.fileno()

    def entry(self, key: str) -> Entry:
        """The entry of `key`; FormatError where there is none."""
        if key not in self.header.entries:
            raise FormatError(f"'{self.path.name}' has no tensor '{key:.120}'")
        return self.header.entries[key]

    def read_into(self, buffer, offset: int) -> None:
        """Fill a writable buffer from byte `offset` of the file; FormatError where the file ends before."""
        view = memoryview(buffer).cast("B")
        with self._lock:
            self._file.seek(offset)
            while len(view):
                count = self._file.readinto(view[:1 << 30])
                if not count:
                    raise FormatError(f"'{self.path.name}' ended {len(view)} bytes early: it was changed or truncated "
                                      f"while being read")
                view = view[count:]

    def read_bytes(self, key: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Bytes start..stop of a tensor's data in memory of their own -> uint8 [stop - start]."""
        entry = self.entry(key)
        stop = entry.nbytes if stop is None else min(stop, entry.nbytes)
        out = torch.empty(max(0, stop - start), dtype=torch.uint8)
        if out.numel():
            self.read_into(out.numpy(), entry.start + start)
        return out

    def tensor(self, key: str) -> torch.Tensor:
        """The tensor, in memory of its own."""
        entry = self.entry(key)
        return self.read_bytes(key).view(entry.torch_dtype).view(entry.shape)

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop (first dimension) of a tensor, without reading the others."""
        entry = self.entry(key)
        count, row = entry.shape[0], entry.nbytes // max(1, entry.shape[0])
        start, stop = max(0, start), min(stop, count)
        data = self.read_bytes(key, start * row, stop * row)
        return data.view(entry.torch_dtype).view(max(0, stop - start), *entry.shape[1:])

    def chunks(self, key: str) -> Iterator[memoryview]:
        """A tensor's bytes, a few MiB at a time; each view is valid until the next one."""
        entry = self.entry(key)
        buffer = memoryview(bytearray(min(CHUNK, entry.nbytes)))
        for offset in range(0, entry.nbytes, CHUNK):
            view = buffer[:min(CHUNK, entry.nbytes - offset)]
            self.read_into(view, entry.start + offset)
            yield view

    def crc32(self, key: str) -> int:
        """CRC-32 of a tensor's bytes."""
        crc = 0
        for view in self.chunks(key):
            crc = zlib.crc32(view, crc)
        return crc

    def close(self) -> None:
        """Close the file; tensors already read stay valid."""
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def sha256_file(path: str | os.PathLike, progress: Progress | None = None) -> str:
    """SHA-256 of a whole file, hexadecimal; advances `progress` by bytes."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress.advance(len(chunk))
    return digest.hexdigest()
