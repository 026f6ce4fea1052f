"""Writes a random-weight, structurally exact single-file checkpoint (fp16, LDM key names). Needs numpy only.

    python benchmarks/make_checkpoint.py SHAPE OUT.safetensors [--seed N] [--trained-like]

SHAPE is base (SDXL, 6.94 GB, 2515 tensors), vega (Segmind-Vega, 3.29 GB), tiny (126 MB; no published model, but ComfyUI
detects it as SDXL and samples from it; no text encoders, a TAESD decoder) or a list of one tensor a line: name, tab,
shape as comma-separated integers (empty for a scalar), plain or gzip'd; the three lists are in tests/data.

Weights are normal with std 1/sqrt(fan_in), norms 1, biases 0, so activations stay finite and images are coloured noise:
good for plumbing, memory, speed and equality, never for quality. --trained-like multiplies rows by log-normal scales
and adds 0.1 % outliers, which is closer to what a quantizer meets. Memory stays under a gigabyte.
"""
from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import struct
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
NAMED = ("base", "vega", "tiny")


def read_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """One of NAMED or a path -> key -> shape."""
    path = DATA / f"sdxl_{name}.keys.tsv.gz" if name in NAMED else Path(name)
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = (line.partition("\t") for line in text.decode().splitlines())
    return {key: tuple(int(n) for n in shape.split(",") if n) for key, _, shape in lines}


def values(name: str, shape: tuple[int, ...], seed: int, trained_like: bool) -> np.ndarray:
    """One tensor's values -> float16 (position_ids: int64) array of `shape`; a function of name and seed only."""
    last = name.rsplit(".", 1)[-1]
    if last == "position_ids":
        return np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape)
    if last == "logit_scale":
        return np.full(shape, 4.6052, np.float16)
    if last in ("vae_scale", "vae_shift"):
        return np.full(shape, float(last == "vae_scale"), np.float16)
    if "bias" in last:
        return np.zeros(shape, np.float16)
    if len(shape) < 2:
        return np.ones(shape, np.float16)
    return weights(name, shape, seed, trained_like).astype(np.float16)


def weights(name: str, shape: tuple[int, ...], seed: int, trained_like: bool) -> np.ndarray:
    """A random weight -> float32 array of `shape`."""
    last = name.rsplit(".", 1)[-1]
    fan_in = shape[0] if last == "text_projection" else math.prod(shape[1:])
    std = 0.02 if "embedding" in name else fan_in ** -0.5
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    rng = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:8], "little")))
    w = rng.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape[0], -1) * np.float32(std)
    if trained_like:
        w *= np.exp(0.4 * rng.standard_normal((shape[0], 1), dtype=np.float32))
        w.reshape(-1)[rng.integers(0, w.size, max(1, w.size // 1000))] *= 6
    return w.reshape(shape)


def write_checkpoint(shapes: dict[str, tuple[int, ...]], out: str | os.PathLike, seed: int = 0,
                     trained_like: bool = False) -> Path:
    """Write all tensors of `shapes`, sorted by name, one at a time."""
    out = Path(out)
    part = out.with_name(out.name + ".part")
    with open(part, "wb") as file:
        file.write(_header(shapes)[0])
        for name in sorted(shapes):
            file.write(np.ascontiguousarray(values(name, shapes[name], seed, trained_like)).tobytes())
    os.replace(part, out)
    return out


def write_holes(shapes: dict[str, tuple[int, ...]], out: str | os.PathLike) -> Path:
    """The same with zeros for weights, none of which take room on the disk."""
    header, size = _header(shapes)
    with open(out, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return Path(out)


def _header(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """-> (framed header, bytes of data behind it)"""
    header, offset = {"__metadata__": {"note": "random weights, for tests only"}}, 0
    for name in sorted(shapes):
        kind, size = ("I64", 8) if name.endswith("position_ids") else ("F16", 2)
        end = offset + math.prod(shapes[name]) * size
        header[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offset


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="base, vega, tiny or a list of keys and shapes")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trained-like", action="store_true")
    args = parser.parse_args()
    shapes = read_shapes(args.shape)
    path = write_checkpoint(shapes, args.out, args.seed, args.trained_like)
    print(f"{path}: {len(shapes)} tensors, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
