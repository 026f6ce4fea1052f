"""An ordinary checkpoint (single file or diffusers folder) read as if it were a vqpack file without coded weights."""
from __future__ import annotations

from pathlib import Path

import torch

from .arch import layers
from .container import Reader
from .errors import FormatError
from .safetensors_io import Entry, SafetensorsFile, dtype_name
from .source import Source, open_source
from .text_encoders import Item, stored_items


class SourceReader:
    """What load_pipeline and the comparison ask of a Reader, under the keys a vqpack file of this source would have."""

    mapped = False

    def __init__(self, source: Source):
        self.path, self.source, self.warnings = source.path, source, []
        self.metadata, self.file_bytes = source.metadata, source.bytes
        self._items = {item.layer.key: item for item in stored_items(source, layers(source))}

    def keys(self) -> list[str]:
        """All keys in network order."""
        return list(self._items)

    def coded_keys(self) -> list[str]:
        """None: nothing is coded here."""
        return []

    def entry(self, key: str) -> Entry:
        """dtype, shape and size of one tensor; FormatError where there is none."""
        item = self._item(key)
        dtype = self.source.dtype(item.source_key)
        return Entry(key, dtype_name(dtype), item.layer.shape, 0, item.layer.numel * dtype.itemsize)

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor in the source's dtype -> [*shape]"""
        return self._item(key).load(self.source)

    def check_tensors(self) -> None:
        """Ordinary checkpoints carry no checksums; NaN and infinity are found as the tensors are read."""

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _item(self, key: str) -> Item:
        if key not in self._items:
            raise FormatError(f"'{self.path.name}' has no tensor '{key:.120}'")
        return self._items[key]


def open_reader(path: str | Path) -> Reader | SourceReader:
    """Open any checkpoint: a vqpack file as a Reader, everything else as a SourceReader; VQError says why not."""
    path = Path(path)
    if path.is_file() and _may_be_ours(path):
        return Reader(path, mapped=False)
    return SourceReader(open_source(path))


def _may_be_ours(path: Path) -> bool:
    """Metadata or coded weights of vqpack; what is no safetensors file is left to open_source's words."""
    try:
        with SafetensorsFile(path) as file:
            if "vqpack.version" in file.metadata:
                return True
    except FormatError:
        return False
    try:
        Reader(path, mapped=False).close()
    except FormatError:
        return False
    return True
