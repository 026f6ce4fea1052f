"""`vqpack compare` and `vqpack attach`."""
from __future__ import annotations

import argparse
import re

from . import console


def run(args) -> int:
    """Draw, measure, write the report; print the short table."""
    from ..compare.output import plain
    from ..compare.run import compare

    seconds = console.stopwatch()
    result = compare([args.reference, *args.others], args.output, prompts=args.prompts, count=args.count,
                     steps=args.steps, seeds=args.seeds, size=args.size, sampler=args.sampler, guidance=args.guidance,
                     device=args.device, configs=args.configs, overwrite=args.overwrite, progress=console.progress())
    if args.json:
        console.write_json(args.json, plain(result.data))
    for note in result.data["notes"]:
        print(note)
    print(table(result.data))
    verb = "is already there" if result.already_there else f"took {console.duration(seconds())}"
    print(f"{result.html}: {console.size(result.html.stat().st_size)}, {verb}; numbers in {result.json.name}")
    if any(checkpoint.get("content") for checkpoint in result.data["checkpoints"][1:]):
        print(f"to keep the numbers in a vqpack file: vqpack attach FILE \"{result.json}\"")
    return 0


def run_attach(args) -> int:
    """Write the copy, print what it says now."""
    from ..compare.attach import attach
    from ..describe import comparison_lines
    from ..inspection import inspect_file

    path = attach(args.file, args.comparison, args.output, overwrite=args.overwrite, progress=console.progress())
    print(f"{path}: {console.size(path.stat().st_size)}")
    print("\n".join(comparison_lines(inspect_file(path)["comparison"])))
    return 0


def table(data: dict) -> str:
    """One line a checkpoint: bits, weight error and the metrics with their intervals."""
    lines = [["", "checkpoint", "UNet bits", "weight error", *(_title(m) for m in data["metrics"])]]
    for order, checkpoint in enumerate(data["checkpoints"]):
        error = checkpoint["weight_error"]["unet"]
        line = [checkpoint["letter"], checkpoint["name"][-40:], f"{checkpoint['bits']['unet']:.2f}",
                "reference" if not order else "-" if error is None else f"{error:.5f}"]
        for metric in data["metrics"]:
            found = checkpoint["metrics"].get(metric["name"])
            line.append(_interval(found, metric["digits"]) if found else "-")
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) if i < 2 else text.rjust(width)
                               for i, (text, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def size(text: str) -> tuple[int, int]:
    """`HxW` or one number -> (height, width)"""
    match = re.fullmatch(r"(\d{1,5})(?:[xX×](\d{1,5}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected HxW, e.g. 1024x1024, got '{text}'")
    return int(match[1]), int(match[2] or match[1])


def _title(metric: dict) -> str:
    return f"{metric['title']} [95 %]"


def _interval(found: dict, digits: int) -> str:
    low, value, high = (float(found[name]) if found[name] is not None else float("nan")
                        for name in ("low", "value", "high"))
    return f"{value:.{digits}f}" if found["count"] < 2 else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
