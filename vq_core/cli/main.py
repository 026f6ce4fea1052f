"""`vqpack COMMAND ...`: arguments, exit codes (0 done, 1 failed with one line, 2 usage) and nothing else."""
from __future__ import annotations

import argparse
import sys

from ..errors import Interrupted, VQError
from ..version import __version__


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="vqpack", description="Codebook-compressed SDXL checkpoints.")
    parser.add_argument("--version", action="version", version=f"vqpack {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_quantize, _add_calibrate, _add_plan, _add_tune, _add_personalize, _add_merge, _add_inspect,
                _add_report, _add_decompress, _add_verify, _add_compare, _add_attach, _add_card, _add_demo, _add_doctor,
                _add_bench):
        add(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    _use_utf8()
    try:
        return args.run(args) or 0
    except (KeyboardInterrupt, Interrupted):
        print("\nstopped; nothing was left half-written, the same command goes on where it stopped", file=sys.stderr)
        return 1
    except VQError as error:
        print(f"vqpack: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("vqpack: out of memory; close other programs or use fewer parts (--parts unet)", file=sys.stderr)
        return 1
    except OSError as error:
        name = f" '{error.filename}'" if error.filename else ""
        print(f"vqpack: {error.strerror or error}{name}", file=sys.stderr)
        return 1


def _use_utf8() -> None:
    for stream in (sys.stdout, sys.stderr):     # a cp1252 console must not fail on a file name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _add_quantize(commands) -> None:
    from .calibrate import PRESETS
    from .quantize import effort, run

    p = commands.add_parser("quantize", help="turn a checkpoint into one small file")
    p.add_argument("source", metavar="IN", help=".safetensors checkpoint, UNet file or diffusers folder")
    p.add_argument("-o", "--output", metavar="OUT", help="file or folder (default: beside IN, named by its bits)")
    p.add_argument("--bits", type=float, default=3.0, metavar="B",
                   help="code rate of the UNet's coded layers: trellis 1, 1.5 ... 4, 5, 6; additive, product 1 to 4; "
                        "palette, uniform 1 to 8 (default 3)")
    p.add_argument("--method", default="trellis", choices=("trellis", "additive", "product", "palette", "uniform"))
    p.add_argument("--plan", metavar="FILE", help="JSON plan; replaces --bits, --method, --text-encoder-bits, --skip")
    p.add_argument("--calibration", metavar="CAL", help="file of `vqpack calibrate`: codes for the inputs layers get")
    p.add_argument("--sequential", action="store_true",
                   help="code block by block, each for what it gets from those coded before; with --calibration")
    p.add_argument("--effort", type=effort, metavar="E",
                   help="fast: data-free; balanced: calibrate with --prompts, choose rates by layer, code for the "
                        "inputs; best: four times the pictures, additive codes' full search, and tuned at the end "
                        "(--method additive --effort best: VQDM's recipe); or minutes: the most that should fit")
    p.add_argument("--prompts", metavar="FILE",
                   help="pictures to draw for --effort and --sequential: as in `calibrate`; 'built-in' for its list")
    p.add_argument("--preset", default="base", choices=PRESETS, help="kind of model, as in `calibrate`, for --effort")
    p.add_argument("--configs", metavar="FOLDER", help="diffusers folder whose configurations unusual files get")
    p.add_argument("--rounding", choices=("gptq", "adaround", "block", "nearest"),
                   help="of uniform codes, with a calibration (default gptq); block: learned together for each "
                        "residual and transformer block, by its output (Q-Diffusion), with --sequential")
    p.add_argument("--conv-group", choices=("channels", "kernel"),
                   help="of additive codes: groups of 8 channels (default) or of one channel's kernel")
    p.add_argument("--merging", choices=("none", "usage", "ward"),
                   help="of product codes: how positions' books become those that are stored (default none: trained "
                        "together)")
    p.add_argument("--codebook-bits", type=float, metavar="B",
                   help="of product codes: most bits a weight the books may take (default 0.25; at 1 bit 0.125)")
    p.add_argument("--activations", metavar="NAME",
                   help="what the file's plan says it is to be run with: none, int8, int6, qdiffusion8, talsq8, dgq8, "
                        "... (docs/activations.md); drawing does not follow it yet")
    p.add_argument("--text-encoder-bits", type=int, default=6, choices=(16, 8, 6, 4), metavar="B",
                   help="16 (kept), 8, 6 or 4 (default 6)")
    p.add_argument("--parts", default="unet,te,vae", help="what the file keeps (default unet,te,vae)")
    p.add_argument("--skip", metavar="REGEX", help="layers left as they are")
    p.add_argument("--window", type=int, choices=(8, 12), help="trellis window; 8 is faster and a little worse")
    p.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    p.add_argument("--json", metavar="FILE", help="write the result as JSON")
    p.set_defaults(run=run)


def _add_calibrate(commands) -> None:
    from .calibrate import add

    add(commands)


def _add_plan(commands) -> None:
    from .plan import add

    add(commands)


def _add_tune(commands) -> None:
    from .tune import add

    add(commands)


def _add_personalize(commands) -> None:
    from .personalize import add

    add(commands)


def _add_merge(commands) -> None:
    from .personalize import add_merge

    add_merge(commands)


def _add_inspect(commands) -> None:
    from .files import run_inspect

    p = commands.add_parser("inspect", help="what a file holds and what it cost")
    p.add_argument("file")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.set_defaults(run=run_inspect)


def _add_report(commands) -> None:
    from .files import run_report

    p = commands.add_parser("report", help="what a file lost, as one HTML page")
    p.add_argument("file")
    p.add_argument("-o", "--output", metavar="PAGE", help="default: FILE with the ending .html")
    p.add_argument("--comparison", metavar="DIR", help="folder of a `vqpack compare` of FILE, whose pictures are shown")
    p.set_defaults(run=run_report)


def _add_decompress(commands) -> None:
    from .files import run_decompress

    p = commands.add_parser("decompress", help="write an ordinary checkpoint that every UI reads")
    p.add_argument("source", metavar="IN")
    p.add_argument("-o", "--output", required=True, metavar="OUT")
    p.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), help="default: each tensor's own")
    p.add_argument("--overwrite", action="store_true")
    p.set_defaults(run=run_decompress)


def _add_verify(commands) -> None:
    from .files import run_verify

    p = commands.add_parser("verify", help="check a file's integrity, and its error against the original")
    p.add_argument("file")
    p.add_argument("--against", metavar="ORIGINAL")
    p.add_argument("--json", metavar="FILE", help="write the result as JSON")
    p.set_defaults(run=run_verify)


def _add_compare(commands) -> None:
    from .compare import run, size

    p = commands.add_parser("compare", help="draw the same prompts with several checkpoints, measure, write a report")
    p.add_argument("reference", metavar="A", help="checkpoint all others are measured against")
    p.add_argument("others", metavar="B", nargs="+", help="vqpack files, .safetensors checkpoints, diffusers folders")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the report")
    p.add_argument("--prompts", default="built-in", metavar="FILE",
                   help="text with one prompt a line, or .csv with a column 'prompt' (default built-in)")
    p.add_argument("--count", type=int, metavar="N", help="draw N of the prompts, spread evenly over the list")
    p.add_argument("--steps", type=int, default=20, metavar="N", help="default 20")
    p.add_argument("--seeds", type=int, default=1, metavar="K", help="pictures a prompt (default 1)")
    p.add_argument("--size", type=size, metavar="HxW", help="default: the model's own")
    p.add_argument("--sampler", default="model",
                   choices=("model", "euler", "euler_ancestral", "ddim", "dpmpp_2m", "lcm"),
                   help="default: the model's own")
    p.add_argument("--guidance", type=float, metavar="G", help="default 5; distilled models want 1")
    p.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    p.add_argument("--configs", metavar="FOLDER",
                   help="diffusers folder whose configurations unusual files get (default: the first folder compared)")
    p.add_argument("--overwrite", action="store_true", help="replace an earlier report")
    p.add_argument("--json", metavar="FILE", help="write the result as JSON there too")
    p.set_defaults(run=run)


def _add_attach(commands) -> None:
    from .compare import run_attach

    p = commands.add_parser("attach", help="write a copy of a vqpack file that holds what compare measured of it")
    p.add_argument("file")
    p.add_argument("comparison", metavar="RESULT", help="compare.json, or the folder compare wrote it into")
    p.add_argument("-o", "--output", metavar="OUT", help="file or folder (default: beside FILE, with a number)")
    p.add_argument("--overwrite", action="store_true", help="replace OUT; without OUT: FILE itself")
    p.set_defaults(run=run_attach)


def _add_card(commands) -> None:
    from .card import add

    add(commands)


def _add_demo(commands) -> None:
    from .tools import run_demo

    p = commands.add_parser("demo", help="quantize an embedded model at four rates and draw the pictures")
    p.add_argument("--out", default="demo", metavar="DIR")
    p.set_defaults(run=run_demo)


def _add_doctor(commands) -> None:
    from .tools import run_doctor

    p = commands.add_parser("doctor", help="what this machine can do, and why not more; the memory a file takes")
    p.add_argument("file", nargs="?", metavar="FILE", help="a vqpack file: GPU memory while sampling from it")
    p.add_argument("--size", type=int, default=1024, metavar="PIXELS", help="side of the picture (default 1024)")
    p.add_argument("--batch", type=int, default=2, help="pictures at once, times 2 with guidance (default 2)")
    p.add_argument("--keep-decoded", type=int, default=0, metavar="MB", help="as in the loader node (default 0)")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.set_defaults(run=run_doctor)


def _add_bench(commands) -> None:
    from .bench import add

    add(commands)
