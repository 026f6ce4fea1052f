"""A plan as one SVG drawing: a circle a layer along the depth, as high as its bits; and what each rate holds."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..compare.markup import text
from ..compare.output import write_text
from ..describe import size
from ..file_report import GROUPS, OTHER, group_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, BARS = 1100, 500, 46, 20, 92, 62, 170
FONT = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif"
KINDS = (*(name for name, _ in GROUPS), OTHER)
LIGHT = ("#0b6bcb", "#7e22ce", "#15803d", "#c2410c", "#a16207", "#475569", "#475569")
DARK = ("#6cb2ff", "#c99bff", "#5fd08a", "#ff9d66", "#e3bd4f", "#9aa7b8", "#9aa7b8")
LARGEST = 22.0                             # radius in pixels of the largest layer
SMALLEST = 2.2
DENSE = "kept"


@dataclass(frozen=True)
class Mark:
    """One layer of the drawing, in the model's order."""

    name: str
    stage: str                             # "input_blocks", "middle_block", "output_blocks"
    role: str
    weights: int
    rate: float | None                     # code rate; None = kept as it is
    nbytes: int


def write_picture(path: Path, title: str, subtitle: str, marks: Sequence[Mark]) -> None:
    """Write the drawing; it is whole or not there."""
    write_text(path, _drawing(title, subtitle, marks))


def _drawing(title: str, subtitle: str, marks: Sequence[Mark]) -> Iterator[str]:
    rates = sorted({mark.rate for mark in marks if mark.rate is not None})
    rows = [*rates, *([None] if any(mark.rate is None for mark in marks) else [])]
    yield (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
           f'aria-label="{text(title)}" font-family="{FONT}"><style>{_style()}</style>'
           f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>'
           f'<text class="title" x="{LEFT - 30}" y="30">{text(title)}</text>'
           f'<text class="soft" x="{LEFT - 30}" y="50">{text(subtitle)}</text>')
    yield from _legend(marks)
    height = _heights(rows)
    yield from _grid(rows, height)
    yield from _stages(marks)
    yield from _circles(marks, height)
    yield from _bars(marks, rows, height)
    yield "</svg>\n"


def _style() -> str:
    def colors(ground: str, ink: str, soft: str, line: str, bar: str, kinds: tuple[str, ...]) -> str:
        fills = "".join(f".k{i}{{fill:{color};stroke:{color}}}" for i, color in enumerate(kinds))
        return (f".ground{{fill:{ground}}}text{{fill:{ink}}}.soft{{fill:{soft}}}.grid{{stroke:{line}}}"
                f".bar{{fill:{bar}}}{fills}")

    return ("text{font-size:12px}.title{font-size:18px;font-weight:600}.end{text-anchor:end}.mid{text-anchor:middle}"
            "circle{fill-opacity:.42;stroke-width:1;stroke-opacity:.9}circle:hover{fill-opacity:.9}"
            + colors("#fbfbfa", "#1c1d1f", "#63666b", "#e2e3e5", "#c9d3df", LIGHT)
            + "@media (prefers-color-scheme: dark){"
            + colors("#15171a", "#e8e9eb", "#9a9ea6", "#2b2f35", "#3a4654", DARK) + "}")


def _legend(marks: Sequence[Mark]) -> Iterator[str]:
    used, x = {group_of(mark.role) for mark in marks}, LEFT - 24
    for index, kind in enumerate(KINDS):
        if kind in used:
            yield f'<circle class="k{index}" cx="{x}" cy="71" r="6"/><text x="{x + 11}" y="75">{kind}</text>'
            x += 34 + round(6.6 * len(kind))


def _heights(rows: Sequence[float | None]) -> dict[float | None, float]:
    """Row -> y; rates lie as far apart as their logarithms, but for neighbors that would overlap."""
    places, place = {}, 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None:
            place += 1.0 if row is None else max(0.8, min(1.4, 2.5 * math.log2(row / before)))
        places[row] = place
    room = HEIGHT - TOP - BOTTOM - 2 * LARGEST
    return {row: HEIGHT - BOTTOM - LARGEST - room * (place / max(place_ for place_ in places.values()) if any(
        places.values()) else 0.5) for row, place in places.items()}


def _grid(rows, height) -> Iterator[str]:
    end = WIDTH - RIGHT - BARS - 20
    for row in rows:
        label = DENSE if row is None else f"{row:g}"
        yield (f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{height[row]:.1f}" y2="{height[row]:.1f}"/>'
               f'<text class="soft end" x="{LEFT - 8}" y="{height[row] + 4:.1f}">{label}</text>')
    yield f'<text class="soft end" x="{LEFT - 8}" y="{TOP + 8}">bits</text>'


def _places(marks: Sequence[Mark]) -> list[float]:
    """x of each layer: evenly, with a gap between stages."""
    gaps, place, places = 0.03 * len(marks), 0.0, []
    for before, mark in zip([None, *marks], marks, strict=False):
        place += (gaps if before is not None and before.stage != mark.stage else 1.0) if before else 0.0
        places.append(place)
    low, high = LEFT + LARGEST, WIDTH - RIGHT - BARS - 20 - LARGEST
    return [low + (high - low) * (p / places[-1] if places[-1] else 0.5) for p in places]


def _stages(marks: Sequence[Mark]) -> Iterator[str]:
    names = {"input_blocks": "input blocks", "middle_block": "middle", "output_blocks": "output blocks"}
    places, found = _places(marks), {}
    for x, mark in zip(places, marks, strict=True):
        first, _ = found.get(mark.stage, (x, x))
        found[mark.stage] = first, x
    for stage, (first, last) in found.items():
        y = HEIGHT - BOTTOM + 12
        yield (f'<line class="grid" stroke-width="3" x1="{first:.1f}" x2="{max(last, first + 4):.1f}" y1="{y}" '
               f'y2="{y}"/><text class="soft mid" x="{(first + last) / 2:.1f}" y="{y + 18}">'
               f'{text(names.get(stage, stage))}</text>')
    yield (f'<text class="soft mid" x="{(places[0] + places[-1]) / 2:.1f}" y="{HEIGHT - 12}">depth, in the order of '
           "the forward pass; area: number of weights</text>")


def _circles(marks: Sequence[Mark], height) -> Iterator[str]:
    most = max(mark.weights for mark in marks)
    drawn = sorted(zip(_places(marks), marks, strict=True), key=lambda pair: -pair[1].weights)
    for x, mark in drawn:                  # large ones first, so that no small one is hidden
        radius = max(SMALLEST, LARGEST * math.sqrt(mark.weights / most))
        rate = DENSE if mark.rate is None else f"{mark.rate:g} bits"
        yield (f'<circle class="k{KINDS.index(group_of(mark.role))}" cx="{x:.1f}" cy="{height[mark.rate]:.1f}" '
               f'r="{radius:.1f}"><title>{text(mark.name)}: {rate}, {mark.weights:,} weights, {size(mark.nbytes)}'
               "</title></circle>")


def _bars(marks: Sequence[Mark], rows, height) -> Iterator[str]:
    """At the right: which share of the weights has each rate."""
    total, left = sum(mark.weights for mark in marks), WIDTH - RIGHT - BARS
    shares = {row: sum(mark.weights for mark in marks if mark.rate == row) / total for row in rows}
    most = max(shares.values())
    yield f'<text class="soft" x="{left}" y="{TOP + 8}">share of the weights</text>'
    for row, share in shares.items():
        length = (BARS - 50) * share / most
        yield (f'<rect class="bar" x="{left}" y="{height[row] - 8:.1f}" width="{max(1, length):.1f}" height="16" '
               f'rx="3"/><text x="{left + length + 7:.1f}" y="{height[row] + 4:.1f}">{_share(share)}</text>')


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 else f"{100 * share:.1f} %"
