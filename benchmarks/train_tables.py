"""Owns the training of the shared trellis tables: search for an order, then Viterbi and centroids in turn.

    python benchmarks/train_tables.py --window 12 --step-bits 3 --vector 1 [--effort 1] [--out vq_core/tables]

The order matters as much as four bits of window (docs/trellis.md): entry i starts as the Gaussian quantile of
(p(i) + 1/2) / 2^L, where the permutation p is i times an odd number mod 2^L, or a linear map of the bits of i. p is
searched: all candidates on a small sample, the best trained a little, the best of those trained long. Reproducible:
seeded, and encoding is exact integer arithmetic. Needs numba.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from alias import load_vqpack  # noqa: E402

load_vqpack()
from vqpack.kernels import viterbi, viterbi_numba  # noqa: E402
from vqpack.kernels.viterbi_reference import FRACTION  # noqa: E402
from vqpack.vq_core import tables  # noqa: E402

UNITS = 32.0          # table units a sigma as stored: 127 is close to 4 sigma. 24, 34.6, 40, 64: within 0.1 % at 4 bits
FINE = {1: 128.0, 2: 64.0}  # while training, by weights a step: training on the rounded table ends 0.3 % worse (4 bits)
LENGTH = 2048         # steps in one sequence; the zero start costs < 0.2 % at this length
ROUNDS = (            # (candidates kept, sequences per iteration, iterations) of the stages after the first look
    (24, 64, 4),
    (6, 256, 8),
    (2, 1024, 8),
    (1, 2048, 10),
)
FIRST_LOOK = (400, 16)  # candidates, sequences


def gaussian(sequences: int, vector: int, seed: int) -> np.ndarray:
    """Standard normal samples [sequences, LENGTH, vector]."""
    return np.random.default_rng(seed).standard_normal((sequences, LENGTH, vector))


def candidates(window: int, step_bits: int, vector: int, count: int, seed: int):
    """(order of each weight of a step, untrained table float [2**window, vector] in sigmas): multipliers and matrices
    of bits in turn."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield begin([bit_matrix(window, rng) if i % 2 else int(rng.integers(1 << window)) | 1 for _ in range(vector)],
                    window, step_bits)


def begin(order: list, window: int, step_bits: int) -> tuple[list, np.ndarray]:
    """(order, untrained table), shrunk to the variance that the decoded values of a code of this rate should have."""
    quantiles = torch.special.ndtri((torch.arange(1 << window).double() + 0.5) / (1 << window)).numpy()
    shrink = np.sqrt(1 - 2.0 ** (-2 * step_bits / len(order)))
    return order, shrink * np.stack([quantiles[places(window, o)] for o in order], 1)


def places(window: int, order: int | list[int]) -> np.ndarray:
    """A permutation of 0 .. 2^window - 1: i times the multiplier, or the exclusive or of row k for every bit k of i."""
    i = np.arange(1 << window, dtype=np.int64)
    if isinstance(order, int):
        return i * order % (1 << window)
    return np.bitwise_xor.reduce([(i >> k & 1) * row for k, row in enumerate(order)])


def bit_matrix(window: int, rng: np.random.Generator) -> list[int]:
    """Rows, as integers, of a random invertible matrix over GF(2)."""
    while True:
        rows = [int(row) for row in rng.integers(1 << window, size=window)]
        if len(set(places(window, rows).tolist())) == 1 << window:
            return rows


def rounded(table: np.ndarray, units: float = UNITS) -> np.ndarray:
    """In table units: -127 to 127 for UNITS a sigma, the stored form."""
    limit = 127 * units / UNITS
    return np.clip(np.rint(table * units), -limit, limit).astype(np.int16)


def encode(table: np.ndarray, x: np.ndarray, step_bits: int, units: float) -> np.ndarray:
    """States int64 [sequences, steps] of the best paths through the table rounded to so many units a sigma."""
    size, vector = table.shape
    entries = torch.from_numpy(rounded(table, units))
    targets = torch.from_numpy(np.rint(x * units * FRACTION).astype(np.int32))
    if units == UNITS:
        codes = viterbi.encode(targets, entries.to(torch.int8), step_bits).numpy()
    else:
        kinds = torch.full(x.shape[1:2], 2**vector - 1, dtype=torch.uint8)
        starts = torch.zeros(len(x), dtype=torch.int32)
        codes = viterbi_numba.encode(targets, entries, step_bits, kinds, starts).numpy()
    states = codes.astype(np.int64)
    for shift in range(1, -(-(size.bit_length() - 1) // step_bits)):
        states[:, shift:] += codes[:, :-shift].astype(np.int64) << (step_bits * shift)
    return states & (size - 1)


def ratio(table: np.ndarray, x: np.ndarray, states: np.ndarray, step_bits: int) -> float:
    """Mean squared error of the rounded table over Shannon's bound 2^(-2 R) for the sample's own variance."""
    error = (rounded(table)[states] / UNITS - x) ** 2
    return float(error.mean() / (x**2).mean() * 4.0 ** (step_bits / x.shape[2]))


def train(table: np.ndarray, step_bits: int, sequences: int, iterations: int, seed: int) -> np.ndarray:
    """Alternate encoding of fresh samples and centroids; sums decay so that later iterations average over several."""
    sums = np.zeros_like(table)
    counts = np.zeros(len(table))
    for k in range(iterations):
        x = gaussian(sequences, table.shape[1], seed + k)
        states = encode(table, x, step_bits, FINE[table.shape[1]]).ravel()
        keep = 0.0 if k < iterations // 3 else 0.7
        counts = keep * counts + np.bincount(states, minlength=len(table))
        for v in range(table.shape[1]):
            sums[:, v] = keep * sums[:, v] + np.bincount(states, x[..., v].ravel(), minlength=len(table))
        seen = counts > 0
        table = np.where(seen[:, None], sums / np.maximum(counts, 1e-9)[:, None], table)
    return table


def held_out(table: np.ndarray, step_bits: int, sequences: int, seed: int) -> float:
    x = gaussian(sequences, table.shape[1], seed)
    return ratio(table, x, encode(table, x, step_bits, UNITS), step_bits)


def search(window: int, step_bits: int, vector: int, effort: float, seed: int,
           known: list | None = None) -> tuple[np.ndarray, list, float]:
    """-> best table in sigmas, the order it began with, its held-out ratio on a large sample."""
    share = effort / vector
    x_seed, test_seed = seed * 1000 + 1, seed * 1000 + 2
    count, sequences = FIRST_LOOK
    starts = ([begin(known, window, step_bits)] if known else
              candidates(window, step_bits, vector, max(8, int(count * effort)), seed))
    pool = sorted(((held_out(t, step_bits, max(2, sequences // vector), x_seed), order, t) for order, t in starts),
                  key=lambda c: c[0])
    for stage, (kept, sequences, iterations) in enumerate(ROUNDS):
        sequences = max(8, int(sequences * share))
        trained = [(order, train(t, step_bits, sequences, iterations, seed * 1000 + 10 + 100 * stage))
                   for _, order, t in pool[:max(1, int(kept * min(1, effort)))]]
        pool = sorted(((held_out(t, step_bits, sequences, test_seed), order, t) for order, t in trained),
                      key=lambda c: c[0])
        print(f"  stage {stage}: " + ", ".join(f"{r:.4f} {order}" for r, order, _ in pool[:3]), flush=True)
    _, order, table = pool[0]
    return table, order, held_out(table, step_bits, max(64, int(1024 * share)), seed * 1000 + 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--step-bits", type=int, default=3)
    parser.add_argument("--vector", type=int, default=1)
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--order", type=json.loads, help="train this order (as in index.json) and search none")
    parser.add_argument("--out", type=Path, help="folder to store into, if better than what is there")
    args = parser.parse_args()
    started = time.monotonic()
    table, order, quality = search(args.window, args.step_bits, args.vector, args.effort, args.seed, args.order)
    name = f"trellis_L{args.window}_B{args.step_bits}_V{args.vector}"
    print(f"{name}: {quality:.4f} of Shannon's bound, {time.monotonic() - started:.0f} s")
    if args.out:
        store(args.out, name, args.step_bits, torch.from_numpy(rounded(table)).to(torch.int8), order, quality)


def store(folder: Path, name: str, step_bits: int, table: torch.Tensor, order: list, quality: float) -> None:
    """Write NAME.vqtable and its line of index.json, unless a better one is there."""
    index_path = folder / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    if name in index and index[name]["ratio"] <= quality:
        print(f"{name}: kept the stored table ({index[name]['ratio']})")
        return
    (folder / f"{name}.vqtable").write_bytes(tables.table_bytes(table, step_bits).numpy().tobytes())
    index[name] = {"step": 1 / UNITS, "ratio": round(quality, 4), "order": order}
    lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(index.items()))
    index_path.write_text("{" + lines + "}\n")


if __name__ == "__main__":
    main()
