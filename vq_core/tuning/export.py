"""The tuned file: the same codes, new scales, books, tables and dense tensors; an ordinary vqpack file."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from ..arch import component_of
from ..bits import Stored
from ..container import Reader, Writer
from ..decompress import decode_tensor
from ..encode import relative_error
from ..errors import FormatError
from ..file_names import SUFFIX, safe_stem
from ..header import dump, settle
from ..inspection import json_field, read_report, spec_of
from ..progress import Progress
from ..record import build_blob, parse_blob, part_table
from ..table_record import parse_table, table_id, table_key
from ..weight import CodedWeight
from .student import Student


def target(path: Path, output: str | Path | None) -> Path:
    """Where the tuned file goes: None = beside the file, `<name>-tuned.safetensors`."""
    found = path.with_name(f"{path.stem}-tuned{SUFFIX}") if output is None else Path(output)
    if found.is_dir():
        found = found / f"{path.stem}-tuned{SUFFIX}"
    name = found.stem if found.suffix in (SUFFIX, ".sft") else found.name
    return found.with_name(safe_stem(name) + SUFFIX)


def write(student: Student, original, path: Path, overwrite: bool, facts: Mapping, progress: Progress
          ) -> tuple[Path, dict[str, float]]:
    """Write the student as it is now -> (the file, its bits). `path` may be the student's own file.

    original: opened reader of the teacher's weights, by which errors are measured again; facts: what settings["tuning"]
    says. FormatError where the file was changed meanwhile. The same student gives the same bytes.
    """
    nbytes = student.path.stat().st_size
    with Writer(path, overwrite, expected_bytes=nbytes) as writer:
        with Reader(student.path, mapped=False) as reader:
            copy = _Copy(student, reader, original, writer)
            progress.start("saving", nbytes)
            for key in reader.keys():
                copy.add(key)
                progress.advance(reader.entry(key).nbytes, key)
            copy.add_tables()
            progress.finish()
            metadata = {**reader.metadata, "vqpack.summary": dump(copy.summary()),
                        "vqpack.settings": dump({**json_field(reader.metadata, "vqpack.settings", {}),
                                                 "tuning": facts})}
        _, metadata = settle(writer, copy.rows, copy.stored, lambda bits: {**metadata, "vqpack.bits": dump(bits)})
        final = writer.close(metadata, progress)           # the reader is closed: the file itself may be replaced
    return final, json_field(metadata, "vqpack.bits", {})


@dataclass
class _Copy:
    """A file on its way into another one."""

    student: Student
    reader: Reader
    original: Reader
    writer: Writer
    rows: list[dict] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    tables: dict = field(default_factory=dict)

    def __post_init__(self):
        rows = read_report(self.reader).get("layers")
        self._before = {row.get("name"): row for row in (rows if isinstance(rows, list) else ())
                        if isinstance(row, dict)}
        self._coded = frozenset(self.reader.coded_keys())

    def add(self, key: str) -> None:
        """One tensor; tables and the report come last."""
        if key.startswith("vq."):
            return
        entry, shape = self.reader.entry(key), tuple(self.reader.entry(key).shape)
        if key in self._coded:
            weight = self._coded_weight(key)
            shape = weight.shape
            self.writer.add_blob(key, weight.blob)
            self.tables.update({head.table_id: part for head, (*_, part) in
                                zip(weight.layout.parts, weight.parts, strict=True) if head.kind == "trellis"})
        elif key in self.student.trainable:
            self.writer.add(key, self.student.trainable[key].parameter.to(entry.torch_dtype))
        else:
            self.writer.add_bytes(key, entry.dtype, entry.shape, self.reader.raw(key))
        self.stored.append(Stored(key, component_of(key), prod(shape), self.writer.nbytes(key), key in self._coded))

    def _coded_weight(self, key: str) -> CodedWeight:
        """As it is now; one that is no part of the UNet as it was."""
        weight, layer = self.reader.weight(key), self.student.layers.get(key)
        if layer is None:
            if key in self._before:
                self.rows.append(self._before[key])
            return weight
        if weight.layout != layer.coded.layout:
            raise FormatError(f"'{self.reader.path.name}' was changed while it was tuned: tune it again")
        now = layer.now()
        parts = [(start, stop, kind, part) for (start, stop, kind, _), part in zip(weight.parts, now, strict=True)]
        blob = build_blob(weight.shape, weight.source_dtype, parts, layer.branch and layer.branch.now())
        tables = [part_table(part) for part in now if hasattr(part, "table")]
        tuned = parse_blob(blob, _by_id(tables), key)
        lost = relative_error(decode_tensor(self.original, key).float(), tuned)
        self.rows.append({"name": key, "shape": list(tuned.shape), "spec": spec_of(tuned),
                          "bits": round(tuned.bits, 4), "bytes": tuned.nbytes, "relative_error": lost})
        return tuned

    def add_tables(self) -> None:
        """Every table that some weight names, and no other."""
        for identity in sorted(self.tables):
            key = table_key(identity)
            self.writer.add(key, part_table(self.tables[identity]))
            self.stored.append(Stored(key, "table", 0, self.writer.nbytes(key), False))

    def summary(self) -> dict:
        """As quantize's, with the errors measured again."""
        weights = sum(prod(row["shape"]) for row in self.rows)
        mean = sum(prod(row["shape"]) * row["relative_error"] for row in self.rows) / weights if weights else 0.0
        return {"coded_layers": len(self.rows), "mean_relative_error": round(mean, 8)}


def _by_id(packed: list) -> dict:
    return {table_id(data): parse_table(data, "new").values for data in packed}
