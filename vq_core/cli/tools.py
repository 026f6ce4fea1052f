"""`vqpack demo` and `vqpack doctor`."""
from __future__ import annotations

import json


def run_demo(args) -> int:
    """Quantize the embedded model at four rates, sample, draw."""
    from ..demo import run_demo as demo

    return demo(args.out) or 0


def run_doctor(args) -> int:
    """Print what this machine can do, why each refused path was refused and, for a file, the memory it takes."""
    from dataclasses import asdict

    from ..doctor import describe, diagnose
    from ..sampling_memory import describe as describe_memory
    from ..sampling_memory import sampling_memory

    memory = None
    if args.file is not None:
        memory = sampling_memory(args.file, args.size, args.batch, args.keep_decoded << 20)
    facts = diagnose()
    if args.json:
        more = {} if memory is None else {"memory": {**asdict(memory), "peak": memory.peak}}
        print(json.dumps({**facts, **more}, indent=1))
        return 0
    print(describe(facts))
    if memory is not None:
        print(describe_memory(memory, args.size, args.batch))
    return 0
