"""A vqpack file of SDXL's exact shapes with random codes, in seconds: as large and as slow to decode as a real one.

    python benchmarks/synthetic_file.py OUT.safetensors [--shape base] [--bits 3] [--rotation 128] [--parts unet]

Nothing is encoded; what it decodes to is noise of unit gain. Dense tensors are as in make_checkpoint.py.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from alias import load_vqpack
from make_checkpoint import read_shapes, values

load_vqpack()
from vqpack.vq_core.arch import make_layers  # noqa: E402
from vqpack.vq_core.bench.parts import random_weight  # noqa: E402
from vqpack.vq_core.container import Writer  # noqa: E402
from vqpack.vq_core.spec import TrellisSpec  # noqa: E402
from vqpack.vq_core.table_record import table_id, table_key  # noqa: E402
from vqpack.vq_core.tables import get_table, table_bytes  # noqa: E402


def write(out: Path, shapes: dict[str, tuple[int, ...]], spec: TrellisSpec, parts: tuple[str, ...] = ("unet",)) -> Path:
    """Write it -> its path."""
    packed = table_bytes(get_table(spec.window, spec.step_bits, spec.vector)[0])
    with Writer(out, overwrite=True) as writer:
        writer.add(table_key(table_id(packed)), packed)
        for number, layer in enumerate(make_layers(shapes)):
            if layer.component not in parts:
                continue
            if layer.component == "unet" and not layer.dense:
                writer.add_blob(layer.key, random_weight(layer.shape, spec, number).blob)
            else:
                writer.add(layer.key, torch.from_numpy(values(layer.key, layer.shape, 0, False).copy()))
        return writer.close({"vqpack.architecture": "sdxl"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="base", help="base, vega, tiny or a list, as in make_checkpoint.py")
    parser.add_argument("--bits", type=float, default=3)
    parser.add_argument("--rotation", type=int, default=128)
    parser.add_argument("--parts", default="unet")
    args = parser.parse_args()
    path = write(args.out, read_shapes(args.shape), TrellisSpec(args.bits, rotation=args.rotation),
                 tuple(args.parts.split(",")))
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
