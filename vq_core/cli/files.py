"""`vqpack inspect`, `decompress` and `verify`."""
from __future__ import annotations

import json
import sys

from . import console


def run_inspect(args) -> int:
    """Print what a file holds: a short text, or JSON."""
    from ..inspection import inspect_file

    info = inspect_file(args.file)
    if args.json:
        print(json.dumps(info, indent=1, ensure_ascii=False))
    else:
        print(describe(info))
    return 0


def describe(info: dict) -> str:
    """The short text of an inspected file."""
    bits, layers = info["bits"], info["layers"]
    lines = [f"{info['architecture']}, format {info['format_version']}, {console.size(info['file_bytes'])}",
             f"bits a weight: coded layers {bits['coded']:.3f}, whole UNet {bits['unet']:.3f}, file {bits['file']:.3f}",
             f"source: {info['source'].get('name')} (sha256 {str(info['source'].get('sha256'))[:16]}...)"]
    counts: dict[str, list[int]] = {}
    for layer in layers:
        spec = layer["spec"]
        rate = spec.get("bits") or f"{spec.get('num_codebooks')}x{spec.get('codebook_size')}/{spec.get('group')}"
        counts.setdefault(f"{spec['kind']} {rate}", []).append(layer["bytes"])
    lines += [f"  {len(sizes):4d} layers {name:18s} {console.size(sum(sizes))}" for name, sizes in counts.items()]
    worst = sorted((x for x in layers if "relative_error" in x), key=lambda x: -x["relative_error"])[:5]
    if worst:
        lines.append("largest relative weight error (squared error over squared norm):")
        lines += [f"  {layer['relative_error']:.4f}  {layer['name']}" for layer in worst]
    return "\n".join(lines)


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
