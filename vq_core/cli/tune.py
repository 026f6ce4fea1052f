"""`vqpack tune`."""
from __future__ import annotations

from . import console
from .calibrate import PRESETS, SAMPLERS, SCHEDULERS

TRAINED = ("scales", "books", "biases", "norms", "dense")              # as tuning.masters.Trained, which imports torch


def add(commands) -> None:
    """The command's arguments."""
    from .compare import size

    p = commands.add_parser("tune", help="teach a vqpack file to predict what its original predicts")
    p.add_argument("file", metavar="FILE", help="what `vqpack quantize` wrote")
    p.add_argument("--teacher", required=True, metavar="ORIGINAL", help="the checkpoint FILE was made from")
    p.add_argument("--prompts", default="built-in", metavar="P",
                   help="text with one prompt a line, or .csv with a column 'prompt' (default built-in)")
    p.add_argument("--count", type=int, metavar="N", help="draw N of the prompts, spread evenly over the list")
    p.add_argument("--minutes", type=float, metavar="M", help="of learning; recording the teacher comes before "
                                                              "(default 30 without --steps)")
    p.add_argument("--steps", type=int, metavar="N", help="of learning; the same number gives the same bytes")
    p.add_argument("-o", "--output", metavar="OUT", help="file or folder (default: beside FILE, NAME-tuned)")
    p.add_argument("--finish", action="store_true", help="write the best that a stopped run has found, and no more")
    p.add_argument("--rate", type=float, default=1.0, metavar="X", help="times the learning rates (default 1)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="calls of the UNet a step (default 8)")
    p.add_argument("--together", type=int, metavar="N", help="of them at once; fewer take less memory (default: all on "
                                                             "the CPU, else 1)")
    p.add_argument("--train", metavar="A,B", default=",".join(TRAINED), help=f"of {', '.join(TRAINED)} (default all)")
    p.add_argument("--tables", default="shared", choices=("frozen", "shared", "layer"),
                   help="trellis tables: as they are, one trained for all layers that share it, or one a layer "
                        "(stored: 4 KB each)")
    p.add_argument("--flips", type=float, default=0.0, metavar="F",
                   help="share of the code groups that may change every 10 steps, e.g. 0.01 (default 0: none)")
    p.add_argument("--reassign", default="none", choices=("none", "frozen", "latent"),
                   help="product and additive codes follow their books: each group takes the entry nearest to the "
                        "original's weights (frozen) or to a trained copy of them (latent; takes more memory)")
    p.add_argument("--candidates", type=int, default=1, metavar="N",
                   help="with --reassign frozen: a group begins as a trained mixture of its N nearest entries, one of "
                        "which is chosen late in the run, e.g. 3 (default 1)")
    p.add_argument("--images", metavar="DIR",
                   help="learn from these pictures instead of the teacher (DDPM's loss); captions are the .txt files "
                        "beside them or their names")
    p.add_argument("--rank", type=int, default=0, metavar="R",
                   help="give every coded layer a trained low-rank branch (stored: 2 R (in + out) bytes; default none)")
    p.add_argument("--calibration", metavar="CAL", help="file of `vqpack calibrate`: a better start for --rank")
    p.add_argument("--columns", action="store_true", help="add trained column scales (stored: 2 bytes a channel)")
    p.add_argument("--loss", default="halves", choices=("halves", "guided", "both"),
                   help="squared error of both guidance halves, of what guidance makes of them, or of both")
    p.add_argument("--weighting", default="even", choices=("even", "relative"),
                   help="of noise levels: all calls alike, or by the error each level has at the start")
    p.add_argument("--trajectory", default="teacher", choices=("teacher", "student", "mixed"),
                   help="whose pictures' states are learned from (default teacher)")
    p.add_argument("--preset", default="base", choices=PRESETS,
                   help="kind of model; a checkpoint does not say (default base)")
    p.add_argument("--sampler-steps", type=int, metavar="N", help="default: the preset's")
    p.add_argument("--cfg", type=float, metavar="C", help="guidance; 1 = one guidance half (default: the preset's)")
    p.add_argument("--sampler", choices=SAMPLERS, help="default: the preset's")
    p.add_argument("--scheduler", choices=SCHEDULERS, help="default: the preset's")
    p.add_argument("--size", type=size, metavar="HxW", help="default: the model's own")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of pictures and batches (default 0)")
    p.add_argument("--threads", type=int, metavar="N", help="on the CPU (default 1)")
    p.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    p.add_argument("--configs", metavar="FOLDER", help="diffusers folder whose configurations unusual files get")
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    p.add_argument("--json", metavar="FILE", help="write the result as JSON")
    _add_adapter(p)
    p.set_defaults(run=run)


def _add_adapter(p) -> None:
    p.add_argument("--adapter", action="store_true",
                   help="leave FILE as it is and write a small file of scales that repairs it (docs/adapters.md)")
    p.add_argument("--experts", type=int, default=2, metavar="N",
                   help="with --adapter: sets of scales, which take turns as the noise falls (default 2)")


def run(args) -> int:
    """Record, learn, write; sentences as they come."""
    from ..tuning.run import tune

    report = console.output_file(args.json) if args.json else None
    result = tune(args.file, args.teacher, args.output, prompts=args.prompts, count=args.count, tuning=_tuning(args),
                  preset=args.preset, size=args.size, device=args.device, configs=args.configs,
                  calibration=args.calibration, images=args.images, overwrite=args.overwrite, finish=args.finish,
                  progress=console.progress(), tell=_tell,
                  steps=args.sampler_steps, guidance=args.cfg, sampler=args.sampler, scheduler=args.scheduler,
                  seed=args.seed, threads=args.threads)
    if args.adapter:
        return _told(result, report)
    verb = "is already there" if result.already_there else f"took {console.duration(result.seconds)}"
    print(f"{result.path}: {console.size(result.path.stat().st_size)}, {result.bits['unet']:.2f} bits a UNet weight, "
          f"held-out error {result.gain:.2f} dB lower after {result.steps} steps{_moved(result.changed)}, {verb}")
    if report:
        console.write_json(report, {"path": str(result.path), "bits": result.bits, "before": result.before,
                                    "after": result.after, "steps": result.steps, "seconds": result.seconds,
                                    "changed": result.changed, "history": result.history, "notes": result.notes})
    return 0


def _told(result, report) -> int:
    from .personalize import outcome, summary

    print(outcome(result))
    if report:
        console.write_json(report, summary(result))
    return 0


def _tuning(args):
    from ..adapters.settings import Scaling
    from ..errors import PlanError
    from ..tuning.masters import Trained
    from ..tuning.run import MINUTES
    from ..tuning.settings import Tuning

    names = [name.strip() for name in args.train.split(",") if name.strip()]
    unknown = next((name for name in names if name not in TRAINED), None)
    if unknown is not None:
        raise PlanError(f"--train must name some of {', '.join(TRAINED)}, got '{unknown}'")
    trained = Trained(tables=args.tables, columns=args.columns, rank=args.rank, codes=args.flips > 0,
                      reassign=args.reassign, candidates=args.candidates,
                      **{name: name in names for name in TRAINED})
    on_cpu = args.device is None and not _has_gpu() or args.device == "cpu"
    minutes = MINUTES if args.minutes is None and args.steps is None else args.minutes
    return Tuning(steps=args.steps, minutes=minutes, batch=args.batch, together=args.together or (args.batch if on_cpu
                  else 1), rate=args.rate, loss=args.loss, weighting=args.weighting, trajectory=args.trajectory,
                  seed=args.seed, flips=args.flips, trained=trained,
                  scaling=Scaling(args.experts) if args.adapter else None)


def _moved(share: float) -> str:
    return f", {100 * share:.2g} % of the code groups changed" if share else ""


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _tell(note: str) -> None:
    print(note, flush=True)
