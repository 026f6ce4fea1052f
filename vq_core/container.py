"""Reading a vqpack file: header, shared tables, dense tensors and coded weights. (Writing: writer.py.)"""
from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch

from .errors import FormatError
from .file_names import output_name
from .head import head_bytes, parse_layout
from .layout import MAGIC, RECORD_BYTES, Layout
from .open_files import close_handle, map_file, mark_open
from .progress import Progress
from .record import check_section_values, check_tables
from .safetensors_io import Entry, Header, SafetensorsFile, dump_header
from .table_record import PREFIX, parse_table, table_key
from .version import FORMAT_VERSION
from .weight import CodedWeight, Tables
from .writer import CRC_KEY, HEADER_CRC_KEY, Writer

__all__ = ["Reader", "Writer", "output_name", "header_crc32"]


class Reader:
    """An open vqpack file.

    mapped: tensors are views of the mapped file (copied only where another tool's layout left them unaligned), whose
    checksums `check_tensors` compares; otherwise each is read into memory of its own, which keeps the process small,
    and compared as it is read. `warnings`: what is odd about the header but does not hinder loading.
    FormatError: not a safetensors file, not one of ours, unknown version.
    """

    def __init__(self, path: str | os.PathLike, mapped: bool = True):
        self.path, self.mapped = Path(path), mapped
        self._file = SafetensorsFile(path)
        self._handle = mark_open(self._file)
        self._bytes: torch.Tensor | None = None
        self._tables: Tables | None = None
        self._layouts: dict[str, Layout] = {}
        try:
            self._coded = [key for key, entry in self._file.entries.items() if self._is_coded(entry)]
            self.warnings = _header_warnings(self._file.header, self._coded, self.path.name)
            self._sums = _checksums(self._file.header, edited=bool(self.warnings))
        except BaseException:
            self.close()
            raise

    @property
    def metadata(self) -> dict[str, str]:
        """The header's metadata."""
        return self._file.metadata

    @property
    def header(self) -> Header:
        """The checked header."""
        return self._file.header

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self._file.header.file_bytes

    def keys(self) -> list[str]:
        """All keys, in ascending order of offset."""
        return list(self._file.entries)

    def entry(self, key: str) -> Entry:
        """dtype, shape and offsets of one key; FormatError where there is none."""
        return self._file.entry(key)

    def coded_keys(self) -> list[str]:
        """Keys that hold blobs."""
        return list(self._coded)

    def raw(self, key: str) -> torch.Tensor:
        """A tensor's bytes, uint8 [n], aligned for any dtype; unmapped, FormatError for a wrong checksum."""
        entry = self._file.entry(key)
        if not self.mapped or not entry.nbytes:
            data = self._file.read_bytes(key)
            if not self._matches(key, zlib.crc32(data.numpy())):
                raise FormatError(_damaged(self.path.name, [key]))
            return data
        if self._bytes is None:
            self._bytes = torch.frombuffer(map_file(self._file), dtype=torch.uint8)
        view = self._bytes[entry.start:entry.stop]
        return view if entry.start % 8 == 0 else view.clone()

    def tensor(self, key: str) -> torch.Tensor:
        """A tensor as stored (a coded weight gives its blob)."""
        entry = self._file.entry(key)
        return self.raw(key).view(entry.torch_dtype).view(entry.shape)

    def tables(self) -> Tables:
        """The shared trellis tables; FormatError where one does not match its id."""
        if self._tables is None:
            found = {}
            for key in self._file.entries:
                if key.startswith(PREFIX):
                    data = self._file.read_bytes(key)
                    identity = zlib.crc32(data.numpy())
                    if key != table_key(identity):
                        raise FormatError(f"table '{key}' of '{self.path.name}' is damaged: its bytes have the id "
                                          f"{identity:08x}")
                    found[identity] = parse_table(data, key).values
            self._tables = Tables(found)
        return self._tables

    def layout(self, key: str) -> Layout:
        """The checked head of a coded weight; reads nothing else."""
        if key not in self._layouts:
            entry = self._file.entry(key)
            if key not in self._coded:
                raise FormatError(f"'{key:.120}' of '{self.path.name}' is not a coded weight")
            head = bytes(self._file.read_bytes(key, 0, RECORD_BYTES).numpy())
            length = min(head_bytes(head, key), entry.nbytes)
            self._layouts[key] = parse_layout(bytes(self._file.read_bytes(key, 0, length).numpy()), entry.nbytes, key)
        return self._layouts[key]

    def weight(self, key: str) -> CodedWeight:
        """A coded weight, everything but its codes checked; FormatError names the key and what is wrong."""
        layout = self.layout(key)
        check_section_values(layout, lambda s: self._file.read_bytes(key, s.offset, s.offset + s.length), key)
        weight = CodedWeight(self.raw(key), layout, self.tables())
        check_tables(weight, key)
        return weight

    def bad_tensors(self, progress: Progress | None = None, digest=None) -> list[str]:
        """Keys whose bytes do not have the checksum in the header; none where the header has no usable checksums.

        Advances `progress` by bytes and feeds all data in file order to `digest` (a hashlib object).
        """
        bad = []
        for key in self.keys():
            crc = 0
            for view in self._file.chunks(key):
                crc = zlib.crc32(view, crc)
                if digest is not None:
                    digest.update(view)
            if not self._matches(key, crc):
                bad.append(key)
            if progress is not None:
                progress.advance(self.entry(key).nbytes)
        return bad

    def check_tensors(self, progress: Progress | None = None) -> None:
        """FormatError if any tensor's bytes changed since they were written; nothing to check without checksums."""
        bad = self.bad_tensors(progress)
        if bad:
            raise FormatError(_damaged(self.path.name, bad))

    def close(self) -> None:
        """Close the file; tensors already handed out stay valid."""
        close_handle(self._handle)
        self._bytes = None
        self._file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _matches(self, key: str, crc: int) -> bool:
        return not self._sums or f"{crc:08x}" in self._sums[key]

    def _is_coded(self, entry: Entry) -> bool:
        if entry.dtype != "U8" or len(entry.shape) != 1 or entry.nbytes < RECORD_BYTES or entry.key.startswith("vq."):
            return False
        return bytes(self._file.read_bytes(entry.key, 0, len(MAGIC)).numpy()) == MAGIC


def header_crc32(header: Header) -> str:
    """The checksum a header should have, from its own content."""
    metadata = {k: v for k, v in header.metadata.items() if k != HEADER_CRC_KEY}
    return f"{zlib.crc32(dump_header(header.entries.values(), header.data_start, metadata)):08x}"


def _damaged(name: str, keys: list[str]) -> str:
    others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"'{name}' is damaged: wrong checksum of tensor '{keys[0]}'{others}; copy or download the file again"


def _checksums(header: Header, edited: bool) -> dict[str, frozenset[str]]:
    """key -> checksums its bytes may have; {} where the header has none that can be used.

    In an edited header the tensors may stand in another order than when the checksums were listed (a tool that sorts
    and keeps the metadata): any of the list is accepted then, a damaged tensor still has none of them.
    """
    text = header.metadata.get(CRC_KEY, "")
    sums = [text[i:i + 8] for i in range(0, len(text), 8)]
    if len(text) != 8 * len(header.entries):
        return {}
    if edited:
        return dict.fromkeys(header.entries, frozenset(sums))
    return {key: frozenset((value,)) for key, value in zip(header.entries, sums, strict=True)}


def _header_warnings(header: Header, coded: list[str], name: str) -> list[str]:
    version = header.metadata.get("vqpack.version")
    if version is None and not coded:
        raise FormatError(f"'{name}' is not a vqpack file: it has no coded weights and no vqpack metadata")
    if version is None:
        return [f"the metadata of '{name}' is gone (another program rewrote the file): it cannot be checked for damage"]
    if version != str(FORMAT_VERSION):
        raise FormatError(f"'{name}' has format version {version!r:.20}, this program reads version {FORMAT_VERSION}: "
                          f"install a newer vqpack")
    if header.metadata.get(HEADER_CRC_KEY) != header_crc32(header):
        return [f"the header of '{name}' was edited after the file was written"]
    return []
