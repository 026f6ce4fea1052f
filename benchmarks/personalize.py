"""A subject no model has seen, learned by scale adapters on coded models, against DreamBooth in full precision.

    python benchmarks/personalize.py [--steps 120] [--prompts 8] [--seeds 2] [--only REGEX] [--folder out/personalize]
                                     [--out benchmarks/results]
    python benchmarks/personalize.py --memory

The testbed learns shapes with textures of their own (scenes/subjects.py) from 8 captioned pictures: one subject, or two
at once. Bases: uniform 4 bits and trellis 3 bits, data-free. Rows: full precision and coded models before; DreamBooth
(all of the UNet's weights, float32); output scales alone; both sides with one, two and four experts. All learn with the
same loss, loop and batches, and keep what is best on a held-out picture. Judged is what is drawn from --prompts
captions that were not learned, --seeds pictures each, 12 steps, guidance 3:

subject      cosine of a classifier's features with real pictures of the same caption, centered on ordinary scenes
recognized   share of the pictures that a linear probe takes for the subject
prompt       share of ground and background that are right, by the testbed's classifier

95 % bootstrap over pictures; "over": what a row has more than DreamBooth for the same pictures. "real" is the subject
itself, drawn and through the VAE: what is reachable. Writes personalize.csv, row by row; a stopped run goes on. One
thread. --memory: bytes of SDXL's adapters and peak memory of one training step (personalize_memory.py).
"""
from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from personalize_students import dreambooth
from quality_measure import load_teacher
from quality_students import TESTBED
from scenes import subjects
from scenes.classifier import predicted
from scenes.data import scenes
from testbed_bench import BATCH, SIDE, add_rows, digest, publish

load_vqpack()
from vqpack.vq_core import metrics, trajectory  # noqa: E402
from vqpack.vq_core.adapters.attach import apply_adapters  # noqa: E402
from vqpack.vq_core.adapters.personalize import defaults, personalize  # noqa: E402
from vqpack.vq_core.adapters.settings import Scaling  # noqa: E402
from vqpack.vq_core.pipeline import load_pipeline, load_unet  # noqa: E402
from vqpack.vq_core.plan import plan_from_json  # noqa: E402
from vqpack.vq_core.quantize import quantize  # noqa: E402

CODE = ("vq_core/adapters", "benchmarks/personalize_students.py", "benchmarks/scenes/subjects.py")
PICTURES, STEPS, GUIDANCE, FIRST_NOISE = 8, 12, 3.0, 500
DRAWN = {"size": (SIDE, SIDE), "device": "cpu", "guidance": GUIDANCE}
BASES = {"uniform 4": {"kind": "uniform", "bits": 4}, "trellis 3": {"kind": "trellis", "bits": 3}}
METRICS = ("subject", "recognized", "prompt")
# Of personalize()'s learning rates. Other pictures of the first subject, 150 steps, two experts, 8 pictures drawn:
# subject .576 at 3, .563 at 10.
RATE = 3.0


@dataclass(frozen=True)
class Row:
    """One model. base: "fp" or of BASES; method: "real", "before", "dreambooth", "out" (outputs alone) or "scales"."""

    base: str
    method: str
    experts: int = 0
    names: tuple[str, ...] = subjects.NAMES[:1]

    @property
    def name(self) -> str:
        """For people and --only."""
        experts = f" {self.experts}" if self.experts else ""
        return f"{self.base} {self.method}{experts} {'+'.join(self.names)}"


def rows() -> list[Row]:
    """In the order they are made: what others are compared with first."""
    found, both = [Row("fp", "dreambooth"), Row("fp", "real"), Row("fp", "before")], subjects.NAMES
    found += [Row(base, "before") for base in BASES]
    ways = ("scales", 2), ("out", 1), ("scales", 1), ("scales", 4)
    found += [Row(base, method, experts) for method, experts in ways for base in BASES]
    return [*found, Row("fp", "dreambooth", names=both), *(Row(base, "scales", 2, both) for base in BASES)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="of learning; twice as many for two subjects")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--only", default="", metavar="REGEX", help="rows to make; what they are compared with too")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "personalize")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.memory:
        from personalize_memory import tell

        return tell(args.out)
    args.folder.mkdir(parents=True, exist_ok=True)
    judge, learned = subjects.Judge(), {}
    chosen = [row for row in rows() if re.search(args.only, row.name)]
    for row in rows():
        if row in chosen or (row.method == "dreambooth" and any(row.names == other.names for other in chosen)):
            found = made(row, args)
            values = judged(judge, row, found["images"], args)
            if row.method == "dreambooth":
                learned[row.names] = values
            add_rows(args.out / "personalize.csv", table(row, values, learned.get(row.names), found, args),
                     ("row", "metric", "subject_of", "steps"))
    return 0


def made(row: Row, args) -> dict:
    """Train and draw, or take what an earlier run kept: pictures [names, prompts * seeds, 3, side, side] and facts."""
    asked = json.dumps([asdict(row), args.steps, args.prompts, args.seeds, args.rate])
    kept = args.folder / f"{row.name.replace(' ', '-')}-{digest(CODE, asked)}.pt"
    if not kept.is_file():
        started = time.process_time()
        pipe, facts = learned_by(row, args, kept.stem)
        facts["core_seconds"] = round(time.process_time() - started)
        images = torch.stack([drawn(pipe, name, args) for name in row.names]) if pipe else real(row.names, args)
        publish(kept, partial(torch.save, {"images": images, "facts": facts}))
    return torch.load(kept, weights_only=True)


def learned_by(row: Row, args, stem: str) -> tuple:
    """-> (a pipeline that has learned, facts)"""
    steps = args.steps * len(row.names)
    folders = [(subjects.write(args.folder / f"pictures-{name}", name, PICTURES), None) for name in row.names]
    if row.base == "fp":
        pipe = None if row.method == "real" else load_teacher()
        return pipe, dreambooth(pipe, folders, steps, args.folder / stem) if row.method == "dreambooth" else {}
    file = base_file(row.base, args.folder)
    facts = {"bits": file_bits(file)}
    pipe = load_pipeline(file, torch.float32, configs=TESTBED, unet=load_unet(file, torch.float32, "cpu", "per_call",
                                                                              TESTBED))
    pipe.set_progress_bar_config(disable=True)
    if row.method != "before":
        tuning = defaults(steps=steps, rate=args.rate, scaling=Scaling(row.experts, "out" if row.method == "out" else
                                                                       "both"))
        result = personalize(file, folders, args.folder / stem, configs=TESTBED, tuning=tuning, steps=STEPS,
                             overwrite=True, previews=[], tell=print, **DRAWN)
        apply_adapters(pipe.unet, file, result.path, configs=TESTBED)
        facts |= {"bytes": result.path.stat().st_size, "before": result.before, "after": result.after,
                  "best_step": min(result.history, key=lambda one: one[1])[0]}
    return pipe, facts


def base_file(base: str, folder: Path) -> Path:
    """The testbed coded, encoders and VAE as they are, made once."""
    plan = plan_from_json({"vqpack_plan": 1, "unet": BASES[base]})
    path = folder / f"{base.replace(' ', '-')}.safetensors"
    return path if path.is_file() else quantize(TESTBED, path, plan=plan, device="cpu").path


def file_bits(path: Path) -> float:
    """Stored bits a weight of the whole UNet."""
    from vqpack.vq_core.container import Reader
    from vqpack.vq_core.inspection import file_bits

    with Reader(path) as reader:
        return file_bits(reader)["unet"]


def prompts(name: str, args) -> list[tuple[str, tuple[str, str, str]]]:
    """(caption, its attributes), each as often as there are seeds."""
    return [(subjects.caption(name, *each), each) for each in subjects.asked(name, args.prompts)
            for _ in range(args.seeds)]


def drawn(pipe, name: str, args) -> torch.Tensor:
    """[prompts * seeds, 3, side, side]"""
    texts = [text for text, _ in prompts(name, args)]
    seeds = range(FIRST_NOISE, FIRST_NOISE + len(texts))
    return trajectory.sample(pipe, texts, seeds, STEPS, GUIDANCE, (SIDE, SIDE), batch=BATCH).images


@torch.no_grad()
def real(names: tuple[str, ...], args) -> torch.Tensor:
    """The subject itself in other places than those that judge, through the VAE."""
    vae, found = load_teacher().vae, []
    for name in names:
        own = subjects.as_tensor([subjects.picture(name, 3000 + i, each)[0]
                                  for i, (_, each) in enumerate(prompts(name, args))])
        found.append(vae.decode(vae.encode(own * 2 - 1).latent_dist.mode()).sample / 2 + 0.5)
    return torch.stack(found).clamp(0, 1)


def judged(judge: subjects.Judge, row: Row, images: torch.Tensor, args) -> dict[str, torch.Tensor]:
    """Metric -> a value a picture, of all subjects."""
    found = {metric: [] for metric in METRICS}
    for name, own in zip(row.names, images, strict=True):
        asked = [each for _, each in prompts(name, args)]
        wanted = {each: subjects.real(name, each) for each in dict.fromkeys(asked)}
        found["subject"].append(judge.cosine(own, [wanted[each] for each in asked]))
        found["recognized"].append(judge.recognized(own, name))
        found["prompt"].append(_right(own, asked))
    return {metric: torch.cat(values) for metric, values in found.items()}


def _right(images: torch.Tensor, asked: list[tuple[str, str, str]]) -> torch.Tensor:
    seen = predicted(images)
    wanted = torch.tensor([[scenes.GROUNDS.index(ground), list(scenes.COLORS).index(color)]
                           for _, ground, color in asked])
    return (seen[:, 1:3] == wanted).double().mean(1)


def table(row: Row, values: dict, reference: dict | None, found: dict, args) -> list[dict]:
    """A row's lines."""
    lines, here, facts = [], machine(), found["facts"]
    for metric, each in values.items():
        own = metrics.bootstrap(each, "mean")
        line = {"row": row.name, "base": row.base, "method": row.method, "experts": row.experts or "",
                "subject_of": "+".join(row.names), "steps": args.steps, "rate": args.rate, "metric": metric,
                "low": f"{own.low:.3f}", "value": f"{own.value:.3f}", "high": f"{own.high:.3f}", "over_low": "",
                "over": "", "over_high": "", "pictures": own.count,
                "bits": f"{facts['bits']:.3f}" if "bits" in facts else "", "bytes": facts.get("bytes", ""),
                "best_step": facts.get("best_step", ""), "core_seconds": facts.get("core_seconds", ""),
                "machine": here["cpu"], "commit": here["commit"]}
        if reference is not None and row.method != "dreambooth":
            gap = metrics.paired_bootstrap(each, reference[metric], "mean")
            line |= {"over_low": f"{gap.low:.3f}", "over": f"{gap.value:.3f}", "over_high": f"{gap.high:.3f}"}
        lines.append(line)
        print("{row}: {metric} {value} ({low} to {high}), over DreamBooth {over} ({over_low} to {over_high})".format(
            **line), flush=True)
    return lines


if __name__ == "__main__":
    sys.exit(main())
