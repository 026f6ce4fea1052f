"""What every peer gives back: the decoded weight, the bytes it stores, the share of the weights it coded."""
from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from importlib import metadata

import torch


class NotHere(Exception):
    """A peer cannot run here; the message says why in a few words."""


@dataclass(frozen=True)
class Coded:
    """One weight as a peer stores it. stored_bytes counts codes, scales, zero points, codebooks, factors, padding."""

    decoded: torch.Tensor                  # float32, the weight's shape
    stored_bytes: int
    coded_share: float                     # of the weights: 1 coded, 0 kept in fp16
    name: str
    settings: dict = field(default_factory=dict)

    @property
    def bits(self) -> float:
        """Stored bits a weight."""
        return 8 * self.stored_bytes / self.decoded.numel()


def kept(weight: torch.Tensor, name: str, settings: dict) -> Coded:
    """A weight the peer cannot code: fp16, as its checkpoint keeps it."""
    return Coded(weight.half().float(), 2 * weight.numel(), 0.0, name, settings)


def count_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of all tensors that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def need(module: str, package: str):
    """Import a peer's module; NotHere with the reason where that fails for whatever reason."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  foreign code: a peer that fails to import is an absent peer
        text = " ".join(str(error).split())
        raise NotHere(f"{package}: {type(error).__name__}: {text[:160]}") from None


def version(package: str) -> str:
    """Version of an installed package, '' where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
