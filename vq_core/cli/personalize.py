"""`vqpack personalize` and `vqpack merge`."""
from __future__ import annotations

from pathlib import Path

from . import console


def add(commands) -> None:
    """The arguments of `personalize`."""
    from .compare import size

    p = commands.add_parser("personalize", help="teach a vqpack file a subject from 3 to 10 pictures; a small file of "
                                                "scales comes out, FILE stays as it is")
    p.add_argument("file", metavar="FILE", help="of `vqpack quantize`, with VAE and text encoders (or give --source)")
    p.add_argument("--images", required=True, action="append", metavar="DIR",
                   help="the subject's pictures; again, each with its --prompt, for another subject in one adapter")
    p.add_argument("--prompt", action="append", default=[], metavar="P",
                   help="what they show, with a rare word for the subject: 'a photo of sks dog'; a .txt file beside a "
                        "picture goes before it")
    p.add_argument("--prior", metavar="P", help="what the subject is one of, 'a photo of a dog': pictures of it are "
                                                "drawn first and learned along, so that it is not forgotten")
    p.add_argument("--prior-count", type=int, default=24, metavar="N", help="of them (default 24)")
    p.add_argument("--prior-weight", type=float, default=1.0, metavar="W", help="of their share (default 1)")
    p.add_argument("--source", metavar="ORIGINAL", help="checkpoint whose VAE and text encoders are used")
    p.add_argument("-o", "--output", metavar="OUT", help="file or folder (default: beside FILE, NAME-personal)")
    p.add_argument("--steps", type=int, metavar="N", help="of learning (default 400, without --minutes); the same "
                                                          "number gives the same bytes on the CPU")
    p.add_argument("--minutes", type=float, metavar="M", help="of learning, instead of --steps")
    p.add_argument("--experts", type=int, default=2, metavar="N",
                   help="sets of scales, which take turns as the noise falls (default 2; 1 can be merged into a file)")
    p.add_argument("--scales", choices=("both", "out"), default="both",
                   help="of a layer's outputs and inputs (default), or of its outputs alone")
    p.add_argument("--rate", type=float, metavar="X", help="times the learning rate")
    p.add_argument("--batch", type=int, default=4, metavar="N", help="pictures a step (default 4)")
    p.add_argument("--together", type=int, metavar="N", help="of them at once; fewer take less memory (default: all on "
                                                             "the CPU, else 1)")
    p.add_argument("--preview", action="append", metavar="P", help="prompt drawn ten times on the way, into a folder "
                                                                   "beside OUT (default: each --prompt)")
    p.add_argument("--no-previews", action="store_true", help="draw none")
    p.add_argument("--finish", action="store_true", help="write the best that a stopped run has found, and no more")
    p.add_argument("--sampler-steps", type=int, metavar="N", help="of previews and prior pictures (default 25)")
    p.add_argument("--cfg", type=float, metavar="C", help="their guidance (default 5)")
    p.add_argument("--preset", default="base", help="kind of model (default base); distilled ones are refused")
    p.add_argument("--size", type=size, metavar="HxW", help="about what pictures are brought to (default: the model's)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of noise and batches (default 0)")
    p.add_argument("--threads", type=int, metavar="N", help="on the CPU (default 1)")
    p.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    p.add_argument("--configs", metavar="FOLDER", help="diffusers folder whose configurations unusual files get")
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    p.add_argument("--json", metavar="FILE", help="write the result as JSON")
    p.set_defaults(run=run)


def add_merge(commands) -> None:
    """The arguments of `merge`."""
    p = commands.add_parser("merge", help="write a vqpack file with a scale adapter of one expert in it")
    p.add_argument("file", metavar="FILE", help="what the adapter was trained on")
    p.add_argument("adapter", metavar="ADAPTER", help="of `vqpack personalize --experts 1`")
    p.add_argument("-o", "--output", metavar="OUT", help="file or folder (default: beside FILE, FILE-ADAPTER)")
    p.add_argument("--strength", type=float, default=1.0, metavar="S", help="default 1")
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    p.set_defaults(run=run_merge)


def run(args) -> int:
    """Encode, learn, write; sentences as they come."""
    from ..adapters.personalize import personalize

    report = console.output_file(args.json) if args.json else None
    previews = [] if args.no_previews else args.preview
    result = personalize(args.file, _subjects(args), args.output, source=args.source, prior=_prior(args),
                         previews=previews, tuning=_tuning(args), preset=args.preset, size=args.size,
                         device=args.device, configs=args.configs, overwrite=args.overwrite, finish=args.finish,
                         progress=console.progress(), tell=tell, show=None if args.no_previews else _Previews(args),
                         steps=args.sampler_steps, guidance=args.cfg, seed=args.seed, threads=args.threads)
    print(outcome(result))
    if report:
        console.write_json(report, summary(result))
    return 0


def run_merge(args) -> int:
    """Write; nothing is learned."""
    from ..adapters.merge import merge

    path = merge(args.file, args.adapter, args.output, args.strength, args.overwrite, console.progress())
    print(f"{path}: {console.size(path.stat().st_size)}, the same codes with the adapter's scales")
    return 0


def outcome(result) -> str:
    """A result of `personalize` or `tune --adapter`, for people."""
    verb = "is already there" if result.already_there else f"took {console.duration(result.seconds)}"
    return (f"{result.path}: {console.size(result.path.stat().st_size)}, held-out error {result.gain:.2f} dB lower "
            f"after {result.steps} steps, {verb}")


def summary(result) -> dict:
    """The same for --json."""
    return {"path": str(result.path), "bytes": result.path.stat().st_size, "before": result.before,
            "after": result.after, "steps": result.steps, "seconds": result.seconds, "history": result.history,
            "notes": result.notes}


def tell(note: str) -> None:
    """A sentence, at once."""
    print(note, flush=True)


def _subjects(args) -> list[tuple[str, str | None]]:
    from ..errors import PlanError

    if args.prompt and len(args.prompt) != len(args.images):
        raise PlanError(f"each --images needs its --prompt, in the same order: got {len(args.images)} and "
                        f"{len(args.prompt)}")
    return list(zip(args.images, args.prompt or [None] * len(args.images), strict=True))


def _prior(args):
    from ..adapters.subject import Prior

    return None if args.prior is None else Prior(args.prior, args.prior_count, args.prior_weight)


def _tuning(args):
    from ..adapters.personalize import RATE, STEPS, defaults
    from ..adapters.settings import Scaling

    steps = STEPS if args.steps is None and args.minutes is None else args.steps
    return defaults(steps=steps, minutes=args.minutes, batch=args.batch, together=args.together or _at_once(args),
                    rate=RATE if args.rate is None else args.rate, seed=args.seed,
                    scaling=Scaling(args.experts, args.scales))


def _at_once(args) -> int:
    import torch

    on_cpu = args.device == "cpu" or args.device is None and not torch.cuda.is_available()
    return args.batch if on_cpu else 1


class _Previews:
    """Writes what is drawn as pictures: OUT.previews/step-PROMPT.png, and before-PROMPT.png."""

    def __init__(self, args):
        from ..adapters.job import output_of

        path = output_of(Path(args.file), args.output)
        self.folder = path.with_name(path.name.removesuffix(".safetensors") + ".previews")
        self.source, self.configs, self.vae = args.source or args.file, args.configs, None

    def __call__(self, look) -> None:
        step = look.history[-1][0] if look.history else 0
        for name, latents in (("before", look.before), (f"{step:05d}", look.now)):
            if latents is not None and not (name == "before" and self._path(name, 0).is_file()):
                self._write(name, latents)

    def _path(self, name: str, index: int) -> Path:
        return self.folder / f"{name}-{index + 1}.png"

    def _write(self, name: str, latents) -> None:
        from PIL import Image

        self.folder.mkdir(exist_ok=True)
        for index, pixels in enumerate(self._decoded(latents)):
            Image.fromarray(pixels).save(self._path(name, index))

    def _decoded(self, latents):
        """-> uint8 [n, height, width, 3]"""
        import torch

        from ..pipeline import load_parts
        from ..source_reader import open_reader

        if self.vae is None:
            self.vae = load_parts(open_reader(self.source), ["vae"], torch.float32, configs=self.configs)["vae"]
        config = self.vae.config
        with torch.no_grad():
            images = [self.vae.decode(one[None] / config.scaling_factor + (config.get("shift_factor") or 0.0)).sample
                      for one in latents]
        pixels = (torch.cat(images) / 2 + 0.5).nan_to_num(0).clamp(0, 1).mul(255).round().byte()
        return pixels.permute(0, 2, 3, 1).numpy()
