"""The tables of the report: one row a checkpoint, differences between checkpoints, one row a layer."""
from __future__ import annotations

from ..arch import UNET_PREFIX
from ..describe import size
from .markup import bdi, cell, heading, interval, number, tag, text, text_cell

PREFIXES = (UNET_PREFIX, "conditioner.embedders.")         # said by the column Part already
PARTS = {"unet": "UNet", "te1": "text encoder 1", "te2": "text encoder 2"}


def summary_table(data: dict) -> str:
    """One row a checkpoint: what it costs and how far from the reference it draws."""
    titles = ["Size", "Bits: UNet", "file", "Weight error", *(_title(m) for m in data["metrics"])]
    head = heading("Checkpoint", kind="text") + "".join(
        heading(title, column) for column, title in enumerate(titles, 1))
    rows = []
    for order, checkpoint in enumerate(data["checkpoints"]):
        error = checkpoint["weight_error"]["unet"] if order else None
        cells = [cell(size(checkpoint["file_bytes"]), checkpoint["file_bytes"]),
                 *(cell(number(checkpoint["bits"][name], 2), checkpoint["bits"][name]) for name in ("unet", "file")),
                 cell("reference" if not order else number(error, 5), error)]
        for metric in data["metrics"]:
            found = checkpoint["metrics"].get(metric["name"])
            cells.append(cell("–") if found is None else cell(number(found["value"], metric["digits"]), found["value"],
                                                              small=interval(found, metric["digits"])))
        rows.append(f'<tr><td class="text name"><span class="key k{order % 6}">{checkpoint["letter"]}</span>'
                    f'{bdi(checkpoint["name"])}<small>{text(checkpoint["kind"])}</small></td>{"".join(cells)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def difference_table(data: dict) -> str:
    """Checkpoints against each other, prompt by prompt; empty with one checkpoint beside the reference."""
    if not data["differences"]:
        return ""
    head = heading("", kind="text") + "".join(heading(_title(m)) for m in data["metrics"])
    rows = []
    for pair in data["differences"]:
        cells = [f'<td class="text"><b>{pair["of"]}</b> minus <b>{pair["minus"]}</b></td>']
        for metric in data["metrics"]:
            found = pair["metrics"].get(metric["name"])
            cells.append(cell("–") if found is None else cell(
                number(found["value"], metric["digits"]), found["value"],
                small=f"{interval(found, metric['digits'])}{_verdict(pair, metric, found)}"))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return ("<h2>Against each other</h2><div class=\"scroll\"><table><thead><tr>" + head + "</tr></thead><tbody>"
            + "".join(rows) + "</tbody></table></div>"
            + tag("p", "Paired: the difference of each prompt, then its median or mean. A checkpoint is named "
                       "where the whole interval lies on its side.", "soft small"))


def layer_table(data: dict) -> str:
    """One row a layer of the UNet and the text encoders, for each checkpoint what it stores and its error."""
    letters = list(data["layers"])
    by_name = {letter: {row["name"]: row for row in rows} for letter, rows in data["layers"].items()}
    names = dict.fromkeys(name for rows in by_name.values() for name in rows)
    groups = "".join(f'<th scope="colgroup" class="edge" colspan="{4 if index else 3}"><span class="key '
                     f'k{index % 6}">{letter}</span></th>' for index, letter in enumerate(letters))
    titles = [("Layer", "text"), ("Part", "text"), ("Role", "text"), ("Weights", "")]
    for index in range(len(letters)):
        titles += [("stored", "text edge"), ("bits", ""), ("bytes", "")] + [("error", "")] * bool(index)
    head = "".join(heading(title, column, kind) for column, (title, kind) in enumerate(titles))
    body = "".join(_layer_row(name, [by_name[letter].get(name) for letter in letters]) for name in names)
    return ("<h2>Layers</h2><div class=\"tools\"><input id=\"filter\" type=\"search\" placeholder=\"Filter: attn2 "
            f"to_k\" aria-label=\"Filter layers\"><span class=\"soft small\">{len(names)} layers; click a heading to "
            "sort.</span></div><div class=\"scroll tall\"><table id=\"layers\"><thead><tr class=\"group\">"
            f"<th colspan=\"4\"></th>{groups}</tr><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def _layer_row(name: str, rows: list[dict | None]) -> str:
    row = next(row for row in rows if row)
    weights = 1
    for side in row["shape"]:
        weights *= side
    cells = [text_cell(short_name(name), "layer"), text_cell(PARTS.get(row["component"], row["component"])),
             text_cell(row["role"]), cell(" × ".join(map(str, row["shape"])), weights)]
    for index, own in enumerate(rows):
        if own is None:
            cells.append('<td class="text edge">–</td>' + cell("–") * (3 if index else 2))
            continue
        cells += [text_cell(own["stored"], "text edge"), cell(number(own["bits"], 2), own["bits"]),
                  cell(f"{own['bytes']:,}", own["bytes"])]
        if index:
            cells.append(cell(number(own["error"], 5), own["error"]))
    return f"<tr>{''.join(cells)}</tr>"


def short_name(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _title(metric: dict) -> str:
    return f"{metric['title']}, {metric['unit']}" if metric["unit"] else metric["title"]


def _verdict(pair: dict, metric: dict, found: dict) -> str:
    if not found["excludes_zero"]:
        return ""
    better = (found["value"] > 0) == metric["higher_is_better"]
    return f": {pair['of'] if better else pair['minus']} closer"
