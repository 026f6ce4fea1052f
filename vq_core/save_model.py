"""save: a file of a model as it is in memory. Coded weights keep their blobs, everything else is written as it is."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .arch import layers as arch_layers
from .bits import Stored
from .container import Reader, Writer
from .errors import Interrupted, PlanError, VQError
from .header import canvas_graph, common_metadata, dump, settle
from .inspection import json_field, read_report
from .progress import Progress
from .record import part_table
from .source import Source
from .table_record import table_key
from .text_encoders import Item, stored_items
from .weight import CodedWeight

_FROM_ORIGIN = ("vqpack.source", "vqpack.plan")


@dataclass(frozen=True)
class Origin:
    """What the file a model was loaded from says, of blobs that are still the same bytes."""

    metadata: Mapping[str, str]
    rows: Mapping[str, dict]               # of its report, by stored key


@dataclass(frozen=True)
class SaveResult:
    """What was written. dense: weights coded in the model and dense in the file, which cost `more` bytes."""

    path: Path
    file_bytes: int
    coded: int
    dense: int
    more: int


def read_origin(path: Path | None, blobs: Mapping[str, CodedWeight], progress: Progress | None = None) -> Origin:
    """The header's metadata and the report's rows of a file that holds any of these blobs; empty for any other file.

    progress: is asked at each blob whether to stop.
    """
    if path is None:
        return Origin({}, {})
    try:
        with Reader(path) as reader:
            same = _same(reader, blobs, progress or Progress())
            rows = {row["name"]: row for row in read_report(reader).get("layers", ())}
            return Origin(dict(reader.metadata) if same else {}, {key: rows[key] for key in same if key in rows})
    except Interrupted:
        raise
    except (VQError, OSError):             # moved, replaced or damaged: the blobs in memory are what counts
        return Origin({}, {})


def _same(reader: Reader, blobs: Mapping[str, CodedWeight], progress: Progress) -> list[str]:
    """Keys of the blobs that the file holds byte for byte."""
    coded, found = frozenset(reader.coded_keys()), []
    for key, weight in blobs.items():
        progress.check()
        if key in coded and torch.equal(reader.raw(key), weight.blob.cpu()):
            found.append(key)
    return found


def save_model(source: Source, blobs: Mapping[str, CodedWeight], patched: Mapping[str, CodedWeight], origin: Origin,
               path: Path, progress: Progress | None = None, graph: bool = True) -> SaveResult:
    """Write a model to `path` (numbered where that is taken), with nothing coded anew.

    source: its dense tensors; blobs: stored key -> weight to be written as it is; patched: coded weights that changed
    and are written dense; graph: as in quantize(). Nothing random, no clock: the same model gives the same bytes.
    PlanError without any blob.
    """
    if not blobs:
        raise PlanError(f"'{source.name}' has no coded weight to write")
    progress = progress or Progress()
    items = stored_items(source, arch_layers(source))
    expected = sum(blobs[i.layer.key].nbytes if i.layer.key in blobs else _dense_bytes(i, source) for i in items)
    with Writer(path, expected_bytes=expected) as writer:
        stored = _add_all(writer, items, source, blobs, progress)
        rows = [origin.rows[key] for key in sorted(blobs) if key in origin.rows]
        opened = canvas_graph(one.component for one in stored) if graph else {}
        file_bytes, metadata = settle(writer, rows, stored, lambda bits: {
            **_metadata(source, origin, bits, len(blobs), sorted(patched)), **opened})
        final = writer.close(metadata, progress)
    more = sum(_dense_bytes(item, source) - patched[item.layer.key].nbytes for item in items
               if item.layer.key in patched)
    return SaveResult(final, file_bytes, len(blobs), len(patched), more)


def _dense_bytes(item: Item, source: Source) -> int:
    return item.layer.numel * source.dtype(item.source_key).itemsize


def _add_all(writer: Writer, items: list[Item], source: Source, blobs: Mapping[str, CodedWeight], progress: Progress
             ) -> list[Stored]:
    progress.start("saving", sum(item.layer.numel for item in items))
    stored, tables = [], {}
    for item in items:
        key, weight = item.layer.key, blobs.get(item.layer.key)
        if weight is None:
            writer.add(key, item.load(source))
        else:
            writer.add_blob(key, weight.blob)
            tables.update({head.table_id: part_table(part) for head, (*_, part) in
                           zip(weight.layout.parts, weight.parts, strict=True) if head.kind == "trellis"})
        stored.append(Stored(key, item.layer.component, item.layer.numel, writer.nbytes(key), weight is not None))
        progress.advance(item.layer.numel, key)
    for identity in sorted(tables):
        key = table_key(identity)
        writer.add(key, tables[identity])
        stored.append(Stored(key, "table", 0, writer.nbytes(key), False))
    progress.finish()
    return stored


def _metadata(source: Source, origin: Origin, bits: dict, coded: int, patched: list[str]) -> dict[str, str]:
    """Source and plan are those of the file the blobs came from; "saved" in the settings sets this file apart."""
    settings = {**json_field(origin.metadata, "vqpack.settings", {}), "saved": {"dense": len(patched)}}
    kept = {key: origin.metadata[key] for key in _FROM_ORIGIN if key in origin.metadata}
    return {**common_metadata(source, {**origin.metadata, **source.metadata}), **kept, "vqpack.bits": dump(bits),
            "vqpack.settings": dump(settings), "vqpack.summary": dump({"coded_layers": coded})}
