"""`vqpack demo` and `vqpack doctor`."""
from __future__ import annotations

import json


def run_demo(args) -> int:
    """Quantize the embedded model at four rates, sample, draw."""
    from ..demo import run_demo as demo

    return demo(args.out) or 0


def run_doctor(args) -> int:
    """Print what this machine can do and why each refused path was refused."""
    from ..doctor import describe, diagnose

    facts = diagnose()
    print(json.dumps(facts, indent=1) if args.json else describe(facts))
    return 0
