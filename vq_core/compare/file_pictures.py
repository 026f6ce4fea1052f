"""Pictures on the page of one VQ file: what Compare (VQ) drew on this machine, or those of a `vqpack compare`."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..container import Reader
from ..errors import FormatError
from ..inspection import content_id
from .gallery import pictures, runs, unet_id
from .gallery_record import METRICS as KEPT
from .gallery_record import Run, Side
from .markup import bdi, number, shortened, tag, text
from .measure import METRICS, Metric
from .output import numeric
from .pictures import HINT, VIEW, figure, figures_of
from .report import shown_rows
from .short import checkpoint_of, read_comparison

MEANING = ("Distances say how far B's pictures are from A's, not which are better. A few pictures say little: `vqpack "
           "compare` measures many prompts.")
_NO_NAME = "a model whose file is not known"


@dataclass(frozen=True)
class Pair:
    """PNG of the reference and of the file; title: above both, said: beside the file's picture, plain text."""

    title: str
    a: bytes
    b: bytes
    said: str


@dataclass(frozen=True)
class Drawing:
    """The pictures of one comparison. lines: how they were drawn; notes: what else changed them; plain text."""

    title: str
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    pairs: tuple[Pair, ...]


def drawn_here(root: Path, path: str | Path) -> list[Drawing]:
    """What the gallery at `root` keeps of a VQ file, newest first; reads the file's header only."""
    with Reader(path) as reader:
        unet = unet_id(reader)
    return [] if unet is None else [_of_run(run, pictures(root, unet, run)) for run in runs(root, unet)]


def of_comparison(path: str | Path, comparison: str | Path) -> Drawing:
    """The pictures of a VQ file and the reference in what `vqpack compare` wrote, with their prompts.

    comparison: compare.json or its folder. FormatError where it is not about these very weights or has no pictures.
    """
    comparison, data = Path(comparison), read_comparison(comparison)
    with Reader(path) as reader:
        mine = checkpoint_of(data, content_id(reader), comparison.name)
    page = (comparison / "compare.json" if comparison.is_dir() else comparison).with_suffix(".html")
    try:
        return _of_data(data, mine["letter"], page)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise FormatError(f"'{page.name}' does not hold the pictures that '{page.stem}.json' is about: run vqpack "
                          f"compare again") from None


def section(drawings: Sequence[Drawing]) -> Iterator[str]:
    """The markup of all of them, in pieces; a click or Enter lays a picture over its reference."""
    if not drawings:
        return
    yield f"<div class=\"tools\">{HINT}</div>"
    for drawing in drawings:
        yield f"<h3>{bdi(shortened(drawing.title))}</h3>"
        yield "".join(tag("p", shortened(line), "soft") for line in drawing.lines)
        yield "".join(tag("p", shortened(note), "note") for note in drawing.notes)
        for pair in drawing.pairs:
            title = shortened(pair.title)
            yield (f"<section class=\"prompt\"><p>{bdi(title)}</p><div class=\"pictures\">"
                   f"{figure(pair.a, 0, 'A', 'reference', f'A: {title}')}"
                   f"{figure(pair.b, 1, 'B', text(pair.said), f'B: {title}')}</div></section>")
    yield tag("p", MEANING, "soft small") + VIEW


def summary_line(run: Run, checkpoint: str) -> str:
    """`Latent PSNR 21.5 dB, 1 picture`: of all pictures of a run, and what A was where it was not `checkpoint`."""
    metric = next(m for m in METRICS if m.name == "latent_psnr")
    against = "" if run.a.name == checkpoint else f" against {run.a.name or _NO_NAME}"
    patched = ", LoRA or other patches on" if _patched(run) else ""
    return (f"{metric.title} {_shown(median(run.values[metric.name]), metric)}{against}, "
            f"{_count(run.settings.count, 'picture')}{patched}")


def _of_run(run: Run, found: Sequence[tuple[bytes, bytes] | None]) -> Drawing:
    drawn, metrics = run.settings, [m for m in METRICS if m.name in KEPT]
    lines = [f"Drawn by Compare (VQ) in this ComfyUI with {run.tool}: {_count(drawn.count, 'picture')} of each, "
             f"{drawn.width} × {drawn.height} pixels, {_count(drawn.steps, 'step')}, {drawn.sampler}, "
             f"{drawn.scheduler}, cfg {drawn.cfg:g}, seed {drawn.seed}."]
    if drawn.count > 1:
        lines.append("All of them, median: " + ", ".join(f"{m.title} {_shown(median(run.values[m.name]), m)}"
                                                         for m in metrics) + ".")
    pairs = [Pair(f"Picture {index + 1}", *both, _words({m.name: run.values[m.name][index] for m in metrics}))
             for index, both in enumerate(found) if both is not None]
    gone = len(found) - len(pairs)
    notes = [*_on(run.a, "A"), *_on(run.b, "B"),
             *([f"{_count(gone, 'picture')} of each can no longer be read."] if gone else [])]
    return Drawing(_title(run.a.name), tuple(lines), tuple(notes), tuple(pairs))


def _title(reference: str) -> str:
    return f"A: {reference or _NO_NAME}, B: this file"


def _on(side: Side, letter: str) -> list[str]:
    """What was on a model that its file does not hold."""
    found = [f"a LoRA, merge or other patch on {_count(side.patched, 'weight')}"] if side.patched else []
    return [f"On {letter} was {'; '.join([*found, *side.beside])}."] if found or side.beside else []


def _patched(run: Run) -> bool:
    return any(side.patched or side.beside for side in (run.a, run.b))


def _of_data(data: dict, letter: str, page: Path) -> Drawing:
    first, drawn = data["checkpoints"][0], data["settings"]
    rows, note = shown_rows([{**row, "values": _numbers(row["values"])} for row in data["pictures"]])
    ours, theirs = figures_of(page, letter), figures_of(page, first["letter"])
    if not len(ours) == len(theirs) == len(rows) > 0:
        raise ValueError("the page is another one")
    height, width = drawn["size"]
    line = (f"Drawn by `vqpack compare`, {data['tool']}: {_count(len(data['pictures']), 'picture')} of each, {width} × "
            f"{height} pixels, {_count(drawn['steps'], 'step')}, sampler: {drawn['sampler']}, guidance "
            f"{drawn['guidance']:g}.")
    pairs = [Pair(f"{row['prompt']} (seed {row['seed']})", a, b, _words(row["values"].get(letter, {})))
             for row, a, b in zip(rows, theirs, ours)]
    return Drawing(_title(first["name"]), (line,), (note,) if note else (), tuple(pairs))


def _numbers(values: dict[str, dict | None]) -> dict[str, dict[str, float]]:
    """Letter -> metric -> number, of what compare.json says of one picture."""
    return {letter: {m.name: numeric(found[m.name]) for m in METRICS if m.name in found}
            for letter, found in values.items() if found}


def _words(values: Mapping[str, float]) -> str:
    """`Latent PSNR 21.5 dB, SSIM 0.912`"""
    return ", ".join(f"{m.title} {_shown(values[m.name], m)}" for m in METRICS if m.name in values)


def _shown(value: float, metric: Metric) -> str:
    return f"{number(value, metric.digits)}{' ' + metric.unit if metric.unit else ''}"


def _count(value: int, what: str) -> str:
    return f"{value} {what}{'s' * (value != 1)}"
