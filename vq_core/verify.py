"""verify: is a file exactly what was written (every byte has a checksum), and how far is it from its source?"""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from .arch import layers
from .container import Reader, header_crc32
from .encode import relative_error
from .errors import FormatError
from .inspection import file_bits, json_field, read_report
from .progress import Progress
from .record import check_padding
from .safetensors_io import dump_header
from .source import open_source
from .text_encoders import Item, stored_items
from .writer import CRC_KEY, HASH_KEY, HEADER_CRC_KEY


def verify_file(path: str | os.PathLike, progress: Progress | None = None) -> list[str]:
    """-> one sentence per problem, [] where the file is exactly what was written. Raises only Interrupted."""
    try:
        with Reader(path, mapped=False) as reader:
            return _verify(reader, progress or Progress())
    except FormatError as error:
        return [str(error)]


def compare_with_source(path: str | os.PathLike, against: str | os.PathLike, progress: Progress | None = None
                        ) -> list[dict]:
    """Weight error of every coded layer, and of every dense tensor that is not what the source has.

    -> [{"name", "weights", "coded", "relative_error"}], squared error over squared norm, in the file's order of keys.
    Raises FormatError where the source lacks a tensor or has it in another shape, VQError for a bad source.
    """
    progress = progress or Progress()
    with Reader(path, mapped=False) as reader, open_source(against) as source:
        items = {item.layer.key: item for item in stored_items(source, layers(source))}
        keys = [key for key in reader.keys() if not key.startswith("vq.")]
        progress.start("compare", sum(reader.entry(key).nbytes for key in keys), Path(path).name)
        rows = []
        for key in keys:
            if key not in items:
                raise FormatError(f"'{source.name}' has no tensor for '{key}': it is not what this file was made from")
            row = _compare(reader, key, items[key], source)
            if row["coded"] or row["relative_error"]:
                rows.append(row)
            progress.advance(reader.entry(key).nbytes, key)
        progress.finish()
        return rows


def _compare(reader: Reader, key: str, item: Item, source) -> dict:
    coded = key in frozenset(reader.coded_keys())
    stored = reader.weight(key) if coded else reader.tensor(key)
    original = item.load_float(source) if coded else item.load(source)
    if tuple(stored.shape) != tuple(original.shape):
        raise FormatError(f"'{source.name}' has '{key}' in shape {list(original.shape)}, the file in "
                          f"{list(stored.shape)}: it is not what this file was made from")
    error = relative_error(original, stored) if coded else _dense_error(original, stored)
    return {"name": key, "weights": original.numel(), "coded": coded, "relative_error": error}


def _dense_error(original: torch.Tensor, stored: torch.Tensor) -> float:
    """0 for the same bytes, else squared error over squared norm (1 where that is 0 or not finite)."""
    if original.dtype == stored.dtype and torch.equal(original.reshape(-1).view(torch.uint8),
                                                      stored.reshape(-1).view(torch.uint8)):
        return 0.0
    lost = float((original.double() - stored.double()).square().sum())
    norm = float(original.double().square().sum())
    return lost / norm if norm > 0 and lost < float("inf") else 1.0


def _verify(reader: Reader, progress: Progress) -> list[str]:
    header, problems = reader.header, list(reader.warnings)
    progress.start("verify", 2 * sum(entry.nbytes for entry in header.entries.values()), Path(reader.path).name)
    problems += _header_problems(reader)
    bad = _bad_tensors(reader, progress, problems)
    _collect(problems, reader.tables)
    for key in reader.coded_keys():
        if key not in bad:
            _collect(problems, lambda key=key: _check_weight(reader, key))
        progress.advance(reader.entry(key).nbytes)
    _collect(problems, lambda: _check_totals(reader))
    progress.finish()
    return list(dict.fromkeys(problems))


def _collect(problems: list[str], check):
    """Run one check; its FormatError becomes a line."""
    try:
        return check()
    except FormatError as error:
        problems.append(str(error))
        return None


def _header_problems(reader: Reader) -> list[str]:
    header, name, problems = reader.header, reader.path.name, []
    for key in (CRC_KEY, HEADER_CRC_KEY, HASH_KEY):
        if key not in header.metadata:
            problems.append(f"'{name}' has no '{key}' in its header: it cannot be checked completely")
    if HEADER_CRC_KEY in header.metadata and header.metadata[HEADER_CRC_KEY] != header_crc32(header):
        problems.append(f"the header of '{name}' was edited after the file was written")
    text = dump_header(header.entries.values(), header.data_start, header.metadata)
    if header.data_start % 64 or header.text != text + b" " * (header.data_start - 8 - len(text)):
        problems.append(f"the header of '{name}' is not spelled as vqpack spells it: another program rewrote it")
    if len(header.metadata.get(CRC_KEY, "")) != 8 * len(header.entries):
        problems.append(f"the header of '{name}' has not one checksum for each of its {len(header.entries)} tensors")
    return problems


def _bad_tensors(reader: Reader, progress: Progress, problems: list[str]) -> frozenset[str]:
    digest = hashlib.sha256()
    bad = reader.bad_tensors(progress, digest)
    problems += [f"tensor '{key}' has a wrong checksum: its bytes changed after the file was written" for key in bad]
    if reader.metadata.get(HASH_KEY) != f"0x{digest.hexdigest()}":
        problems.append(f"'{HASH_KEY}' of '{reader.path.name}' is not the hash of its data")
    return frozenset(bad)


def _check_weight(reader: Reader, key: str) -> None:
    weight = reader.weight(key)
    check_padding(weight.layout, weight.blob, key)


def _check_totals(reader: Reader) -> None:
    """What the header says about the whole: bits, the report."""
    stated, counted = json_field(reader.metadata, "vqpack.bits", None), file_bits(reader)
    if stated is not None and stated != counted:
        raise FormatError(f"'{reader.path.name}' states {stated} bits a weight, counted are {counted}")
    read_report(reader)

