"""`vqpack inspect`, `report`, `decompress` and `verify`."""
from __future__ import annotations

import json
import sys

from . import console


def run_inspect(args) -> int:
    """Print what a file holds: a short text, or JSON."""
    from ..adapters.describe import adapter_info, described, is_adapter
    from ..describe import describe
    from ..inspection import inspect_file

    adapter = is_adapter(args.file)
    info = adapter_info(args.file) if adapter else inspect_file(args.file)
    if args.json:
        print(json.dumps(info, indent=1, ensure_ascii=False))
    else:
        print(described(info) if adapter else describe(info))
    return 0


def run_report(args) -> int:
    """Write the page of a file."""
    from pathlib import Path

    from ..compare.file_page import write_file_page
    from ..compare.file_pictures import of_comparison

    drawings = [of_comparison(args.file, args.comparison)] if args.comparison else []
    print(write_file_page(args.file, args.output or Path(args.file).with_suffix(".html"), drawings))
    return 0


def run_decompress(args) -> int:
    """Write an ordinary checkpoint."""
    from ..decompress import decompress

    seconds = console.stopwatch()
    path = decompress(args.source, args.output, dtype=args.dtype, overwrite=args.overwrite, progress=console.progress())
    print(f"{path}: {console.size(path.stat().st_size)}, {console.duration(seconds())}")
    return 0


def run_verify(args) -> int:
    """Check a file; exit code 1 and one line a problem where something is wrong."""
    from ..verify import compare_with_source, verify_file

    seconds, progress = console.stopwatch(), console.progress()
    problems = verify_file(args.file, progress)
    layers = compare_with_source(args.file, args.against, progress) if args.against and not problems else []
    result = {"file": args.file.replace("\\", "/").rsplit("/", 1)[-1], "ok": not problems, "problems": problems,
              "layers": layers, "seconds": round(seconds(), 3), "peak_rss_bytes": console.peak_rss_bytes()}
    if args.json:
        console.write_json(args.json, result)
    for problem in problems:
        print(f"vqpack: {problem}", file=sys.stderr)
    if not problems:
        print("verified: header, checksums, records and tables are as written")
    if layers:
        worst = max(layers, key=lambda layer: layer["relative_error"])
        mean = sum(layer["relative_error"] * layer["weights"] for layer in layers) / sum(x["weights"] for x in layers)
        print(f"relative weight error: mean {mean:.5f}, worst {worst['relative_error']:.5f} in {worst['name']}")
    return 1 if problems else 0
