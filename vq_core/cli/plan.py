"""`vqpack plan`."""
from __future__ import annotations

import argparse
import re

from . import console

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def add(commands) -> None:
    """The command's arguments."""
    p = commands.add_parser("plan", help="choose each layer's bits for a file of a given size")
    p.add_argument("source", metavar="IN", help=".safetensors checkpoint, UNet file or diffusers folder")
    p.add_argument("-o", "--output", required=True, metavar="PLAN", help="JSON for `quantize --plan`")
    target = p.add_mutually_exclusive_group(required=True)
    target.add_argument("--size", type=size, metavar="1.2G", help="of the file, at most (decimal units; GiB: 1.2Gi)")
    target.add_argument("--bits", type=float, metavar="B", help="stored bits a weight of the UNet's coded layers")
    p.add_argument("--calibration", metavar="CAL", help="file of `vqpack calibrate`: measured grams and sensitivities")
    p.add_argument("--sensitivity", metavar="FILE", help="sensitivities exported from a calibration of the same base")
    p.add_argument("--method", default="trellis", choices=("trellis", "palette", "uniform"))
    p.add_argument("--rates", type=rates, metavar="R,R",
                   help="rates to choose from (default: trellis 1,1.5 ... 4,5,6,8,dense; others 2 to 8)")
    p.add_argument("--text-encoder-bits", type=int, default=6, choices=(16, 8, 6, 4), metavar="B",
                   help="16 (kept), 8, 6 or 4 (default 6)")
    p.add_argument("--parts", default="unet,te,vae", help="what the file will keep (default unet,te,vae)")
    p.add_argument("--export-sensitivity", metavar="FILE", help="write the layers' sensitivities for fine-tunes")
    p.add_argument("--picture", metavar="FILE.svg", help="draw the plan")
    p.set_defaults(run=run)


def run(args) -> int:
    """Plan, write plan, sensitivities and drawing, print a table."""
    from ..compare.output import write_json
    from ..errors import PlanError
    from ..planning.draw import write_picture
    from ..planning.run import plan
    from ..planning.sensitivity import load_sensitivity
    from ..planning.tell import describe, marks, subtitle

    outputs = [console.output_file(path) for path in (args.output, args.export_sensitivity, args.picture) if path]
    sensitivity = load_sensitivity(args.sensitivity) if args.sensitivity else None
    if args.export_sensitivity and not (args.calibration or sensitivity):
        raise PlanError("--export-sensitivity needs --calibration: there is nothing measured to be exported")
    found = plan(args.source, size=args.size, bits=args.bits, rates=args.rates, method=args.method,
                 calibration=args.calibration, sensitivity=sensitivity, text_encoder_bits=args.text_encoder_bits,
                 parts=tuple(p.strip() for p in args.parts.split(",") if p.strip()), progress=console.progress())
    if args.export_sensitivity and found.sensitivity is None:
        raise PlanError("this calibration was made with --no-sensitivity: there is nothing to be exported")
    write_json(outputs[0], found.plan.to_json())
    if args.export_sensitivity:
        write_json(outputs[1], found.sensitivity.to_json())
    if args.picture:
        write_picture(outputs[-1], f"Plan of {found.source}", subtitle(found), list(marks(found)))
    print(describe(found))
    print(f"{', '.join(str(path) for path in outputs)}: took {console.duration(found.seconds)}")
    return 0


def size(text: str) -> int:
    """`1.2G`, `900M`, `1.1GiB` ... -> bytes"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]I?)?B?", text.strip().upper())
    if not match or (match[2] or "") not in _UNITS:
        raise argparse.ArgumentTypeError(f"expected a size such as 1.2G or 900M, got '{text}'")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def rates(text: str) -> tuple:
    """`2,2.5,dense` -> (2, 2.5, "dense")"""
    found = []
    for word in text.split(","):
        word = word.strip().lower()
        if word == "dense":
            found.append(word)
        elif re.fullmatch(r"\d+(\.\d+)?", word):
            found.append(int(word) if float(word).is_integer() and "." not in word else float(word))
        else:
            raise argparse.ArgumentTypeError(f"expected rates such as 2,2.5,3,dense, got '{word}'")
    return tuple(found)
