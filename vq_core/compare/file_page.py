"""The HTML page of one VQ file: sizes, bits, the error of every layer, its comparison, where it came from.

One file with everything in it and nothing loaded; all of a file's texts are foreign and come out escaped and shortened.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..container import Reader
from ..describe import comparison_lines, interval_text, size, spec_name
from ..file_report import WORST, error_groups, errors_of, plan_line
from ..inspection import StoredTensor, inspect_file, stored_tensors
from .file_pictures import Drawing, section
from .markup import bdi, cell, heading, number, shortened, tag, text, text_cell
from .report import page_end, page_start
from .tables import PARTS, short_name

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 190, 70, 24, 8
NOT_COMPARED = ("Pictures: not measured on this file. Compare (VQ) in ComfyUI draws with it and with the original. "
                "`vqpack compare ORIGINAL FILE -o DIR` draws many prompts: `vqpack report FILE --comparison DIR` shows "
                "the pictures, `vqpack attach FILE DIR` puts the numbers into a copy.")
LIMITS = ("The weight error is the squared error over the squared norm of the original's weights. It says how exact "
          "the codes are, not how good a picture is: layers differ in how much their errors matter.")


def write_file_page(path: str | Path, output: str | Path, drawings: Sequence[Drawing] = ()) -> Path:
    """Write the page of a VQ file -> output. VQError in one sentence where it cannot be read."""
    from .output import write_text

    write_text(Path(output), file_page(path, drawings))
    return Path(output)


def file_page(path: str | Path, drawings: Sequence[Drawing] = ()) -> list[str]:
    """The page of a VQ file in pieces; reads headers and the report, no weights. drawings: pictures to show in it."""
    path = Path(path)
    info = inspect_file(path)
    with Reader(path) as reader:
        tensors = stored_tensors(reader)
    return list(make_page(path.name, info, tensors, drawings))


def make_page(name: str, info: dict, tensors: Sequence[StoredTensor], drawings: Sequence[Drawing] = ()
              ) -> Iterator[str]:
    """The page of what inspect_file and stored_tensors found, in pieces."""
    bits = info["bits"]
    name = shortened(name)
    yield page_start(f"Report of {name}")
    said = (f"{shortened(info['architecture'])}, {size(info['file_bytes'])}; bits a weight: coded layers "
            f"{bits['coded']:.3f}, whole UNet {bits['unet']:.3f}, file {bits['file']:.3f}")
    plan = shortened(plan_line(info["plan"]))
    yield (f"<header><div><h1>{bdi(name)}</h1>{tag('p', said, 'soft')}{tag('p', plan, 'soft')}</div>"
           "<button id=\"theme\" type=\"button\">Dark / light</button></header>")
    yield from _pictures(info["comparison"], drawings)
    yield from _errors(info, tensors)
    yield _layers(info, tensors)
    yield from _origin(info)
    yield page_end()


def _pictures(comparison: dict | None, drawings: Sequence[Drawing]) -> Iterator[str]:
    """The attached comparison's numbers, then pictures; where there is neither, how to make them."""
    if not comparison and not drawings:
        yield f"<p class=\"banner\">{text(NOT_COMPARED)}</p>"
        return
    yield "<h2>Pictures</h2>"
    if comparison:
        yield _comparison(comparison)
    yield from section(drawings)


def _comparison(comparison: dict) -> str:
    rows = "".join(f"<tr>{text_cell(metric['title'])}{text_cell(interval_text(metric))}</tr>"
                   for metric in comparison["metrics"])
    return (f"{tag('p', comparison_lines(comparison)[0], 'soft')}<div class=\"scroll\"><table><thead><tr>"
            f"{heading('Distance', kind='text')}{heading('Value and 95 % interval', kind='text')}</tr></thead><tbody>"
            f"{rows}</tbody></table></div>")


def _errors(info: dict, tensors: Sequence[StoredTensor]) -> Iterator[str]:
    errors, groups = errors_of(info), error_groups(info, tensors)
    if not errors:
        yield tag("p", "The file does not say its weight error: `vqpack verify FILE --against ORIGINAL` measures it.")
        return
    titles = ("Layers", "Bits", "Mean error", "Worst layer")
    head = heading("Part", 0, "text") + "".join(heading(title, column) for column, title in enumerate(titles, 1))
    rows = "".join(f"<tr>{text_cell(f'{g.part}, {g.what}')}{cell(str(g.layers), g.layers)}"
                   f"{cell(number(g.bits, 2), g.bits)}{cell(number(g.mean, 5), g.mean)}"
                   f"{cell(number(g.worst, 5), g.worst)}</tr>" for g in groups)
    yield (f"<h2>Weight error</h2><div class=\"scroll\"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
           f"</table></div>{tag('p', LIMITS, 'soft small')}")
    worst = set(sorted(errors, key=lambda key: (-errors[key], key))[:WORST])
    yield _bars([(t, errors[t.key]) for t in tensors if t.key in errors], worst)


def _bars(found: list[tuple[StoredTensor, float]], worst: set[str]) -> str:
    """A bar for each coded layer in network order, as high as its error; the worst ones in another color."""
    largest = max((error for _, error in found), default=0.0) or 1.0
    step, high = (WIDTH - LEFT) / max(1, len(found)), HEIGHT - TOP - BOTTOM
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = TOP + high * (1 - share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/><text x="{LEFT - 6}" '
                     f'y="{y + 4:.1f}" text-anchor="end">{100 * share * largest:.2g} %</text>')
    for index, (tensor, error) in enumerate(found):
        bar = high * error / largest
        kind, name = ' class="worst"' if tensor.key in worst else "", text(shortened(short_name(tensor.key)))
        parts.append(f'<rect{kind} x="{LEFT + index * step:.2f}" y="{TOP + high - bar:.2f}" width="{0.85 * step:.2f}" '
                     f'height="{bar:.2f}"><title>{name}: {error:.5f}</title></rect>')
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Weight error of every coded layer in network '
            f'order">{"".join(parts)}<text x="{LEFT}" y="{HEIGHT - 6}">every coded layer in network order; the '
            f'{WORST} worst stand out</text></svg>')


def _layers(info: dict, tensors: Sequence[StoredTensor]) -> str:
    errors, stored = errors_of(info), {layer["name"]: shortened(spec_name(layer["spec"])) for layer in info["layers"]}
    titles = (("Layer", "text"), ("Part", "text"), ("Role", "text"), ("Weights", ""), ("stored", "text"), ("bits", ""),
              ("bytes", ""), ("error", ""))
    head = "".join(heading(title, column, kind) for column, (title, kind) in enumerate(titles))
    matrices = [t for t in tensors if len(t.shape) in (2, 4) and t.weights]
    rows = "".join(
        f"<tr>{text_cell(shortened(short_name(t.key)), 'layer')}{text_cell(PARTS.get(t.component, t.component))}"
        f"{text_cell(shortened(t.role))}{cell(' × '.join(map(str, t.shape)), t.weights)}"
        f"{text_cell(stored.get(t.key, 'kept'))}{cell(number(t.bits, 2), t.bits)}{cell(f'{t.nbytes:,}', t.nbytes)}"
        f"{cell(number(errors.get(t.key), 5), errors.get(t.key))}</tr>" for t in matrices)
    return ("<h2>Layers</h2><div class=\"tools\"><input id=\"filter\" type=\"search\" placeholder=\"Filter: attn2 "
            f"to_k\" aria-label=\"Filter layers\"><span class=\"soft small\">{len(matrices)} matrices; click a heading "
            "to sort.</span></div><div class=\"scroll tall\"><table id=\"layers\"><thead><tr>"
            f"{head}</tr></thead><tbody>{rows}</tbody></table></div>")


def _origin(info: dict) -> Iterator[str]:
    source = info["source"] if isinstance(info["source"], dict) else {}
    facts = {"made from": source.get("name"), "its SHA-256": source.get("sha256"), "made by": info["tool"],
             "settings": info["settings"], **info["modelspec"]}
    yield "<h2>Where it came from</h2><dl>" + "".join(
        f"<dt>{bdi(shortened(key))}</dt><dd>{bdi(shortened(fact))}</dd>"
        for key, fact in facts.items() if fact not in (None, "", {})) + "</dl>"
