"""A second model without coding one: the same file with layers of one shape in each other's place."""
from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

_SWAPS = (("input_blocks.5.1.transformer_blocks.0.", "input_blocks.5.1.transformer_blocks.3."),
          ("input_blocks.5.1.transformer_blocks.1.", "input_blocks.5.1.transformer_blocks.4."),
          ("output_blocks.0.0.", "output_blocks.3.0."), ("output_blocks.1.0.", "output_blocks.4.0."),
          ("input_blocks.1.0.", "input_blocks.5.0."))


def swap_layers(path: Path, out: Path) -> None:
    """Write `out`; without the checksums, which name keys."""
    with safe_open(path, "pt") as opened:
        tensors = {_swapped(key): opened.get_tensor(key) for key in opened.keys()}
        metadata = {k: v for k, v in (opened.metadata() or {}).items() if "crc32" not in k}
    save_file(tensors, out, metadata)


def _swapped(key: str) -> str:
    for one, two in _SWAPS:
        if one in key:
            return key.replace(one, two)
        if two in key:
            return key.replace(two, one)
    return key
