"""Owns the trained trellis tables that come with the package (byte form: table_record.py, docs/format.md section 5)."""
from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from ...kernels.parts import TrellisPart
from ..errors import PlanError
from ..table_record import TableRecord, pack_table, parse_table, table_key
from ..table_record import table_id as packed_id

__all__ = ["get_table", "table_by_id", "table_bytes", "table_id", "table_id_of", "table_key", "parse_table"]
_FOLDER = Path(__file__).parent


def get_table(window: int, step_bits: int, vector: int) -> tuple[torch.Tensor, float]:
    """-> table int8 [2**window, vector] and its step: it was trained on a Gaussian source of sigma 1 / step units.

    Raises PlanError where no such table comes with the package. The tensor is shared by all callers: do not change it.
    """
    name = f"trellis_L{window}_B{step_bits}_V{vector}"
    if name not in _index():
        raise PlanError(f"expected a trellis table out of {', '.join(sorted(_index()))}, got window {window} and "
                        f"{step_bits} bits for a step of {vector} weights; choose another rate or window")
    return _load(name).values, float(_index()[name]["step"])


def table_by_id(wanted: int) -> torch.Tensor | None:
    """The package's own table int8 [2**window, vector] with this id, or None."""
    found = next((record for record in map(_load, _index()) if _id(record) == wanted), None)
    return None if found is None else found.values


def table_bytes(table: torch.Tensor, step_bits: int | None = None) -> torch.Tensor:
    """Stored form, uint8 [bytes], of a table int8 [2**window, vector]; the package's own need no step_bits."""
    if step_bits is None:
        own = next((record for record in map(_load, _index()) if torch.equal(record.values, table)), None)
        if own is None:
            raise PlanError("expected one of the package's own trellis tables, got another: name its step_bits")
        step_bits = own.step_bits
    entries, vector = table.shape
    return pack_table(table, entries.bit_length() - 1, step_bits, vector)


def table_id(table: torch.Tensor, step_bits: int | None = None) -> int:
    """CRC-32 of a table's stored form, its name in files."""
    return packed_id(table_bytes(table, step_bits))


def table_id_of(part: TrellisPart) -> int:
    """Id of the table a coded part uses."""
    return table_id(part.table, part.step_bits)


@cache
def _index() -> dict:
    return json.loads((_FOLDER / "index.json").read_text(encoding="utf-8"))


@cache
def _load(name: str) -> TableRecord:
    data = torch.frombuffer(bytearray((_FOLDER / f"{name}.vqtable").read_bytes()), dtype=torch.uint8)
    return parse_table(data, name)


def _id(record: TableRecord) -> int:
    return packed_id(pack_table(record.values, record.window, record.step_bits, record.vector))
