"""Bytes before anything is coded: of one blob exactly, of the whole file but for its report, which is bounded."""
from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from math import prod

from ..arch import Layer
from ..encode.product import plan_layout
from ..header import canvas_graph, common_metadata, dump
from ..inspection import REPORT_KEY, pack_report
from ..layout import ADDITIVE, SPECS, PartHead, align, byte_length, head_length, section_shapes
from ..plan import Plan
from ..safetensors_io import Entry, dtype_name, dump_header, frame_header
from ..source import Source
from ..spec import Spec, TrellisSpec
from ..table_record import table_key
from ..tables import get_table, table_bytes
from ..text_encoders import Item
from ..version import FORMAT_VERSION
from ..writer import CRC_KEY, HASH_KEY, HEADER_CRC_KEY

# The report is gzip'd JSON whose errors are not known yet; with made-up ones its size differs by less than this from
# the real one (testbed: docs/plan.md), and a file's header by less than 64 bytes.
REPORT_MARGIN = 0.03
MARGIN = 128
_NUMBERS = {name: (number, family) for number, (name, family) in SPECS.items()}


def blob_bytes(shape: tuple[int, ...], splits: tuple[int, ...], spec: Spec) -> int:
    """Bytes of the blob that encode_weight would make of a weight (out, in[, kh, kw]) with this spec."""
    rows, taps = shape[0], prod(shape[2:])
    heads, start = [], 0
    for channels in splits or (shape[1],):
        heads.append(_head(rows, start, start + channels, taps, spec))
        start += channels
    arrays = [byte_length(dtype, size) for head in heads
              for dtype, size in section_shapes(head, rows, taps, False).values()]
    position = align(head_length(len(heads), len(arrays)))
    for length in arrays:
        position = align(position + length)
    return position


def stored_bytes(layer: Layer, spec: Spec, itemsize: int) -> int:
    """Bytes of a layer in the file; itemsize: of its source's dtype."""
    return layer.numel * itemsize if spec.kind == "dense" else blob_bytes(layer.shape, layer.splits, spec)


def table_sizes(specs) -> dict[tuple[int, int, int], int]:
    """(window, bits and weights a step) -> bytes of the shared table, for all trellis specs among these."""
    found = {}
    for spec in specs:
        if isinstance(spec, TrellisSpec):
            name = (spec.window, spec.step_bits, spec.vector)
            found[name] = _table_bytes(*name)
    return found


@cache
def _table_bytes(window: int, step_bits: int, vector: int) -> int:
    return len(table_bytes(get_table(window, step_bits, vector)[0]))


def file_bytes(source: Source, items: list[Item], plan: Plan, settings: dict, layers: Mapping[str, int]) -> int:
    """At most so many bytes has the file that `quantize` makes of these items with a plan; rarely MARGIN fewer.

    settings: those of quantize's header; `--sequential` and `--effort` may still add theirs. layers: stored bytes by
    key where they are known already.
    """
    entries, rows, coded, specs = [], [], 0, set()
    for item in items:
        layer, spec = item.layer, plan.spec_for(item.layer)
        dtype = source.dtype(item.source_key)
        size = layers.get(layer.key) or stored_bytes(layer, spec, dtype.itemsize)
        if spec.kind == "dense":
            entries.append((layer.key, dtype_name(dtype), layer.shape, layer.numel * dtype.itemsize))
            continue
        coded, specs = coded + 1, specs | {spec}
        entries.append((layer.key, "U8", (size,), size))
        rows.append((layer, spec, size))
    entries += [(table_key(index << 24), "U8", (size,), size) for index, size in enumerate(table_sizes(specs).values())]
    report = _report_bytes(rows, "calibration" in settings)
    entries.append((REPORT_KEY, "U8", (report,), report))
    opened = canvas_graph(item.layer.component for item in items)
    header = _header_bytes(entries, {**_metadata(source, plan, _longest(settings, specs), coded), **opened})
    return header + sum(size for *_, size in entries) + MARGIN


def _head(rows: int, start: int, stop: int, taps: int, spec: Spec) -> PartHead:
    number, family = _NUMBERS[spec.kind]
    fields = {"bits": getattr(spec, "bits", 0)}
    if spec.kind == "trellis":
        fields = {"bits": spec.step_bits, "vector": spec.vector}
    elif spec.kind == "product":
        made = plan_layout(rows, taps * (stop - start), spec)
        fields = {"bits": made.bits, "group": made.group, "blocks": made.blocks, "num_codebooks": 1,
                  "codebook_size": made.codebook_size}
    elif family == ADDITIVE:
        fields = {"bits": spec.codebook_size.bit_length() - 1, "group": taps if spec.by_channel(taps) else spec.group,
                  "blocks": 1, "num_codebooks": spec.num_codebooks, "codebook_size": spec.codebook_size}
    elif spec.group_size:
        fields["group"] = spec.group_size
    return PartHead(family=family, spec=number, order=0, rotation=0, start=start, stop=stop, gain=1.0, seed=0, **fields)


def _report_bytes(rows, calibrated: bool) -> int:
    """Of the gzip'd report with errors made up, and REPORT_MARGIN more."""
    chance, listed = random.Random(0), []
    for layer, spec, size in rows:
        row = {"name": layer.key, "shape": list(layer.shape), "bytes": size,
               "spec": {"kind": spec.kind, "bits": getattr(spec, "bits", 0), "window": 12, "rotation": 0},
               "bits": round(8 * size / layer.numel, 4), "relative_error": chance.random()}
        if calibrated and layer.component == "unet":
            row["output_error"] = chance.random()
        listed.append(row)
    return round((1 + REPORT_MARGIN) * pack_report({"layers": listed}).numel())


def _longest(settings: dict, specs: set[Spec]) -> dict:
    """With what quantize may add: block by block (as long as the calibration's entry), the effort of additive codes."""
    later = {"effort": "fast"} if any(spec.kind == "additive" for spec in specs) else {}
    if "calibration" in settings:
        later["sequential"] = settings["calibration"]
    return {**later, **settings}


def _metadata(source: Source, plan: Plan, settings: dict, coded: int) -> dict[str, str]:
    identity = {"name": source.name, "bytes": source.bytes, "sha256": "0" * 64}
    bits = dict.fromkeys(("coded", "unet", "file"), 2.1234)
    return {**common_metadata(source, source.metadata), "vqpack.bits": dump(bits), "vqpack.source": dump(identity),
            "vqpack.plan": dump(plan.to_json()), "vqpack.settings": dump(settings),
            "vqpack.summary": dump({"coded_layers": coded, "mean_relative_error": 0.12345678})}


def _header_bytes(entries, metadata: dict[str, str]) -> int:
    """Of the framed header, checksums included, as the Writer makes it."""
    position, placed = 0, []
    for key, dtype, shape, size in entries:
        placed.append(Entry(key, dtype, shape, position, position + size))
        position += size
    full = {**metadata, "format": "pt", "vqpack.version": str(FORMAT_VERSION), HASH_KEY: "0x" + "0" * 64,
            CRC_KEY: "0" * 8 * len(entries), HEADER_CRC_KEY: "0" * 8}
    return len(frame_header(dump_header(placed, 0, full)))
