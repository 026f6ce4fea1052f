"""`vqpack calibrate`."""
from __future__ import annotations

import argparse
import re

from . import console

PRESETS = ("base", "v", "lcm", "lightning", "hyper", "turbo")          # as calibration.settings, which imports torch
SAMPLERS = ("model", "euler", "euler_ancestral", "ddim", "dpmpp_2m", "lcm")            # as trajectory
SCHEDULERS = ("model", "normal", "sgm_uniform", "ddim_uniform", "karras", "exponential", "beta")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add(commands) -> None:
    """The command's arguments."""
    from .compare import size

    p = commands.add_parser("calibrate", help="draw prompts and note what each layer sees, for better coding")
    p.add_argument("source", metavar="IN", help="checkpoint with its text encoders: file, folder or vqpack file")
    p.add_argument("-o", "--output", required=True, metavar="CAL", help="the file (NAME.vqcal.safetensors)")
    p.add_argument("--prompts", default="built-in", metavar="FILE",
                   help="text with one prompt a line, or .csv with a column 'prompt' (default built-in)")
    p.add_argument("--count", type=int, metavar="N", help="draw N of the prompts, spread evenly over the list")
    p.add_argument("--preset", default="base", choices=PRESETS,
                   help="kind of model; a checkpoint does not say (default base)")
    p.add_argument("--steps", type=int, metavar="N", help="of the sampler (default: the preset's)")
    p.add_argument("--cfg", type=float, metavar="C", help="guidance; 1 = one guidance half (default: the preset's)")
    p.add_argument("--sampler", choices=SAMPLERS, help="default: the preset's")
    p.add_argument("--scheduler", choices=SCHEDULERS, help="default: the preset's")
    p.add_argument("--size", type=size, metavar="HxW", help="default: the model's own")
    p.add_argument("--timesteps", type=int, metavar="N", help="steps looked at in each picture (default 8)")
    p.add_argument("--window", type=window, metavar="LO:HI",
                   help="only timesteps from LO to HI, 1000 = pure noise (default 0:1000)")
    p.add_argument("--memory", type=memory, default=8 << 30, metavar="8G",
                   help="for what is gathered; more is gathered in several sweeps (default 8G)")
    p.add_argument("--seed", type=int, metavar="S", help="of the first picture, the others follow (default 0)")
    p.add_argument("--threads", type=int, metavar="N",
                   help="on the CPU (default 1); the same number gives the same bytes on any machine")
    p.add_argument("--sensitivity", action=argparse.BooleanOptionalAction, default=True,
                   help="also measure what each layer's errors do to the predicted noise")
    p.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    p.add_argument("--configs", metavar="FOLDER", help="diffusers folder whose configurations unusual files get")
    p.add_argument("--overwrite", action="store_true", help="replace CAL if it exists")
    p.set_defaults(run=run)


def run(args) -> int:
    """Draw, gather, write; sentences as they come."""
    from ..calibration.run import calibrate

    result = calibrate(args.source, args.output, prompts=args.prompts, preset=args.preset, count=args.count,
                       size=args.size, memory=args.memory, sensitivity=args.sensitivity, device=args.device,
                       configs=args.configs, overwrite=args.overwrite, progress=console.progress(), tell=_tell,
                       steps=args.steps, guidance=args.cfg, sampler=args.sampler, scheduler=args.scheduler,
                       timesteps=args.timesteps, window=args.window, seed=args.seed, threads=args.threads)
    verb = "is already there" if result.already_there else f"took {console.duration(result.seconds)}"
    print(f"{result.path}: {console.size(result.path.stat().st_size)}, {verb}")
    return 0


def window(text: str) -> tuple[float, float]:
    """`LO:HI` -> (lo, hi)"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected LO:HI, e.g. 0:500, got '{text}'")
    return float(match[1]), float(match[2])


def memory(text: str) -> int:
    """`8G`, `512M` ... -> bytes"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 8G or 512M, got '{text}'")
    return int(float(match[1]) * _UNITS[match[2]])


def _tell(note: str) -> None:
    print(note, flush=True)
