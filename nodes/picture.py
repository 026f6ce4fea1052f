"""The picture of a VQ file: where its bytes are, and the bits of each layer in network order."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..vq_core.describe import size
from ..vq_core.file_report import errors_of, group_of
from ..vq_core.inspection import StoredTensor

WIDTH, MARGIN, CHART = 1024, 32, 118
BACKGROUND, PANEL, GRID = "#17191d", "#1f2227", "#343941"
TEXT, MUTED, _MEAN, ERROR = "#f0f1f3", "#9ba3ae", "#ffffff", "#ff7b6b"
_KEPT = "kept"
COLORS = {"self attention": "#4c9be8", "cross attention": "#a78bfa", "feed forward": "#f2a541",
          "convolution": "#3fbf8f", "projection": "#4dd0e1", "embedding": "#ec6a9c", "other": "#b7bf6b",
          _KEPT: "#6c737d"}
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.|(middle_block)\.|\.layers\.(\d+)\.|\.resblocks\.(\d+)\.")


@dataclass(frozen=True)
class Chart:
    """Bars that stand beside each other."""

    title: str
    bars: list[StoredTensor]


@dataclass(frozen=True)
class _Scales:
    """What the charts share."""

    most: float                            # bits of the tallest coded layer, at least 4 and the mean
    mean: float                            # bits of the whole UNet
    errors: dict[str, float]               # layer -> squared error over squared norm

    def bits_high(self, bits: float) -> int:
        """Pixels."""
        return min(CHART, round(bits * CHART / (1.12 * self.most)))

    def worst(self, chart: Chart) -> float:
        """The largest error of a chart; 0 where errors are not known."""
        return max((self.errors.get(bar.key, 0.0) for bar in chart.bars), default=0.0)


def draw(name: str, info: dict, tensors: Sequence[StoredTensor]) -> Image.Image:
    """A file's name, what inspect_file found and stored_tensors -> RGB picture, WIDTH wide."""
    charts, shares = charts_of(tensors), _shares(tensors)
    legend_rows = -(-len(shares) // 4)
    height = 214 + 24 * legend_rows + len(charts) * (CHART + 76) + 8
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    _head(pen, name, info)
    top = _bytes_bar(pen, 158, shares)
    errors, mean = errors_of(info), info["bits"]["unet"]
    scales = _Scales(max([4.0, mean, *(_coded_bits(chart) for chart in charts)]), mean, errors)
    for chart in charts:
        top = _bars(pen, top, chart, scales)
    return image


def _head(pen: ImageDraw.ImageDraw, name: str, info: dict) -> None:
    bits, source = info["bits"], info["source"].get("bytes")
    pen.text((MARGIN, 24), shortened(pen, name, 26, WIDTH - 2 * MARGIN), TEXT, font(26))
    smaller = f", {source / info['file_bytes']:.1f} times smaller than its source" if source else ""
    pen.text((MARGIN, 60), f"{info['architecture']}, {size(info['file_bytes'])}{smaller}", MUTED, font(16))
    x = MARGIN
    for value, what in ((bits["coded"], "coded layers"), (bits["unet"], "whole UNet"), (bits["file"], "file")):
        pen.text((x, 94), f"{value:.2f}", TEXT, font(30))
        wide = pen.textlength(f"{value:.2f}", font(30)) + 10
        pen.text((x + wide, 108), f"bits a weight, {what}", MUTED, font(15))
        x += (WIDTH - 2 * MARGIN) // 3


def _bytes_bar(pen: ImageDraw.ImageDraw, top: int, shares: list[tuple[str, str, int]]) -> int:
    """One bar of all bytes and its legend -> y below it"""
    total, left = sum(nbytes for *_, nbytes in shares), float(MARGIN)
    for _, color, nbytes in shares:
        right = left + (WIDTH - 2 * MARGIN) * nbytes / total
        pen.rectangle((round(left), top, max(round(left), round(right) - 2), top + 23), color)
        left = right
    top += 38
    for index, (what, color, nbytes) in enumerate(shares):
        x, y = MARGIN + index % 4 * ((WIDTH - 2 * MARGIN) // 4), top + index // 4 * 24
        pen.rectangle((x, y + 3, x + 11, y + 14), color)
        pen.text((x + 18, y), f"{what}  {size(nbytes)}", TEXT, font(14))
    return top + -(-len(shares) // 4) * 24 + 18


def _bars(pen: ImageDraw.ImageDraw, top: int, chart: Chart, scales: _Scales) -> int:
    """One chart: a bar for each layer, as high as its bits; kept layers fill the height -> y below it"""
    left, right = MARGIN + 26, WIDTH - MARGIN - (58 if scales.errors else 0)
    pen.text((MARGIN, top), chart.title, TEXT, font(16))
    pen.text((WIDTH - MARGIN, top + 2), "bits a weight, gray: kept as it was" + "; red: weight error" *
             bool(scales.errors), MUTED, font(13), anchor="ra")
    top += 28
    bottom, step = top + CHART, (right - left) / len(chart.bars)
    pen.rectangle((left, top, right, bottom), PANEL)
    worst = scales.worst(chart)
    _axes(pen, left, right, bottom, scales, worst)
    gap = 1 if step >= 4 else 0
    for index, bar in enumerate(chart.bars):
        high = CHART if bar.kind == "dense" else scales.bits_high(bar.bits)
        x0, x1 = left + round(index * step), left + round((index + 1) * step) - 1 - gap
        x1 = max(x0, x1)
        pen.rectangle((x0, bottom - high, x1, bottom - 1), COLORS[category(bar)])
        if bar.key in scales.errors and worst:
            y = bottom - _error_high(scales.errors[bar.key] / worst)
            pen.rectangle((x0, y - 1, x1, y), ERROR)
    block_names(pen, chart, left, step, bottom)
    if chart.bars[0].component == "unet":
        _dashed(pen, left, right, bottom - scales.bits_high(scales.mean))
    return bottom + 48


def _axes(pen: ImageDraw.ImageDraw, left: int, right: int, bottom: int, scales: _Scales,
          worst: float) -> None:
    """Bits on the left; the error in percent of the squared norm on the right."""
    for tick in range(0, int(scales.most) + 1, 2 if scales.most > 5 else 1):
        y = bottom - scales.bits_high(tick)
        pen.line((left, y, right, y), GRID)
        pen.text((left - 8, y), str(tick), MUTED, font(13), anchor="rm")
    for part in (0.0, 0.5, 1.0) if worst else ():
        y = bottom - _error_high(part)
        pen.text((WIDTH - MARGIN, y), f"{100 * part * worst:.2g} %", ERROR, font(13), anchor="rm")


def _error_high(share: float) -> int:
    """Pixels of an error from its share of the chart's largest."""
    return round(share * CHART / 1.06)


def block_names(pen: ImageDraw.ImageDraw, chart: Chart, left: int, step: float, bottom: int) -> None:
    """Number of each block under its bars, where there is room, and a tick between blocks."""
    names, first = [_block(bar.key) for bar in chart.bars], 0
    written = left - 1000.0
    for index in range(1, len(names) + 1):
        if index < len(names) and names[index] == names[first]:
            continue
        x0, x1 = left + first * step, left + index * step
        pen.line((x0, bottom, x0, bottom + 5), MUTED)
        wide = pen.textlength(names[first], font(13))
        if (x0 + x1 - wide) / 2 > written + 4:
            pen.text(((x0 + x1) / 2, bottom + 6), names[first], MUTED, font(13), anchor="ma")
            written = (x0 + x1 + wide) / 2
        first = index


def _dashed(pen: ImageDraw.ImageDraw, left: int, right: int, y: int) -> None:
    for x in range(left, right, 8):
        pen.line((x, y, min(x + 3, right), y), _MEAN)
    pen.text((right, y - 3), "whole UNet", _MEAN, font(12), anchor="rb", stroke_width=2, stroke_fill=BACKGROUND)


def charts_of(tensors: Sequence[StoredTensor]) -> list[Chart]:
    """The matrices in network order, cut so that a bar is some pixels wide; components without codes have none."""
    matrices = [t for t in tensors if t.weights and len(t.shape) in (2, 4) and t.key.endswith("weight")]
    coded = {t.component for t in matrices if t.kind != "dense"}
    upper = [t for t in matrices if t.component == "unet" and ".output_blocks." not in t.key
             and not t.key.startswith("model.diffusion_model.out.")]
    lower = [t for t in matrices if t.component == "unet" and t not in upper]
    groups = [Chart("UNet: input and middle blocks", upper), Chart("UNet: output blocks", lower),
              Chart("First text encoder", [t for t in matrices if t.component == "te1"]),
              Chart("Second text encoder", [t for t in matrices if t.component == "te2"]),
              Chart("VAE", [t for t in matrices if t.component == "vae"])]
    return [chart for chart in groups if chart.bars and chart.bars[0].component in coded]


def _shares(tensors: Sequence[StoredTensor]) -> list[tuple[str, str, int]]:
    """(what, color, bytes) of the whole file: coded by what layers do, then what was kept, then the rest"""
    found: dict[tuple[str, str], int] = {}
    for tensor in tensors:
        if tensor.component in ("te1", "te2") and tensor.kind != "dense":
            key = ("text encoders", "#e3cf63")
        elif tensor.component in ("table", "report"):
            key = ("tables and report", "#4a5058")
        elif tensor.kind == "dense":
            place = {"unet": "UNet", "te1": "text encoders", "te2": "text encoders", "vae": "VAE"}
            key = (f"{place.get(tensor.component, 'other')}, kept", _KEPT_COLORS.get(tensor.component, "#565c66"))
        else:
            key = (category(tensor), COLORS[category(tensor)])
        found[key] = found.get(key, 0) + tensor.nbytes
    order = [*COLORS, "text encoders", "UNet, kept", "text encoders, kept", "VAE, kept", "other, kept"]
    rank = {name: place for place, name in enumerate(order)}
    return [(what, color, n) for (what, color), n in sorted(found.items(), key=lambda i: rank.get(i[0][0], 99)) if n]


_KEPT_COLORS = {"unet": COLORS[_KEPT], "te1": "#7d7480", "te2": "#7d7480", "vae": "#8b8474"}


def category(tensor: StoredTensor) -> str:
    """A key of COLORS."""
    return _KEPT if tensor.kind == "dense" else group_of(tensor.role)


def _block(key: str) -> str:
    found = _BLOCK.search(key)
    if not found:
        return ""
    kind, number, middle, layer, resblock = found.groups()
    if kind:
        return f"{'in' if kind == 'input_blocks' else 'out'} {number}"
    return "middle" if middle else layer or resblock


def _coded_bits(chart: Chart) -> float:
    return max((bar.bits for bar in chart.bars if bar.kind != "dense"), default=0.0)


def shortened(pen: ImageDraw.ImageDraw, text: str, points: int, most: int) -> str:
    """Text that is at most so many pixels wide, its middle left out."""
    while pen.textlength(text, font(points)) > most and len(text) > 8:
        text = text[:len(text) // 2 - 2] + "…" + text[len(text) // 2 + 2:]
    return text


def font(points: int):
    """Pillow's own font: no file of the system is looked for. Before Pillow 10.1 it has one size."""
    try:
        return ImageFont.load_default(size=points)
    except TypeError:
        return ImageFont.load_default()
