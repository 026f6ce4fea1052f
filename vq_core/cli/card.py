"""`vqpack card`."""
from __future__ import annotations

from . import console


def add(commands) -> None:
    """The command's options."""
    p = commands.add_parser("card", help="write a model page (README.md) about a vqpack file, to share it with")
    p.add_argument("file")
    p.add_argument("-o", "--output", metavar="OUT", help="page or folder (default: README.md beside FILE)")
    p.add_argument("--comparison", metavar="DIR", help="folder of a `vqpack compare` of FILE, whose pictures are shown")
    p.add_argument("--overwrite", action="store_true", help="replace an existing page")
    p.set_defaults(run=run)


def run(args) -> int:
    """Write the page; say what its reader must know."""
    from ..card import write_card
    from ..provenance import license_note_of

    path = write_card(args.file, args.output, args.comparison, args.overwrite, console.progress())
    print(f"{path}: look through it before you publish, above all at the license")
    note = license_note_of(args.file)
    if note:
        print(f"note: {note}")
    return 0
