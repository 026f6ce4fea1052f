"""Damages a small file in many seeded ways and counts what happens; exit code 1 where damage goes unnoticed or crashes.

    python benchmarks/fuzz_format.py [--count 20000] [--first 0] [--forged 2000]

Two counts: mutations (verify must report each of them) and forgeries (records edited, checksums made right again: each
must be refused or decode without harm). The tests run 500 and 200 of the same.
"""
from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 10.0            # seconds for one file of 50 KB


def load(name: str, path: Path, **options) -> None:
    """Import a file under a name of our choice; nothing is put on sys.path."""
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def run(count: int, label: str, attempt) -> bool:
    """attempt(seed) -> outcome, for `count` seeds; prints a table -> True where nothing failed."""
    counts, failures, slowest, started = Counter(), [], 0.0, time.monotonic()
    for seed in count:
        began = time.monotonic()
        try:
            counts[attempt(seed)] += 1
        except Exception:  # noqa: BLE001 - anything that escapes is what we look for
            counts["FAILED"] += 1
            failures.append((seed, traceback.format_exc(limit=-2)))
        slowest = max(slowest, time.monotonic() - began)
    seconds = time.monotonic() - started
    print(f"{label}: {sum(counts.values())} files in {seconds:.0f} s, slowest {slowest * 1000:.0f} ms")
    for outcome, number in sorted(counts.items()):
        print(f"  {outcome:24s} {number}")
    for seed, text in failures[:5]:
        print(f"  seed {seed}:\n{text}")
    return not failures and slowest < LIMIT


def main() -> int:
    """Run both counts."""
    parser = argparse.ArgumentParser(description="fuzz the readers of the file format")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--forged", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    load("vqpack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    for name in ("samples", "mutations"):
        load(f"format_{name}", ROOT / "tests" / "format" / f"{name}.py")
    from format_mutations import CASES, contents, forge, mutate, outcome, touch
    from format_samples import write_file
    from vqpack.vq_core.container import Reader
    from vqpack.vq_core.errors import VQError

    with tempfile.TemporaryDirectory() as folder:
        original = write_file(Path(folder), cases=CASES)
        data, known, path = original.read_bytes(), contents(original), Path(folder) / "damaged.safetensors"

        def damaged(seed: int) -> str:
            kind, changed = mutate(data, seed)
            path.write_bytes(changed)
            return f"{kind}: {outcome(path, known)}"

        def forged(seed: int) -> str:
            path.write_bytes(forge(data, seed))
            try:
                with Reader(path) as reader:
                    return "forged: decoded" if touch(reader, known) else "forged: refused"
            except VQError:
                return "forged: refused"

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        good = run(range(args.first, args.first + args.count), "mutations", damaged)
        good &= run(range(args.first, args.first + args.forged), "forgeries", forged)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"peak memory grew by {grown / 1024:.0f} MiB")
    return 0 if good and grown < 256 << 10 else 1


if __name__ == "__main__":
    sys.exit(main())
