"""The picture of a file's quality: what its comparison measured, weight error by what layers do, and of every layer."""
from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..vq_core.describe import interval_text, size
from ..vq_core.file_report import ErrorGroup, error_groups, errors_of
from ..vq_core.inspection import StoredTensor
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

_ROW, _BAR = 24, 420                       # pixels of a group's line, and of the longest bar in it
_UNKNOWN = "The file does not say its weight error."


def draw(name: str, info: dict, tensors: Sequence[StoredTensor]) -> Image.Image:
    """A file's name, what inspect_file found and stored_tensors -> RGB picture, WIDTH wide."""
    groups, errors, comparison = error_groups(info, tensors), errors_of(info), info["comparison"]
    charts = [chart for chart in charts_of(tensors) if any(bar.key in errors for bar in chart.bars)]
    height = 108 + 96 * bool(comparison) + 46 + _ROW * max(1, len(groups)) + 16 + len(charts) * (CHART + 76)
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    top = _head(pen, name, info)
    if comparison:
        top = _measured(pen, top, comparison)
    top = _groups(pen, top, groups)
    largest = max((errors.get(bar.key, 0.0) for chart in charts for bar in chart.bars), default=0.0)
    for chart in charts:
        top = _bars(pen, top, chart, errors, largest)
    return image


def _head(pen: ImageDraw.ImageDraw, name: str, info: dict) -> int:
    pen.text((MARGIN, 24), shortened(pen, name, 26, WIDTH - 2 * MARGIN), TEXT, font(26))
    pen.text((MARGIN, 60), f"{info['architecture']}, {size(info['file_bytes'])}, {info['bits']['unet']:.2f} bits a "
                           f"weight of the UNet", MUTED, font(16))
    return 108


def _measured(pen: ImageDraw.ImageDraw, top: int, comparison: dict) -> int:
    """Against what, and up to four numbers with their intervals beside each other -> y below"""
    drawn, metrics = comparison["settings"], comparison["metrics"][:4]
    said = (f"Against {comparison['reference']['name']}: {drawn['prompts']} {drawn['prompt_source']} prompts, "
            f"{drawn['steps']} steps, in brackets 95 % intervals")
    pen.text((MARGIN, top), shortened(pen, said, 15, WIDTH - 2 * MARGIN), TEXT, font(15))
    wide = (WIDTH - 2 * MARGIN) // len(metrics)
    for index, metric in enumerate(metrics):
        value, _, interval = interval_text(metric).partition("  ")
        x = MARGIN + index * wide
        pen.text((x, top + 24), shortened(pen, value, 24, wide - 12), TEXT, font(24))
        pen.text((x, top + 56), shortened(pen, f"{metric['title']} {interval}", 13, wide - 12), MUTED, font(13))
    return top + 96


def _groups(pen: ImageDraw.ImageDraw, top: int, groups: list[ErrorGroup]) -> int:
    """One line a group: bar to the mean, tick at the worst layer -> y below"""
    pen.text((MARGIN, top), "Weight error by what layers do", TEXT, font(16))
    pen.text((WIDTH - MARGIN, top + 2), "percent of the squared norm; bar: mean, tick: worst layer", MUTED, font(13),
             anchor="ra")
    top += 30
    if not groups:
        pen.text((MARGIN, top), _UNKNOWN, MUTED, font(14))
    largest = max((group.worst for group in groups), default=0.0) or 1.0
    for group in groups:
        x = MARGIN + 270
        pen.text((MARGIN, top), f"{group.part}, {group.what}", TEXT, font(14))
        pen.rectangle((x, top + 3, x + _BAR, top + 15), PANEL)
        pen.rectangle((x, top + 3, x + round(_BAR * group.mean / largest), top + 15), COLORS[group.what])
        tick = x + round(_BAR * group.worst / largest)
        pen.rectangle((tick - 1, top + 1, tick, top + 17), TEXT)
        pen.text((x + _BAR + 14, top), f"{100 * group.mean:.3g} %, worst {100 * group.worst:.3g} %, {group.bits:.2f} "
                                       f"bits", MUTED, font(13))
        top += _ROW
    return top + 16 + _ROW * (not groups)


def _bars(pen: ImageDraw.ImageDraw, top: int, chart: Chart, errors: dict[str, float], largest: float) -> int:
    """A bar for each layer, as high as its error, on one scale in all charts; kept layers have none -> y below"""
    left, right = MARGIN + 46, WIDTH - MARGIN
    pen.text((MARGIN, top), chart.title, TEXT, font(16))
    top += 28
    bottom, step, scale = top + CHART, (right - left) / len(chart.bars), CHART / (1.06 * largest or 1.0)
    pen.rectangle((left, top, right, bottom), PANEL)
    for part in (0.0, 0.5, 1.0):
        y = bottom - round(part * largest * scale)
        pen.line((left, y, right, y), GRID)
        pen.text((left - 8, y), f"{100 * part * largest:.2g} %", MUTED, font(13), anchor="rm")
    gap = 1 if step >= 4 else 0
    for index, bar in enumerate(chart.bars):
        if bar.key in errors:
            x0, x1 = left + round(index * step), left + round((index + 1) * step) - 1 - gap
            high = max(1, round(errors[bar.key] * scale))
            pen.rectangle((x0, bottom - high, max(x0, x1), bottom - 1), COLORS[category(bar)])
    block_names(pen, chart, left, step, bottom)
    return bottom + 48
