"""What SDXL's UNet takes at every rate of every method, counted from its shapes: codes, codebooks, scales, tables.

    python benchmarks/sdxl_size.py [--shape base] [--out benchmarks/results]

Bytes of every coded layer as the file stores them, shared trellis tables, and the layers nobody codes in fp16; not the
file's header and report. DPQ (arXiv 2411.12306) names a compression of 24 times at one bit; a 24th of SDXL's UNet in
float32 is 0.428 GB. Writes sdxl_size.json.
"""
from __future__ import annotations

import argparse
import json
from math import prod
from pathlib import Path

from alias import RESULTS, load_vqpack, machine
from make_checkpoint import read_shapes

load_vqpack()
from vqpack.vq_core.arch import make_layers  # noqa: E402
from vqpack.vq_core.planning.budget import stored_bytes, table_sizes  # noqa: E402
from vqpack.vq_core.spec import TRELLIS_RATES, Spec, make_spec  # noqa: E402

RATES = {"trellis": TRELLIS_RATES, "additive": (1, 2, 3, 4), "product": (1, 2, 3, 4), "palette": (1, 2, 3, 4, 6, 8),
         "uniform": (2, 3, 4, 6, 8)}
FP16 = 2                                   # bytes of a weight that nobody codes


def unet_size(shapes: dict[str, tuple[int, ...]], spec: Spec) -> dict[str, float]:
    """Bytes of the UNet, of its coded layers, and bits a weight. shapes: LDM key -> shape of a checkpoint."""
    layers = [layer for layer in make_layers(shapes) if layer.component == "unet"]
    coded = {layer.key: stored_bytes(layer, spec, FP16) for layer in layers if not layer.dense}
    dense = FP16 * sum(layer.numel for layer in layers if layer.dense)
    tables = sum(table_sizes([spec]).values())
    total, weights = sum(coded.values()) + dense + tables, sum(prod(layer.shape) for layer in layers)
    return {"bytes": total, "coded_bytes": sum(coded.values()) + tables, "weights": weights,
            "bits_unet": 8 * total / weights, "times_smaller_than_float32": 4 * weights / total,
            "bits_layers": 8 * (sum(coded.values()) + tables) / sum(la.numel for la in layers if not la.dense)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="base", help="as in make_checkpoint.py")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    shapes, rows = read_shapes(args.shape), []
    for method, rates in RATES.items():
        for bits in rates:
            rows.append({"method": method, "bits": bits, **unet_size(shapes, make_spec(method, bits))})
            print("{method:9s} {bits:3g} bits: {gb:.4f} GB, {bits_layers:.3f} bits a coded weight, {bits_unet:.3f} of "
                  "the UNet, {times_smaller_than_float32:.1f} times smaller than float32".format(
                      gb=rows[-1]["bytes"] / 1e9, **rows[-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sdxl_size.json").write_text(json.dumps({"machine": machine(), "shape": args.shape, "rows": rows},
                                                        indent=1) + "\n")


if __name__ == "__main__":
    main()
