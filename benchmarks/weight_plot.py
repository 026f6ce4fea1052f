"""Draws weight_error.py's picture: error over stored bits, our rates as a line, every peer as a point."""
from __future__ import annotations

from pathlib import Path

from equal_bits import CURVE, LEAST_SHARE, LINEARS, compare
from weight_layers import SETS

TITLES = {"sdxl-normal": "SDXL's shapes, Gaussian weights", "sdxl-trained-like": "SDXL's shapes, trained-like weights",
          "testbed": "the testbed's trained weights"}
LOOKS = {"sdnq": ("o", "#d95f02"), "gguf": ("s", "#7570b3"), "hqq": ("D", "#e7298a"), "bitsandbytes": ("^", "#66a61e"),
         "torchao": ("v", "#b8860b"), "optimum-quanto": ("P", "#a6761d"), "comfy-kitchen": ("X", "#1f78b4"),
         "ours-palette": ("_", "#555555"), "ours-additive": ("1", "#555555"), "ours-uniform": ("x", "#555555")}
NAMES = {"ours-palette": "palette, one table a tensor (Apple)", "ours-additive": "additive (VQDM)",
         "ours-uniform": "round to nearest", "sdnq": "SDNQ", "gguf": "GGUF K-quants", "hqq": "HQQ",
         "bitsandbytes": "bitsandbytes NF4", "torchao": "torchao int4", "optimum-quanto": "optimum-quanto",
         "comfy-kitchen": "comfy-kitchen W4A8"}
MARKED = {"gguf-Q2_K": "Q2_K", "gguf-Q3_K": "Q3_K", "gguf-Q4_K": "Q4_K", "gguf-Q5_K": "Q5_K",
          "ours-trellis-2": "2 bits", "ours-trellis-3": "3 bits", "ours-trellis-4": "4 bits"}
OURS = "#c00000"
BITS, ERRORS = (1.6, 5.8), (8e-4, 0.32)


def draw(rows: list[dict], path: Path) -> None:
    """rows as for equal_bits.compare; one panel a set. Nothing where matplotlib is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    found = [row for row in compare(rows) if row["metric"] == "plain" and row["error"] and _coded(row)]
    sets = [name for name in SETS if any(row["set"] == name for row in found)]
    if not sets:
        return
    figure = Figure(figsize=(5.2 * len(sets), 6), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, sets, strict=True):
        _panel(axis, [row for row in found if row["set"].removesuffix(LINEARS) == name], name)
    axes[0].set_ylabel("relative squared error of the weights")
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False,
                  title="pale: the same peer does better with another setting at no more bits")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axis, rows: list[dict], name: str) -> None:
    curve = sorted(_point(row) for row in rows if row["method"].startswith(CURVE))
    if name == "sdxl-normal":
        axis.plot(BITS, [4.0**-bits for bits in BITS], color="#999999", lw=1, ls="--",
                  label="Shannon's bound for Gaussian weights")
    axis.plot(*zip(*curve, strict=True), "-o", color=OURS, lw=2.2, ms=5, zorder=5, label="vqpack trellis")
    for family, (marker, color) in LOOKS.items():
        some = [row for row in rows if row["family"] == family]
        for row in sorted(some, key=lambda row: _is_best(row, some)):
            pale = not _is_best(row, some)
            axis.plot(*_point(row), marker, color=color, ms=7, mew=1.4, ls="", alpha=0.25 if pale else 1,
                      zorder=2 if pale else 3, mfc="white" if row["set"].endswith(LINEARS) else color,
                      label=None if pale else _label(row))
    for row in rows:
        _mark(axis, row)
    axis.set(title=TITLES[name], xlabel="stored bits a weight, everything counted", yscale="log", xlim=BITS,
             ylim=ERRORS)
    axis.grid(True, color="#e4e4e4", lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _mark(axis, row: dict) -> None:
    """Write a point's name below it, ours to the left of the line."""
    if row["method"] in MARKED:
        ours = row["method"].startswith(CURVE)
        axis.annotate(MARKED[row["method"]], _point(row), (-6, -4) if ours else (0, -6), textcoords="offset points",
                      ha="right" if ours else "center", va="top", fontsize=9, zorder=6,
                      color=OURS if ours else LOOKS[row["family"]][1])


def _point(row: dict) -> tuple[float, float]:
    """Bits and error"""
    return row["bits_where_coded"], row["error"][1]


def _is_best(row: dict, family: list[dict]) -> bool:
    """Whether no other setting of the family has less error at no more bits"""
    bits, error = _point(row)
    return not any(other[0] <= bits + 0.001 and other[1] < error for other in map(_point, family))


def _coded(row: dict) -> bool:
    """One point a method: on the whole set, or on its linear layers where it codes no more."""
    return row["coded_share"] >= LEAST_SHARE


def _label(row: dict) -> str:
    return NAMES[row["family"]] + (" (linear layers only)" if row["set"].endswith(LINEARS) else "")
