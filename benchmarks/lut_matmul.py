"""Products from look-up tables: operations of SDXL by formula, and processor time beside dense products.

    python benchmarks/lut_matmul.py [--repeats 7] [--out benchmarks/results]

Operations: SDXL's 771 coded layers, one picture of 1024 x 1024, over those of dense products, for M books of 256
entries over 8 weights; "chosen": dense where that takes fewer. Time: linear layers with random codes, medians of
processor time, one thread, float32: the product with a decoded weight, the same with decoding, and from tables. Writes
lut_operations.csv and lut_matmul.csv.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from alias import RESULTS, load_vqpack, machine
from make_checkpoint import read_shapes
from testbed_bench import write_csv
from torch.nn import functional as F

load_vqpack()
from vqpack.kernels.packing import pack_codes  # noqa: E402
from vqpack.kernels.parts import AdditivePart, Scales  # noqa: E402
from vqpack.vq_core.lut_matmul import lut_linear  # noqa: E402
from vqpack.vq_core.operations import (  # noqa: E402
    dense_operations,
    input_vectors,
    table_operations,
    unet_operations,
)
from vqpack.vq_core.record import build_blob, parse_blob  # noqa: E402

SHAPES = ((1280, 1280), (10240, 1280), (1280, 5120))       # out, in: nearly all of SDXL's linear weights
TOKENS, BOOKS = (1, 16, 256), (1, 2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    write_csv(args.out / "lut_operations.csv", operations())
    write_csv(args.out / "lut_matmul.csv", [timed(shape, books, tokens, args.repeats) for shape in SHAPES
                                            for books in BOOKS for tokens in TOKENS])
    return 0


def operations() -> list[dict]:
    """SDXL's, one row for each number of books."""
    vectors, rows = input_vectors(read_shapes("base"), 128, 128), []
    for books in (1, 2, 3, 4):
        tables, dense = unet_operations(vectors, books)
        chosen, _ = unet_operations(vectors, books, choose=True)
        rows.append({"books": books, "dense_tera": f"{dense / 1e12:.3f}", "tables_over_dense": f"{tables / dense:.3f}",
                     "chosen_over_dense": f"{chosen / dense:.3f}"})
        print("M = {books}: {tables_over_dense} of {dense_tera} T, chosen {chosen_over_dense}".format(**rows[-1]))
    return rows


def random_weight(shape: tuple[int, int], books: int):
    """A coded weight with codes and books at random."""
    g, groups = torch.Generator().manual_seed(0), shape[1] // 8
    codes = pack_codes(torch.randint(256, (shape[0], groups * books), generator=g), 8)
    entries = torch.randint(-99, 100, (1, books, 256, 8), generator=g).short()
    scales = Scales(0.01, torch.ones(shape[0], dtype=torch.float16))
    part = AdditivePart(shape[0], shape[1], 1, 8, 8, codes, entries, scales)
    return parse_blob(build_blob(shape, torch.float16, [(0, shape[1], "additive", part)]), {}, "random")


def timed(shape: tuple[int, int], books: int, tokens: int, repeats: int) -> dict:
    """One row: milliseconds of each way."""
    weight, x = random_weight(shape, books), torch.randn(tokens, shape[1])
    decoded = weight.decode()
    ways = {"dense_ms": lambda: F.linear(x, decoded), "decode_dense_ms": lambda: F.linear(x, weight.decode()),
            "tables_ms": lambda: lut_linear(x, weight)}
    found = {name: f"{1e3 * median_seconds(way, repeats):.2f}" for name, way in ways.items()}
    ratio, here = table_operations(*shape, books) / dense_operations(*shape), machine()
    row = {"out": shape[0], "in": shape[1], "books": books, "tokens": tokens, "operations": f"{ratio:.3f}", **found,
           "machine": here["cpu"], "commit": here["commit"]}
    print("{out} x {in}, M = {books}, {tokens} tokens: dense {dense_ms} ms, decoded first {decode_dense_ms} ms, tables "
          "{tables_ms} ms".format(**row), flush=True)
    return row


def median_seconds(way, repeats: int) -> float:
    """Processor time of one call."""
    way()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        way()
        found.append(time.process_time() - started)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
