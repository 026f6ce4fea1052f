"""The picture of a plan: what it promises, which share of the weights has which rate, and the bits of every layer."""
from __future__ import annotations

from PIL import Image, ImageDraw

from ..vq_core.describe import size
from ..vq_core.inspection import StoredTensor
from ..vq_core.planning.run import Planned
from ..vq_core.planning.tell import marks, subtitle
from .picture import (
    BACKGROUND,
    CHART,
    COLORS,
    GRID,
    MARGIN,
    MUTED,
    PANEL,
    TEXT,
    WIDTH,
    Chart,
    block_names,
    category,
    charts_of,
    font,
    shortened,
)

_ROW, _BAR = 22, 520                       # pixels of a rate's line, and of the longest bar in it


def draw(planned: Planned) -> Image.Image:
    """-> RGB picture, WIDTH wide"""
    tensors = [StoredTensor(row.layer.key, row.layer.component, row.layer.role, row.spec.kind, row.layer.shape,
                            row.nbytes) for row in planned.layers]
    charts, shares = charts_of(tensors), _shares(planned)
    height = 108 + 30 + _ROW * len(shares) + 20 + len(charts) * (CHART + 76) + 34
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 24), shortened(pen, f"Plan of {planned.source}", 26, WIDTH - 2 * MARGIN), TEXT, font(26))
    pen.text((MARGIN, 60), shortened(pen, subtitle(planned), 16, WIDTH - 2 * MARGIN), MUTED, font(16))
    top = _rates(pen, 108, shares)
    most = max([4.0, *(bar.bits for chart in charts for bar in chart.bars if bar.kind != "dense")])
    for chart in charts:
        top = _bars(pen, top, chart, most)
    _legend(pen, top, tensors)
    return image


def _shares(planned: Planned) -> list[tuple[str, float, int]]:
    """(rate, share of the weights, bytes), lowest rate first, kept layers last"""
    found: dict[float | None, list[int]] = {}
    for mark in marks(planned):
        weights, nbytes = found.setdefault(mark.rate, [0, 0])
        found[mark.rate] = [weights + mark.weights, nbytes + mark.nbytes]
    total = sum(weights for weights, _ in found.values()) or 1
    ordered = sorted(found.items(), key=lambda item: (item[0] is None, item[0]))
    return [("kept" if rate is None else f"{rate:g} bits", weights / total, nbytes)
            for rate, (weights, nbytes) in ordered]


def _rates(pen: ImageDraw.ImageDraw, top: int, shares: list[tuple[str, float, int]]) -> int:
    """A line for each rate -> y below"""
    pen.text((MARGIN, top), "Share of the weights by rate", TEXT, font(16))
    top += 30
    most = max((share for _, share, _ in shares), default=1.0)
    for rate, share, nbytes in shares:
        x = MARGIN + 90
        pen.text((MARGIN, top), rate, TEXT, font(14))
        pen.rectangle((x, top + 3, x + max(1, round(_BAR * share / most)), top + 15), COLORS["self attention"])
        pen.text((x + _BAR + 14, top), f"{100 * share:.1f} %, {size(nbytes)}", MUTED, font(13))
        top += _ROW
    return top + 20


def _bars(pen: ImageDraw.ImageDraw, top: int, chart: Chart, most: float) -> int:
    """A bar for each layer, as high as its stored bits; kept layers fill the height -> y below"""
    left, right = MARGIN + 26, WIDTH - MARGIN
    pen.text((MARGIN, top), chart.title, TEXT, font(16))
    pen.text((WIDTH - MARGIN, top + 2), "bits a weight, gray: kept as it is", MUTED, font(13), anchor="ra")
    top += 28
    bottom, step, scale = top + CHART, (right - left) / len(chart.bars), CHART / (1.12 * most)
    pen.rectangle((left, top, right, bottom), PANEL)
    for tick in range(0, int(most) + 1, 2 if most > 5 else 1):
        pen.line((left, bottom - round(tick * scale), right, bottom - round(tick * scale)), GRID)
        pen.text((left - 8, bottom - round(tick * scale)), str(tick), MUTED, font(13), anchor="rm")
    gap = 1 if step >= 4 else 0
    for index, bar in enumerate(chart.bars):
        high = CHART if bar.kind == "dense" else min(CHART, round(bar.bits * scale))
        x0, x1 = left + round(index * step), left + round((index + 1) * step) - 1 - gap
        pen.rectangle((x0, bottom - high, max(x0, x1), bottom - 1), COLORS[category(bar)])
    block_names(pen, chart, left, step, bottom)
    return bottom + 48


def _legend(pen: ImageDraw.ImageDraw, top: int, tensors: list[StoredTensor]) -> None:
    x, used = MARGIN, {category(tensor) for tensor in tensors}
    for name, color in COLORS.items():
        if name in used:
            pen.rectangle((x, top + 3, x + 11, top + 14), color)
            pen.text((x + 18, top), name, TEXT, font(13))
            x += 34 + round(pen.textlength(name, font(13)))
