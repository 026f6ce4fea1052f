"""GPU memory while sampling from a file, by formula: weights + scratch + kept decoded weights + activations.

What CUDA, cuBLAS and cuDNN take for themselves is not in it, nor text encoders, VAE and LoRA.
"""
from __future__ import annotations

from pathlib import Path

from .arch import UNET_PREFIX
from .container import Reader
from .cost_model import SamplingMemory, activation_bytes, decode_scratch, weights_of, worth_keeping
from .describe import size
from .errors import UnsupportedError
from .table_record import PREFIX as TABLES

HALF = 2                                   # bytes of an element; a GPU computes SDXL in fp16


def sampling_memory(path: str | Path, pixels: int = 1024, batch: int = 2, keep_bytes: int = 0) -> SamplingMemory:
    """Of a file's UNet in fp16, on square pictures; batch counts both halves of guidance. Reads headers only."""
    with Reader(path) as reader:
        coded = frozenset(reader.coded_keys())
        keys = [key for key in reader.keys() if key.startswith(UNET_PREFIX)]
        keys = keys or [key for key in reader.keys() if not key.startswith("vq.")]      # a UNet alone
        layouts = {key: reader.layout(key) for key in keys if key in coded}
        if not layouts:
            raise UnsupportedError(f"'{Path(path).name}' has no coded UNet: its memory is that of an ordinary model")
        stored = sum(layout.nbytes for layout in layouts.values())
        dense = sum(reader.entry(key).nbytes for key in keys if key not in coded)
        tables = sum(reader.entry(key).nbytes for key in reader.keys() if key.startswith(TABLES))
    sizes = {key: weights_of(layout) for key, layout in layouts.items()}
    kept = worth_keeping([(key, layout, HALF) for key, layout in layouts.items()], keep_bytes)
    return SamplingMemory(stored + dense + tables, decode_scratch(max(sizes.values()), HALF),
                          sum(sizes[key] * HALF for key in kept), activation_bytes(pixels, batch, HALF))


def describe(memory: SamplingMemory, pixels: int, batch: int) -> str:
    """One line of text for each term."""
    rows = [("weights", memory.weights, "codes, dense layers, tables"),
            ("scratch", memory.scratch, "the largest weight: 10 bytes for each of its entries, LoRA included"),
            ("kept", memory.kept, "decoded weights that stay"),
            ("activations", memory.activations, f"{batch} at {pixels} x {pixels}, by formula"),
            ("peak", memory.peak, "their sum; CUDA's own, text encoders, VAE and LoRA come on top")]
    return "\n".join(["GPU memory while sampling in fp16:",
                      *(f"  {name:12s}{size(nbytes):>10s}  {what}" for name, nbytes, what in rows)])
