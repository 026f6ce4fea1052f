"""The file of activation statistics, beside a calibration: written whole, read with nothing in it trusted."""
from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import torch

from ..container import Reader, Writer
from ..errors import FormatError
from ..version import __version__
from .levels import Levels
from .ranges import PointRanges, Ranges
from .specs import BINS

SUFFIX = ".vqact.safetensors"
METADATA, VERSION = "vqpack.activations", 1
NAMES = ("counts", "channel_low", "channel_high", "token_low", "token_high", "values", "places")  # of PointRanges


def save_ranges(path: str | os.PathLike, ranges: Ranges, overwrite: bool = False) -> Path:
    """Write statistics -> the file's final name (SUFFIX is added where it is missing). What several points share
    stands once. Same statistics, same bytes."""
    path = Path(path)
    stem = path.name.removesuffix(".safetensors").removesuffix(".vqact")
    records: dict[str, int] = {}
    points = {}
    with Writer(path.with_name(stem + SUFFIX), overwrite) as writer:
        for name, seen in ranges.points.items():
            tensors = {part: getattr(seen, part).contiguous() for part in NAMES}
            digest = _digest(tensors)
            if digest not in records:
                records[digest] = len(records)
                for part, tensor in tensors.items():
                    writer.add(f"{records[digest]}.{part}", tensor)
            points[name] = records[digest]
        facts = {"version": VERSION, "bins": BINS, "levels": [ranges.levels.low, ranges.levels.high], "points": points,
                 "records": len(records), "calls": ranges.calls, "left_out": ranges.left_out}
        return writer.close({METADATA: json.dumps(facts, sort_keys=True, separators=(",", ":")),
                             "vqpack.tool": f"vqpack {__version__}"})


def load_ranges(path: str | os.PathLike) -> Ranges:
    """Read statistics; FormatError in one sentence for anything else."""
    with Reader(path, mapped=False) as reader:
        facts = _facts(reader)
        records = [_record(reader, index) for index in range(facts["records"])]
        return Ranges(Levels(*facts["levels"]), {name: records[index] for name, index in facts["points"].items()},
                      facts["calls"], facts["left_out"])


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {list(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def _facts(reader: Reader) -> dict:
    name, text = reader.path.name, reader.metadata.get(METADATA)
    if text is None:
        raise FormatError(f"'{name}' holds no activation statistics: expected a file that save_ranges wrote")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or "version" not in facts:
        raise _damaged(name, "its list of points is no JSON object with a version")
    if facts["version"] != VERSION:
        raise FormatError(f"'{name}' holds activation statistics of version {facts['version']!r:.20}, this program "
                          f"reads version {VERSION}: install a newer vqpack or calibrate again")
    levels, points = facts.get("levels"), facts.get("points")
    counts = [facts.get(key) for key in ("bins", "records", "calls", "left_out")]
    good = all(type(count) is int and 0 <= count < 2**31 for count in counts) and counts[0] == BINS
    good = good and isinstance(levels, list) and len(levels) == 2 and all(
        isinstance(level, float) and math.isfinite(level) for level in levels) and levels[0] < levels[1]
    good = good and isinstance(points, dict) and all(type(i) is int and 0 <= i < counts[1] for i in points.values())
    if not good or counts[1] > len(reader.keys()):
        raise _damaged(name, "its facts are missing or of the wrong kind")
    return facts


def _record(reader: Reader, index: int) -> PointRanges:
    found = {name: _tensor(reader, f"{index}.{name}") for name in NAMES}
    channels, tokens, samples = (found[n].shape[-1] for n in ("channel_low", "token_low", "values"))
    shapes = {"counts": (BINS,), "channel_low": (BINS, channels), "channel_high": (BINS, channels),
              "token_low": (BINS, tokens), "token_high": (BINS, tokens), "values": (samples,), "places": (samples, 3)}
    dtypes = {"counts": torch.int64, "places": torch.int32}
    for name, tensor in found.items():
        if tensor.shape != shapes[name] or tensor.dtype != dtypes.get(name, torch.float32):
            raise _damaged(reader.path.name, f"'{index}.{name}' is {tensor.dtype} {list(tensor.shape)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _damaged(reader.path.name, f"'{index}.{name}' holds NaN or infinity")
    limits = torch.tensor([BINS, tokens, channels])
    if (found["places"] < 0).any() or (found["places"] >= limits).any() or not (found["counts"] > 0).any():
        raise _damaged(reader.path.name, f"record {index} has samples outside its ranges, or saw nothing")
    return PointRanges(**found)


def _tensor(reader: Reader, key: str) -> torch.Tensor:
    if key not in reader.header.entries:
        raise _damaged(reader.path.name, f"'{key}' is missing")
    return reader.tensor(key)


def _damaged(name: str, what: str) -> FormatError:
    return FormatError(f"the activation statistics '{name}' are damaged: {what}; calibrate again")
