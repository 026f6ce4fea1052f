"""Counting bits: everything stored is in the numbers (codes, scales, books, tables, padding, headers)."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: what it is logically and what it costs on disk."""

    key: str
    component: str                         # "unet", "te1", "te2", "vae", "other", "table"
    weights: int                           # logical numbers
    nbytes: int                            # bytes on disk
    coded: bool


def count_bits(stored: list[Stored], file_bytes: int) -> dict[str, float]:
    """-> {"coded", "unet", "file"}: bits per weight of the UNet's coded layers, of the whole UNet, of the file.

    Shared trellis tables are charged to the UNet's coded layers. "file" counts the header and all tensors.
    """
    tables = sum(s.nbytes for s in stored if s.component == "table")
    unet = [s for s in stored if s.component == "unet"]
    coded = [s for s in unet if s.coded]
    everything = [s for s in stored if s.component != "table"]
    return {"coded": _rate(sum(s.nbytes for s in coded) + tables * bool(coded), sum(s.weights for s in coded)),
            "unet": _rate(sum(s.nbytes for s in unet) + tables * bool(coded), sum(s.weights for s in unet)),
            "file": _rate(file_bytes, sum(s.weights for s in everything))}


def _rate(nbytes: int, weights: int) -> float:
    return round(8 * nbytes / weights, 4) if weights else 0.0
