"""`vqpack quantize`."""
from __future__ import annotations

import dataclasses

from . import console


def run(args) -> int:
    """Quantize, print what came of it, write JSON if asked."""
    from ..plan import load_plan
    from ..quantize import quantize

    result = quantize(args.source, args.output, bits=args.bits, method=args.method,
                      plan=load_plan(args.plan) if args.plan else None, text_encoder_bits=args.text_encoder_bits,
                      parts=tuple(p.strip() for p in args.parts.split(",") if p.strip()), skip=args.skip,
                      device=args.device, seed=args.seed, overwrite=args.overwrite, window=args.window,
                      calibration=args.calibration, rounding=args.rounding, conv_group=args.conv_group,
                      merging=args.merging, max_codebook_bits=args.codebook_bits, progress=console.progress())
    if args.json:
        console.write_json(args.json, result_json(result))
    bits = result.bits
    verb = "is already there" if result.already_there else f"took {console.duration(result.seconds)}"
    print(f"{result.path}: {console.size(result.file_bytes)}, {verb}")
    print(f"bits a weight: coded layers {bits['coded']:.3f}, whole UNet {bits['unet']:.3f}, file {bits['file']:.3f}")
    if result.fallbacks:
        print(result.fallbacks)
    return 0


def result_json(result) -> dict:
    """The JSON of `quantize --json`: inspect's fields, seconds, peak memory and each layer's error."""
    return {"format_version": 1, "architecture": result.architecture, "bits": result.bits,
            "file_bytes": result.file_bytes, "source": result.source,
            "layers": [layer.to_json() for layer in result.layers],
            "file": result.path.name, "already_there": result.already_there,
            "fallbacks": dataclasses.asdict(result.fallbacks),
            "seconds": round(result.seconds, 3), "peak_rss_bytes": console.peak_rss_bytes()}
