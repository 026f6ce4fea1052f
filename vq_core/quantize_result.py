"""What a run of quantize produced, layer by layer."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import exp, log
from pathlib import Path

from .device_memory import Fallbacks


@dataclass(frozen=True)
class LayerResult:
    """One coded layer, as `--json` prints it."""

    name: str
    shape: list[int]
    spec: dict
    bits: float                            # stored bits per weight, everything in the blob counted
    bytes: int
    relative_error: float                  # squared error over squared norm
    output_error: float | None = None      # squared error over square of the outputs, calibrated layers only
    block: str | None = None               # path of the block it was rounded with, rounding "block" only
    block_error: float | None = None       # of that block's outputs on held-out calls, over that of layer-wise rounding

    def to_json(self) -> dict:
        """Its fields, those without a value left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class QuantizeResult:
    """What a run produced; `already_there`: an identical earlier result was found and nothing was coded."""

    path: Path
    architecture: str
    bits: dict[str, float]
    file_bytes: int
    source: dict
    seconds: float
    layers: list[LayerResult] = field(default_factory=list)
    already_there: bool = False
    fallbacks: Fallbacks = field(default_factory=Fallbacks)

    def blocks(self) -> dict[str, float]:
        """Blocks whose roundings were learned together -> LayerResult.block_error; 1: the layer-wise ones stayed."""
        return {layer.block: layer.block_error for layer in self.layers if layer.block is not None}

    def blocks_in_words(self) -> str:
        """"" where none were."""
        errors = self.blocks().values()
        better = [error for error in errors if error < 1]
        if not errors:
            return ""
        told = f"{len(better)} of {len(errors)} blocks took roundings learned together"
        if not better:
            return told
        mean = exp(sum(map(log, better)) / len(better))
        return f"{told}; held-out error of their outputs over that of roundings learned layer by layer: {mean:.2f}"
