"""A vqpack file with an adapter merged in: row scales take s_out, column scales s_in; the codes are the same bytes."""
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from ..arch import component_of
from ..bits import Stored
from ..container import Reader, Writer
from ..errors import FormatError, PlanError
from ..file_names import SUFFIX, safe_stem
from ..header import dump, settle
from ..inspection import REPORT_KEY, json_field, read_report, spec_of
from ..progress import Progress
from ..record import build_blob, parse_blob
from ..weight import CodedWeight
from .file import Adapter, load_adapter, stem_of
from .stack import check_fits


def merge(path: str | Path, adapter: str | Path, output: str | Path | None = None, strength: float = 1.0,
          overwrite: bool = False, progress: Progress | None = None) -> Path:
    """Write a vqpack file that is `path` with an adapter of one expert in it -> the file.

    output: file or folder, None = beside the file, NAME-ADAPTER. Scales are rounded to float16; a layer whose inputs
    are scaled grows by 2 bytes an input channel where it had no column scales. Raises PlanError for an adapter of
    several experts, FormatError where it belongs to another file.
    """
    adapter, found = Path(adapter), load_adapter(adapter)
    if found.experts > 1:
        raise PlanError(f"'{adapter.name}' has {found.experts} experts, which take turns as the noise falls, and a "
                        f"file holds one set of scales: use the adapter beside it, or train one with --experts 1")
    path = Path(path)
    with Reader(path, mapped=False) as reader:
        check_fits(found, reader, adapter)
        target, progress = _target(path, adapter, output), progress or Progress()
        with Writer(target, overwrite, expected_bytes=reader.file_bytes) as writer:
            merging = _Merging(reader, writer, found, strength)
            progress.start("merging", reader.file_bytes)
            for key in reader.keys():
                merging.add(key)
                progress.advance(reader.entry(key).nbytes, key)
            progress.finish()
            return merging.close(progress, {"adapter": stem_of(adapter), "strength": strength, **found.facts})


class _Merging:
    """A file on its way into another one."""

    def __init__(self, reader: Reader, writer: Writer, adapter: Adapter, strength: float):
        self.reader, self.writer, self.adapter, self.strength = reader, writer, adapter, strength
        self.coded, self.stored, self.rows = frozenset(reader.coded_keys()), [], []
        rows = read_report(reader).get("layers")
        self._before = {row.get("name"): row for row in (rows if isinstance(rows, list) else ())
                        if isinstance(row, dict)}

    def add(self, key: str) -> None:
        """One tensor; the report comes last."""
        if key == REPORT_KEY:
            return
        entry, shape = self.reader.entry(key), tuple(self.reader.entry(key).shape)
        if key in self.coded:
            weight = self._weight(key)
            shape = weight.shape
            self.writer.add_blob(key, weight.blob)
        else:
            self.writer.add_bytes(key, entry.dtype, entry.shape, self.reader.raw(key))
        table = key.startswith("vq.")
        self.stored.append(Stored(key, "table" if table else component_of(key), 0 if table else prod(shape),
                                  self.writer.nbytes(key), key in self.coded))

    def _weight(self, key: str) -> CodedWeight:
        weight = self.reader.weight(key)
        if key not in self.adapter.layers:
            self.rows += [self._before[key]] if key in self._before else []
            return weight
        merged = scaled(weight, *self.adapter.layers[key], self.strength, key)
        self.rows.append({"name": key, "shape": list(merged.shape), "spec": spec_of(merged),
                          "bits": round(merged.bits, 4), "bytes": merged.nbytes})      # no error: it is another weight
        return merged

    def close(self, progress: Progress, facts: dict) -> Path:
        """Report, header, name."""
        old = self.reader.metadata
        settings = {**json_field(old, "vqpack.settings", {}), "merged": facts}
        metadata = {**old, "vqpack.summary": dump({"coded_layers": len(self.rows)}), "vqpack.settings": dump(settings)}
        _, metadata = settle(self.writer, self.rows, self.stored,
                             lambda bits: {**metadata, "vqpack.bits": dump(bits)})
        return self.writer.close(metadata, progress)


def scaled(weight: CodedWeight, out: torch.Tensor, into: torch.Tensor | None, strength: float, key: str) -> CodedWeight:
    """diag(exp(out)) W diag(exp(into)) with the codes of W, scales rounded to float16; logarithms [1, channels]."""
    rows = (strength * out[0].float()).exp()                                        # [out]
    columns = None if into is None else (strength * into[0].float()).exp()          # [in]
    parts = list(_parts(weight, rows, columns))
    branch = None
    if weight.branch is not None:
        down, up = (x.float() for x in weight.branch)                               # [rank, taps * in], [out, rank]
        down = down if columns is None else down * columns.repeat(weight.layout.taps)
        branch = down.half(), (up * rows[:, None]).half()
    try:
        blob = build_blob(weight.shape, weight.source_dtype, parts, branch)
    except FormatError as error:
        if "NaN or Inf" not in str(error):
            raise
        raise FormatError(f"scales of '{key}' leave float16's range when they are merged: use a smaller strength than "
                          f"{strength:g}") from None
    return parse_blob(blob, weight.tables, key)


def _parts(weight: CodedWeight, rows: torch.Tensor, columns: torch.Tensor | None) -> Iterator:
    for start, stop, kind, part in weight.parts:
        scales = part.scales
        changes = {}
        if scales.group is not None:
            changes["group"] = (scales.group.float() * rows[:, None]).half()
        else:
            changes["row"] = (scales.row.float() * rows).half()
        if columns is not None:
            own = 1.0 if scales.col is None else scales.col.float()
            changes["col"] = (own * columns[start:stop]).half()
        yield start, stop, kind, replace(part, scales=replace(scales, **changes))


def _target(path: Path, adapter: Path, output: str | Path | None) -> Path:
    own = re.sub(rf"^{re.escape(path.stem)}[-_.]?", "", stem_of(adapter)) or "adapter"
    found = path.parent if output is None else Path(output)
    if found.is_dir():
        found = found / f"{path.stem}-{own}{SUFFIX}"
    return found.with_name(safe_stem(found.stem if found.suffix == SUFFIX else found.name) + SUFFIX)
