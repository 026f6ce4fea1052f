"""Measures every code family on an iid Gaussian source: mean squared error over Shannon's bound 2^(-2 R).

    python benchmarks/gaussian.py [--rows 512] [--window 12] [--families trellis,palette] [--threads 2]

R counts everything a layer of 1280 x 11520 (SDXL's widest convolution) stores: code words with their padding, row
scales, codebooks; the shared trellis table is stored once a file and left out. Samples are new to the trellis tables.
"""
from __future__ import annotations

import argparse
import json
import time
from functools import partial

import torch
from alias import RESULTS, load_vqpack, machine

load_vqpack()
from vqpack.kernels.dispatch import decode_part  # noqa: E402
from vqpack.vq_core.encode import encoder_for  # noqa: E402
from vqpack.vq_core.spec import TRELLIS_RATES, make_spec  # noqa: E402

LAYER_ROWS, LAYER_COLS = 1280, 11520
RATES = {"trellis": TRELLIS_RATES, "palette": (1, 2, 3, 4, 5, 6), "additive": (1, 2, 3, 4), "product": (1, 2, 3, 4)}
ROWS = {"trellis": 512, "palette": 512, "additive": 64, "product": 64}  # by speed
# Code bits alone, measured by independent code before this existed (scalar Lloyd-Max; M x 256 over 8, beam 8).
EARLIER = {"palette": (1.455, 1.882, 2.223, 2.430), "additive": (1.259, 1.361, 1.508, 1.749)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=0, help="rows coded, 0 = by family")
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--families", default="trellis,palette,additive,product")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for family in args.families.split(","):
        for bits in RATES[family]:
            rows.append(measure(family, bits, args))
            print("{family:9} {bits:3} bits, stored {stored_bits:.4f}: ratio {ratio:.4f}, codes {ratio_codes:.4f}, "
                  "{million_weights_per_second:.2f} M weights/s".format(**rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gaussian.json").write_text(json.dumps({"machine": machine(), "layer": [LAYER_ROWS, LAYER_COLS],
                                                       "window": args.window, "rows": rows}, indent=1) + "\n")


def measure(family: str, bits: float, args) -> dict:
    """Code a fresh Gaussian matrix once to warm up (a few rows), then once for the record."""
    spec = make_spec(family, bits, **({"window": args.window, "rotation": 0} if family == "trellis" else {}))
    encode = partial(encoder_for(family), **({"effort": "best"} if family == "additive" else {}))
    matrix = torch.randn(args.rows or ROWS[family], LAYER_COLS, generator=torch.Generator().manual_seed(args.seed))
    encode(matrix[:2, :512].contiguous(), spec, channels=512, taps=1)
    started = time.monotonic()
    part = encode(matrix, spec, channels=LAYER_COLS // 9, taps=9)
    seconds = time.monotonic() - started
    error = sum(float((decode_part(part, first, first + 64) - some).double().square().sum())
                for first, some in ((first, matrix[first:first + 64]) for first in range(0, len(matrix), 64)))
    error /= float(matrix.double().square().sum())
    code_bits, stored_bits = count_bits(part, matrix.numel())
    earlier = dict(enumerate(EARLIER.get(family, ()), 1)).get(bits)
    return {"family": family, "bits": bits, "stored_bits": stored_bits, "error": error,
            "ratio": error * 4**stored_bits, "ratio_codes": error * 4**code_bits, "weights": matrix.numel(),
            "million_weights_per_second": matrix.numel() / seconds / 1e6, "earlier": earlier}


def count_bits(part, weights: int) -> tuple[float, float]:
    """Bits a weight of the code words, and of all that LAYER_ROWS x LAYER_COLS weights store.

    Product codes spend a share of the layer on books, so theirs are counted on the matrix at hand.
    """
    code_bits = part.codes.numel() * part.codes.element_size() * 8 / weights
    books = [book for book in (getattr(part, name, None) for name in ("codebooks", "values")) if book is not None]
    grows = any(book.ndim == 4 and book.shape[0] > 1 for book in books)
    shared = sum(book.numel() * 16 for book in books) / (weights if grows else LAYER_ROWS * LAYER_COLS)
    return code_bits, code_bits + 16 / LAYER_COLS + shared


if __name__ == "__main__":
    main()
