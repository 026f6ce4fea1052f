"""An adapter's file in words: what `vqpack inspect` says of it."""
from __future__ import annotations

from pathlib import Path

from ..container import Reader
from ..describe import size
from .file import METADATA, load_adapter


def is_adapter(path: str | Path) -> bool:
    """Whether a file's header says so; FormatError where it is no vqpack file at all."""
    with Reader(path) as reader:
        return METADATA in reader.metadata


def adapter_info(path: str | Path) -> dict:
    """-> the JSON of `vqpack inspect --json`; FormatError for a damaged one."""
    found = load_adapter(path)
    return {**found.facts, "base": found.base, "experts": found.experts, "boundaries": list(found.boundaries),
            "layers": len(found.layers), "numbers": found.numbers, "file_bytes": Path(path).stat().st_size,
            "largest_change": max(float(side.float().abs().max().exp() - 1) for pair in found.layers.values()
                                  for side in pair if side is not None)}


def described(info: dict) -> str:
    """The short text of it."""
    edges = ", ".join(f"{edge:.3g}" for edge in info["boundaries"])
    experts = "1 expert" if info["experts"] == 1 else f"{info['experts']} experts, which meet at noise (sigma) {edges}"
    lines = [f"scale adapter, {size(info['file_bytes'])}: {experts}, {info['layers']} layers, "
             f"{info['numbers']} numbers",
             f"base: {info.get('base_name', 'unknown')} (UNet {info['base'][:12]}...)",
             f"largest change of a scale: {100 * info['largest_change']:.1f} %"]
    if {"learned_from", "steps", "of", "before", "after"} <= info.keys():
        taught = "pictures" if info["learned_from"] == "images" else "a teacher"
        lines.append(f"learned from {taught}: step {info['steps']} of {info['of']}, held-out error "
                     f"{info['before']:.4g} -> {info['after']:.4g}")
    return "\n".join(lines)
