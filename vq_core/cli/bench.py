"""`vqpack bench`: SDXL's layers on this machine, as a table and as JSON to send."""
from __future__ import annotations

from .console import output_file, progress, write_json


def add(commands) -> None:
    """Its options."""
    p = commands.add_parser("bench", help="how fast this machine decodes and multiplies SDXL's layers")
    p.add_argument("--quick", action="store_true", help="under a minute; on a CPU with shapes of a quarter")
    p.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    p.add_argument("--json", metavar="FILE", help="write the numbers as JSON: hardware, versions, no names, no paths")
    p.set_defaults(run=run)


def run(args) -> int:
    """Measure, print, write."""
    from ..bench.run import make_settings
    from ..bench.run import run as bench
    from ..bench.tell import tell

    target = None if args.json is None else output_file(args.json)
    found = bench(make_settings(args.device, args.quick), progress())
    print(tell(found))
    if target is not None:
        write_json(str(target), found)
    return 0
