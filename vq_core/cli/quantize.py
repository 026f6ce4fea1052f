"""`vqpack quantize`."""
from __future__ import annotations

import argparse
import dataclasses

from . import console

LEVELS = ("fast", "balanced", "best")                              # as effort.py, which is imported late


def effort(text: str) -> str | float:
    """`balanced` or `20` (minutes)"""
    if text in LEVELS:
        return text
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise argparse.ArgumentTypeError(f"expected {', '.join(LEVELS)} or a number of minutes, got '{text}'")
    return minutes


def run(args) -> int:
    """Quantize, print what came of it, write JSON if asked."""
    from ..provenance import license_note_of

    result = _quantize(args)
    if args.json:
        console.write_json(args.json, result_json(result))
    bits = result.bits
    verb = "is already there" if result.already_there else f"took {console.duration(result.seconds)}"
    print(f"{result.path}: {console.size(result.file_bytes)}, {verb}")
    print(f"bits a weight: coded layers {bits['coded']:.3f}, whole UNet {bits['unet']:.3f}, file {bits['file']:.3f}")
    if result.blocks():
        print(result.blocks_in_words())
    if result.fallbacks:
        print(result.fallbacks)
    note = license_note_of(result.path)
    if note:
        print(f"note: {note}")
    return 0


def _quantize(args):
    from ..errors import PlanError
    from ..plan import load_plan

    wanted = {"bits": args.bits, "method": args.method, "plan": load_plan(args.plan) if args.plan else None,
              "text_encoder_bits": args.text_encoder_bits, "skip": args.skip, "device": args.device, "seed": args.seed,
              "parts": tuple(p.strip() for p in args.parts.split(",") if p.strip()), "overwrite": args.overwrite,
              "window": args.window, "calibration": args.calibration, "rounding": args.rounding,
              "conv_group": args.conv_group, "merging": args.merging, "max_codebook_bits": args.codebook_bits,
              "activations": args.activations, "configs": args.configs, "progress": console.progress()}
    if args.effort is not None:
        from ..effort import quantize_with_effort

        return quantize_with_effort(args.source, args.output, effort=args.effort, prompts=args.prompts,
                                    preset=args.preset, sequential=args.sequential,
                                    tell=lambda note: print(note, flush=True), **wanted)
    from ..quantize import quantize

    if args.prompts and not args.sequential:
        raise PlanError("--prompts is drawn for --effort, where it calibrates, and for --sequential: give one of them, "
                        "or use `vqpack calibrate`")
    prompts = args.prompts or "built-in"
    return quantize(args.source, args.output, sequential=prompts if args.sequential else None, **wanted)


def result_json(result) -> dict:
    """The JSON of `quantize --json`: inspect's fields, seconds, peak memory and each layer's error."""
    return {"format_version": 1, "architecture": result.architecture, "bits": result.bits,
            "file_bytes": result.file_bytes, "source": result.source,
            "layers": [layer.to_json() for layer in result.layers],
            "file": result.path.name, "already_there": result.already_there,
            "blocks": result.blocks(), "fallbacks": dataclasses.asdict(result.fallbacks),
            "seconds": round(result.seconds, 3), "peak_rss_bytes": console.peak_rss_bytes()}
