"""verify: is a file exactly what was written? Every byte is covered by a checksum or derived from what is."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .container import Reader, header_crc32
from .errors import FormatError
from .inspection import file_bits, json_field, read_report
from .progress import Progress
from .record import check_padding
from .safetensors_io import dump_header
from .writer import CRC_KEY, HASH_KEY, HEADER_CRC_KEY


def verify_file(path: str | os.PathLike, progress: Progress | None = None) -> list[str]:
    """-> one sentence per problem, [] where the file is exactly what was written. Raises only Interrupted."""
    try:
        with Reader(path, mapped=False) as reader:
            return _verify(reader, progress or Progress())
    except FormatError as error:
        return [str(error)]


def _verify(reader: Reader, progress: Progress) -> list[str]:
    header, problems = reader.header, list(reader.warnings)
    progress.start("verify", 2 * sum(entry.nbytes for entry in header.entries.values()), Path(reader.path).name)
    problems += _header_problems(reader)
    if CRC_KEY in header.metadata:
        _collect(problems, lambda: problems.extend(_data_problems(reader, progress)))
    _collect(problems, reader.tables)
    for key in reader.coded_keys():
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
    return problems


def _data_problems(reader: Reader, progress: Progress) -> list[str]:
    digest = hashlib.sha256()
    problems = [f"tensor '{key}' has a wrong checksum: its bytes changed after the file was written"
                for key in reader.bad_tensors(progress, digest)]
    if reader.metadata.get(HASH_KEY) != f"0x{digest.hexdigest()}":
        problems.append(f"'{HASH_KEY}' of '{reader.path.name}' is not the hash of its data")
    return problems


def _check_weight(reader: Reader, key: str) -> None:
    weight = reader.weight(key)
    check_padding(weight.layout, weight.blob, key)


def _check_totals(reader: Reader) -> None:
    """What the header says about the whole: bits, the report."""
    stated, counted = json_field(reader.metadata, "vqpack.bits", None), file_bits(reader)
    if stated is not None and stated != counted:
        raise FormatError(f"'{reader.path.name}' states {stated} bits a weight, counted are {counted}")
    read_report(reader)

