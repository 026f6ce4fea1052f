"""Reading a file without decoding it: what it holds, what each layer costs, where it came from."""
from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from .arch import component_of, make_layers
from .bits import Stored, count_bits
from .compare.short import stored_comparison
from .container import Reader
from .errors import FormatError, VQError
from .table_record import PREFIX
from .version import FORMAT_VERSION
from .writer import CRC_KEY

REPORT_KEY = "vq.report"
MAX_REPORT_BYTES = 64 << 20                # a report of 64 MB would be a thousand times the largest we write


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: what it is in the network and what it costs."""

    key: str
    component: str                         # "unet", "te1", "te2", "vae", "other", "table", "report"
    role: str                              # as arch.Layer.role, e.g. "conv1", "self_q", "ff_in"
    kind: str                              # "trellis", "palette", ...; "dense" for what is kept
    shape: tuple[int, ...]
    nbytes: int

    @property
    def weights(self) -> int:
        """Logical numbers; 0 for tables and the report."""
        return 0 if self.component in ("table", "report") else prod(self.shape)

    @property
    def bits(self) -> float:
        """Stored bits per weight, everything counted."""
        return 8 * self.nbytes / self.weights if self.weights else 0.0


def inspect_file(path: str | Path) -> dict:
    """-> the JSON of `vqpack inspect --json`; reads the header, the records and the report only."""
    with Reader(path) as reader:
        metadata, layers = reader.metadata, layer_table(reader)
        report = read_report(reader)
        errors = _errors(report)
        for layer in layers:
            if layer["name"] in errors:
                layer["relative_error"] = errors[layer["name"]]
        return {"format_version": int(metadata.get("vqpack.version", FORMAT_VERSION)),
                "architecture": metadata.get("vqpack.architecture", "unknown"),
                "bits": file_bits(reader), "file_bytes": Path(path).stat().st_size,
                "source": _source(metadata),
                "tool": metadata.get("vqpack.tool"), "plan": json_field(metadata, "vqpack.plan", {}),
                "settings": json_field(metadata, "vqpack.settings", {}),
                "summary": json_field(metadata, "vqpack.summary", {}),
                "modelspec": {k: v for k, v in metadata.items() if k.startswith("modelspec.")},
                "comparison": stored_comparison(report), "layers": layers}


def _source(metadata: dict) -> dict:
    """`vqpack.source` with "name" and "sha256", None where the header does not say; values of other kinds are gone."""
    found = json_field(metadata, "vqpack.source", {})
    kinds = {"name": str, "sha256": str, "bytes": int, "kind": str}
    kept = {key: found[key] for key, kind in kinds.items() if type(found.get(key)) is kind} if isinstance(
        found, dict) else {}
    return {"name": None, "sha256": None, **kept}


def _errors(report: dict) -> dict[str, float]:
    """Layer -> relative error; rows that are not as we write them count as absent."""
    rows = report.get("layers")
    return {row["name"]: float(row["relative_error"]) for row in (rows if isinstance(rows, list) else ())
            if isinstance(row, dict) and isinstance(row.get("name"), str)
            and type(row.get("relative_error")) in (int, float) and 0 <= row["relative_error"] < 1e6}


def layer_table(reader: Reader) -> list[dict]:
    """One row per coded layer: name, shape, spec, stored bits per weight, bytes."""
    rows = []
    for key in reader.coded_keys():
        weight = reader.weight(key)
        rows.append({"name": key, "shape": list(weight.shape), "spec": spec_of(weight),
                     "bits": round(weight.bits, 4), "bytes": weight.nbytes})
    return rows


def stored_tensors(reader: Reader) -> list[StoredTensor]:
    """All tensors of a file in network order, coded or not; what belongs to no network last."""
    coded, shapes, ours = frozenset(reader.coded_keys()), {}, []
    for key in reader.keys():
        entry = reader.entry(key)
        if key.startswith("vq."):
            kind = "table" if key.startswith(PREFIX) else "report"
            ours.append(StoredTensor(key, kind, kind, "dense", tuple(entry.shape), entry.nbytes))
        else:
            shapes[key] = tuple(reader.layout(key).shape if key in coded else entry.shape)
    rows = []
    for layer in make_layers(shapes):
        kind = reader.weight(layer.key).parts[0][2] if layer.key in coded else "dense"
        rows.append(StoredTensor(layer.key, layer.component, layer.role, kind, layer.shape,
                                 reader.entry(layer.key).nbytes))
    return rows + ours


def spec_of(weight) -> dict:
    """The spec a weight was coded with, read from its own record."""
    _, _, kind, part = weight.parts[0]
    if kind == "trellis":
        bits = part.step_bits / part.vector
        spec = {"bits": int(bits) if bits.is_integer() else bits, "window": part.window}
    elif kind in ("additive", "product"):
        blocks, num_codebooks, codebook_size, group = part.codebooks.shape
        spec = {"num_codebooks": num_codebooks, "codebook_size": codebook_size, "group": group, "blocks": blocks}
    else:
        spec = {"bits": part.bits, "group_size": part.scales.group_size}
    ranges = {"parts": len(weight.parts)} if len(weight.parts) > 1 else {}
    if weight.layout.rank:
        ranges["rank"] = weight.layout.rank
    return {"kind": kind, **spec, "rotation": [p.rotation for _, _, _, p in weight.parts][0], **ranges}


def file_bits(reader: Reader) -> dict[str, float]:
    """The three averages, counted again from the file itself."""
    return count_bits(stored_costs(reader), reader.file_bytes)


def stored_costs(reader: Reader) -> list[Stored]:
    """What each tensor of a file is and costs, for count_bits."""
    coded, stored = frozenset(reader.coded_keys()), []
    for key in reader.keys():
        entry = reader.entry(key)
        if key.startswith("vq."):
            stored.append(Stored(key, "table" if key.startswith(PREFIX) else "report", 0, entry.nbytes, False))
        else:
            shape = reader.layout(key).shape if key in coded else entry.shape
            stored.append(Stored(key, component_of(key), prod(shape), entry.nbytes, key in coded))
    return stored


def content_id(reader: Reader) -> str | None:
    """SHA-256 that says which weights a file holds, read from its header: of one line `key dtype [d0,d1,...] crc32` a
    tensor, sorted by key and joined by line feeds, without the report. None where the header was edited.
    """
    sums = reader.metadata.get(CRC_KEY, "")
    if reader.warnings or len(sums) != 8 * len(reader.keys()):
        return None
    lines = []
    for index, key in enumerate(reader.keys()):
        entry = reader.entry(key)
        if key != REPORT_KEY:
            shape = ",".join(map(str, entry.shape))
            lines.append(f"{key} {entry.dtype} [{shape}] {sums[8 * index:8 * index + 8]}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def read_result(path: Path) -> dict | None:
    """What an earlier run wrote into a file's header and report; None where it is no intact file of ours.

    "identity": source, plan, settings and version that it was coded with; "tuning": what tuned it, {} if nothing did.
    """
    try:
        with Reader(path) as reader:
            metadata, layers = reader.metadata, read_report(reader).get("layers")
            complete = not reader.warnings and "vqpack.source" in metadata and isinstance(layers, list)
            if not complete:
                return None
            tool = metadata.get("vqpack.tool", "").removeprefix("vqpack ")
            identity = [json_field(metadata, f"vqpack.{name}", {}) for name in ("source", "plan", "settings")]
            tuning = identity[2].pop("tuning", {})
            return {"identity": (*identity, tool), "tuning": tuning, "bits": json_field(metadata, "vqpack.bits", {}),
                    "architecture": metadata.get("vqpack.architecture", "unknown"), "layers": layers}
    except (VQError, OSError):
        return None


def json_field(metadata: dict, name: str, default):
    """A JSON value of the header metadata, or the default where it is absent or damaged."""
    try:
        return json.loads(metadata[name])
    except (KeyError, ValueError):
        return default


def pack_report(report: dict) -> torch.Tensor:
    """-> U8 tensor: gzip'd JSON without a time stamp, so the same report gives the same bytes."""
    text = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return torch.frombuffer(bytearray(gzip.compress(text, 9, mtime=0)), dtype=torch.uint8)


def read_report(reader: Reader) -> dict:
    """The long report, {} where a file has none; refuses one that unpacks to more than MAX_REPORT_BYTES."""
    if REPORT_KEY not in reader.keys():
        return {}
    packed = bytes(reader.tensor(REPORT_KEY).numpy())
    unzip = zlib.decompressobj(wbits=31)
    try:
        text = unzip.decompress(packed, MAX_REPORT_BYTES)
        report = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise FormatError(f"expected gzip'd JSON in '{REPORT_KEY}', got damaged bytes ({error}); the weights can still "
                          f"be used, `vqpack verify` lists what else is wrong") from None
    return report if isinstance(report, dict) else {}
