"""Draws the SVG pictures of docs/how-it-works.md: drawings.py [--out docs/images]"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INK, SOFT, PAPER = "#1b2233", "#5b6478", "#ffffff"
BLUE, GREEN, YELLOW, RED, GRAY = "#dbe8fb", "#dcf3e4", "#fbf0cf", "#fbe0d8", "#edf0f5"
FONT = "font-family='system-ui,sans-serif'"


def main() -> int:
    """Write all drawings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(ROOT / "docs" / "images"))
    out = Path(parser.parse_args().out)
    for name, (width, height, parts) in drawings().items():
        (out / f"{name}.svg").write_text(page(width, height, parts), encoding="utf-8", newline="\n")
        print(out / f"{name}.svg")
    return 0


def drawings() -> dict[str, tuple[int, int, Iterable[str]]]:
    """Name -> (width, height, SVG elements)"""
    return {"path-of-a-weight": (900, 250, weight()), "path-of-a-click": (900, 268, click()),
            "trellis-window": (900, 330, window()), "what-a-file-holds": (900, 338, file())}


def page(width: int, height: int, parts: Iterable[str]) -> str:
    """A whole SVG, on paper of its own so that it is readable on dark pages too."""
    head = (f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
            f"height='{height}'>\n<defs><marker id='tip' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' "
            "markerHeight='7' orient='auto'>"
            f"<path d='M0 0L10 5L0 10z' fill='{SOFT}'/></marker></defs>\n"
            f"<rect width='{width}' height='{height}' rx='10' fill='{PAPER}'/>\n")
    return head + "\n".join(parts) + "\n</svg>\n"


def box(x: float, y: float, width: float, height: float, title: str, lines: Iterable[str] = (),
        fill: str = GRAY) -> str:
    """A rounded box with a title and smaller lines below it, centered."""
    lines = list(lines)
    top = y + height / 2 + 5 - 8 * len(lines)
    out = [f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='7' fill='{fill}' stroke='{SOFT}'/>",
           text(x + width / 2, top, title, 14, weight="600")]
    return "\n".join(out + [text(x + width / 2, top + 17 * (i + 1), line, 12, SOFT) for i, line in enumerate(lines)])


def text(x: float, y: float, words: str, size: int = 13, color: str = INK, anchor: str = "middle",
         weight: str = "400") -> str:
    """One line."""
    return (f"<text x='{x}' y='{y}' {FONT} font-size='{size}' font-weight='{weight}' fill='{color}' "
            f"text-anchor='{anchor}'>{escape(words)}</text>")


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A straight line with a tip."""
    return (f"<line x1='{x}' y1='{y}' x2='{to_x}' y2='{to_y}' stroke='{SOFT}' stroke-width='1.6' "
            f"marker-end='url(#tip)'/>")


def row(y: float, height: float, boxes: list[tuple[str, list[str], str]], backward: bool = False) -> Iterable[str]:
    """Boxes side by side over the whole width, with arrows between them."""
    x, gap, width = 20, 26, 860
    each = (width - gap * (len(boxes) - 1)) / len(boxes)
    for index, (title, lines, fill) in enumerate(boxes):
        left = x + index * (each + gap)
        yield box(left, y, each, height, title, lines, fill)
        if index:
            ends = (left - gap + 2, left - 2)[::-1 if backward else 1]
            yield arrow(ends[0], y + height / 2, ends[1], y + height / 2)


def weight() -> Iterable[str]:
    """One weight into the file and out of it again."""
    yield text(20, 28, "once, when the file is made", 13, SOFT, "start")
    yield from row(40, 66, [
        ("a row of weights", ["fp16 or bf16"], BLUE), ("÷ scale of the row", ["spread near 1"], GRAY),
        ("× rotation", ["only where it helps:", "measured per layer"], GRAY),
        ("Viterbi", ["the best path of bits"], GREEN), ("codes", ["2, 3 ... bits a weight"], YELLOW)])
    yield arrow(806, 108, 806, 150)
    yield text(20, 144, "in every call of the layer", 13, SOFT, "start")
    yield from row(152, 66, [
        ("product with", ["the activations"], BLUE),
        ("+ LoRA", ["on the decoded weight,", "or beside the product"], GRAY),
        ("× row scale", ["float32, then", "the wanted type"], GRAY), ("undo rotation", ["still whole numbers"], GRAY),
        ("table look-up", ["integers, exact"], GREEN)], backward=True)
    yield text(450, 240, "Everything before the first product with a scale is exact, so every machine gives the same "
               "bits.", 12, SOFT)


def click() -> Iterable[str]:
    """From the button to the picture, and where memory goes."""
    yield text(20, 28, "Quantize Checkpoint (VQ): one layer at a time, no model is loaded", 13, SOFT, "start")
    yield from row(40, 64, [
        ("checkpoint", ["mapped, read by layer"], BLUE), ("plan", ["spec of each layer"], GRAY),
        ("encoder", ["CPU or GPU"], GREEN), ("spool", ["a stop loses nothing"], GRAY),
        ("one .safetensors", ["written whole"], YELLOW)])
    yield arrow(808, 106, 808, 148)
    yield text(20, 142, "Load Checkpoint (VQ), then any sampler", 13, SOFT, "start")
    yield from row(150, 64, [
        ("picture", ["as from any checkpoint"], BLUE), ("sampler, LoRA,", ["ControlNet: its own"], GRAY),
        ("layer call", ["decode, multiply, forget"], GREEN), ("host's memory", ["counts coded bytes"], GRAY),
        ("VQ weights", ["blobs, as in the file"], YELLOW)], backward=True)
    yield text(450, 240, "Decoded weights live for one call in scratch memory that all layers share; 'keep decoded "
               "(MB)' lets some stay.", 12, SOFT)
    yield text(450, 257, "ComfyUI's own loader and samplers run, with our Linear, Conv2d and patcher: none of its "
               "functions is replaced.", 12, SOFT)


def window() -> Iterable[str]:
    """A stream of bits, three steps of a window of eight, and the table it looks weights up in."""
    bits, size, left = "1011001110100101", 34, 60
    yield text(20, 28, "3 bits a weight: each step takes 3 new bits; the last 8 bits (the state) say which entry it is",
               13, SOFT, "start")
    for index, bit in enumerate(bits):
        x = left + index * size
        yield f"<rect x='{x}' y='44' width='{size}' height='{size}' fill='{GRAY}' stroke='{SOFT}'/>"
        yield text(x + size / 2, 66, bit, 15)
    for step, (fill, end) in enumerate(((BLUE, 8), (GREEN, 11), (YELLOW, 14))):
        x, y, state = left + (end - 8) * size, 96 + 58 * step, bits[end - 8:end]
        yield f"<rect x='{x}' y='{y}' width='{8 * size}' height='30' rx='6' fill='{fill}' stroke='{SOFT}'/>"
        yield text(x + 4 * size, y + 20, f"state {state} = {int(state, 2)}", 14)
        yield arrow(x + 8 * size + 4, y + 15, 620, y + 15)
        yield text(630, y + 20, f"table[{int(state, 2)}]  →  weight {step + 1} of a column", 14, anchor="start")
    yield text(20, 290, "Two neighboring weights share 5 of their 8 bits. A code of 3 bits alone could name 8 values; "
               "through the window each", 12, SOFT, "start")
    yield text(20, 307, "weight has 256 (4096 at the usual window of 12), and Viterbi's algorithm finds the stream "
               "whose values lie closest.", 12, SOFT, "start")


def file() -> Iterable[str]:
    """The sections of a file, and of one blob."""
    yield text(20, 28, "one ordinary .safetensors file", 13, SOFT, "start")
    parts = [("header", ["names, license,", "source, plan, sums"], BLUE, 130),
             ("coded weights", ["a blob under each", "original key"], YELLOW, 330),
             ("kept tensors", ["norms, biases, VAE,", "byte for byte"], GRAY, 190),
             ("tables", ["one for all", "layers"], GREEN, 100), ("report", ["error of each", "layer"], RED, 110)]
    x = 20
    for title, lines, fill, width in parts:
        yield box(x, 40, width, 74, title, lines, fill)
        x += width
    yield f"<path d='M150 116L20 176M480 116L880 176' stroke='{SOFT}' stroke-dasharray='4 4' fill='none'/>"
    yield text(450, 166, "one blob: everything of one weight, so that it is one read and one copy", 13, SOFT)
    x = 20
    for title, lines, fill, width in (
            ("record", ["shape, type,", "64 bytes"], BLUE, 130),
            ("parts", ["ranges of channels", "with their spec"], BLUE, 150),
            ("sections", ["kind, place,", "length"], BLUE, 120), ("scales", ["fp16, a row or", "a group"], GREEN, 140),
            ("codes", ["the bit stream"], YELLOW, 220), ("branch", ["low rank,", "optional"], RED, 100)):
        yield box(x, 178, width, 78, title, lines, fill)
        x += width
    yield text(450, 282, "All lengths follow from the shape: a reader checks them before it takes memory. Sections "
               "begin at multiples of 64.", 12, SOFT)
    yield text(450, 300, "The blob tells what it is by itself: a file whose metadata another program dropped still "
               "loads.", 12, SOFT)
    yield text(450, 318, "docs/format.md has every byte.", 12, SOFT)


if __name__ == "__main__":
    sys.exit(main())
