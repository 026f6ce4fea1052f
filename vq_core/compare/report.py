"""The HTML page of a comparison: one file with everything in it, nothing loaded from anywhere, all text escaped."""
from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..describe import size
from .chart import step_chart
from .markup import bdi, number, tag
from .output import write_text
from .pictures import HINT, VIEW, figure, make_png
from .tables import difference_table, layer_table, summary_table

HERE = Path(__file__).resolve().parent
MOST_SHOWN = 40                            # pictures a checkpoint; at 1024 pixels 40 of three checkpoints are 250 MB
LIMITS = ("Distances say how far a checkpoint's pictures are from the reference's, not which are better: a picture may "
          "differ and be as good. Intervals are 95 % bootstrap intervals over the prompts (seeds of one prompt are "
          "averaged first); they hold for prompts like these, and with fewer than 30 they are too narrow. The weight "
          "error is the squared error over the squared norm of the reference's weights.")


def write_report(path: Path, data: dict, picture: Callable[[str, int, int], torch.Tensor]) -> None:
    """Write the page of `data` (run.py makes it); picture(letter, prompt, number) -> uint8 [height, width, 3]"""
    write_text(path, _page(data, picture))


def page_start(title: str) -> str:
    """Up to <body>: style inside, and a policy under which nothing is loaded and only `page_end`'s script runs."""
    style, script = ((HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return ("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"referrer\" "
            f"content=\"no-referrer\">{tag('title', title)}<style>{style}</style></head>\n<body>")


def page_end() -> str:
    """The script and what closes the page."""
    return f"<script>{(HERE / 'report.js').read_text(encoding='utf-8')}</script></body></html>\n"


def _page(data: dict, picture) -> Iterator[str]:
    yield page_start("Comparison with " + data["checkpoints"][0]["name"])
    yield from _head(data)
    yield "<h2>Summary</h2><div class=\"scroll\">" + summary_table(data) + "</div>"
    yield from _meanings(data)
    yield difference_table(data)
    yield step_chart(data)
    yield from _pictures(data, picture)
    yield layer_table(data)
    yield from _foot(data)
    yield page_end()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _head(data: dict) -> Iterator[str]:
    settings, checkpoints = data["settings"], data["checkpoints"]
    count, seeds = len(settings["prompts"]), settings["seeds"]
    height, width = settings["size"]
    drawn = (f"{count} prompt{'s' * (count != 1)} ({settings['prompt_file']}), {seeds} seed{'s' * (seeds != 1)} each, "
             f"{width} × {height} pixels, {settings['steps']} steps, guidance {settings['guidance']:g}, sampler: "
             f"{settings['sampler']}, on {settings['device']}")
    yield ("<header><div><h1>" + bdi(checkpoints[0]["name"]) + " against "
           + ", ".join(bdi(c["name"]) for c in checkpoints[1:]) + f"</h1>{tag('p', drawn, 'soft')}</div>"
           "<button id=\"theme\" type=\"button\">Dark / light</button></header>")
    if not data["complete"]:
        missing = ", ".join(map(bdi, data["not_drawn"]))
        yield f"<p class=\"banner\">Not finished: {missing} still to be drawn. The same command goes on from here.</p>"
    for note in data["notes"]:
        yield tag("p", note, "note")


def _meanings(data: dict) -> Iterator[str]:
    said = "; ".join(f"{m['title']}: {m['meaning']} ({m['statistic']} over the prompts)" for m in data["metrics"])
    absent = "" if any(m["name"] == "lpips" for m in data["metrics"]) else (
        " LPIPS was not measured: its package or weights are not on this machine.")
    yield tag("p", f"{said}. A checkpoint that draws exactly the reference's picture has ∞ dB.{absent}", "soft small")


def _pictures(data: dict, picture) -> Iterator[str]:
    rows, note = shown_rows(data["pictures"])
    yield ("<h2>Pictures</h2><div class=\"tools\"><label>Order: <select id=\"order\"><option value=\"index\">as listed"
           "</option><option value=\"worst\">largest difference first</option></select></label>" + HINT + "</div>")
    if note:
        yield tag("p", note, "note")
    yield "<div id=\"prompts\">"
    for index, row in enumerate(rows):
        yield (f"<section class=\"prompt\" data-index=\"{index}\" data-worst=\"{_sortable(_worst(row))}\"><p>"
               f"{bdi(row['prompt'])} <span class=\"soft small\">seed {row['seed']}</span></p><div class=\"pictures\">")
        for order, checkpoint in enumerate(data["checkpoints"]):
            yield _figure(data, checkpoint, order, row, picture(checkpoint["letter"], *row["index"]))
        yield "</div></section>"
    yield "</div>" + VIEW


def shown_rows(pictures: list[dict]) -> tuple[list[dict], str]:
    """At most MOST_SHOWN: half with the largest differences, the others evenly from the rest; in their order."""
    if len(pictures) <= MOST_SHOWN:
        return pictures, ""
    worst = sorted(pictures, key=_worst)
    rest = worst[MOST_SHOWN // 2:]
    chosen = worst[:MOST_SHOWN // 2] + [rest[i * len(rest) // (MOST_SHOWN // 2)] for i in range(MOST_SHOWN // 2)]
    return sorted(chosen, key=lambda row: row["index"]), (
        f"{MOST_SHOWN} of {len(pictures)} pictures are shown: the {MOST_SHOWN // 2} with the largest differences and "
        f"{MOST_SHOWN // 2} spread over the others; all are measured.")


def _worst(row: dict) -> float:
    """Latent PSNR of the checkpoint that is farthest off."""
    return min((values["latent_psnr"] for values in row["values"].values() if values), default=math.inf)


def _sortable(value: float) -> str:
    return f"{max(-1e9, min(1e9, value)):.4f}"


def _figure(data: dict, checkpoint: dict, order: int, row: dict, pixels: torch.Tensor) -> str:
    values = row["values"].get(checkpoint["letter"])
    said = "reference" if order == 0 else ", ".join(
        f"{m['title'] if m['unit'] != 'dB' else m['title'].replace(' PSNR', '')} "
        f"{number(values[m['name']], m['digits'])}{' ' + m['unit'] if m['unit'] else ''}"
        for m in data["metrics"] if values and m["name"] in values)
    return figure(make_png(pixels), order, checkpoint["letter"], said, f"{checkpoint['name']}: {row['prompt']}")


def _foot(data: dict) -> Iterator[str]:
    yield "<h2>Checkpoints</h2>"
    for order, checkpoint in enumerate(data["checkpoints"]):
        facts = {"file": checkpoint["name"], "kind": checkpoint["kind"], "size": size(checkpoint["file_bytes"]),
                 "architecture": f"{checkpoint['architecture']}, predicts {checkpoint['prediction']}",
                 **checkpoint["texts"]}
        yield (f"<p><span class=\"key k{order % 6}\">{checkpoint['letter']}</span></p><dl>"
               + "".join(f"{tag('dt', key)}<dd>{bdi(fact)}</dd>" for key, fact in facts.items()) + "</dl>")
    yield "<h2>What these numbers say</h2>" + tag("p", LIMITS, "soft")
    yield tag("p", f"Made by {data['tool']} with torch {data['settings']['torch']} in {data['seconds']:.0f} s.", "soft")
