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
OURS = "#c00000"
BITS, ERRORS = (1.85, 5.65), (8e-4, 0.32)


def draw(rows: list[dict], path: Path) -> None:
    """rows as for equal_bits.compare; one panel a set. Nothing where matplotlib is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    found = [row for row in compare(rows) if row["metric"] == "plain" and row["error"]]
    sets = [name for name in SETS if any(row["set"] == name for row in found)]
    if not sets:
        return
    figure = Figure(figsize=(5.2 * len(sets), 5.6), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, sets, strict=True):
        _panel(axis, [row for row in found if row["set"].removesuffix(LINEARS) == name], name)
    axes[0].set_ylabel("relative squared error of the weights")
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axis, rows: list[dict], name: str) -> None:
    curve = sorted((row["bits"], row["error"][1]) for row in rows if row["method"].startswith(CURVE))
    if name == "sdxl-normal":
        axis.plot(BITS, [4.0**-bits for bits in BITS], color="#999999", lw=1, ls="--",
                  label="Shannon's bound for Gaussian weights")
    axis.plot(*zip(*curve, strict=True), "-o", color=OURS, lw=2.2, ms=5, zorder=5, label="vqpack trellis")
    for family, (marker, color) in LOOKS.items():
        for row in (row for row in rows if row["family"] == family and _shown(row)):
            axis.plot(row["bits_where_coded"], row["error"][1], marker, color=color, ms=7, mew=1.4, ls="",
                      mfc=color if not row["set"].endswith(LINEARS) else "white", label=_label(row))
    axis.set(title=TITLES[name], xlabel="stored bits a weight, everything counted", yscale="log", xlim=BITS,
             ylim=ERRORS)
    axis.grid(True, which="major", color="#e4e4e4", lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _shown(row: dict) -> bool:
    """One point a method: on the whole set, or on its linear layers where it codes no more."""
    return row["coded_share"] >= LEAST_SHARE


def _label(row: dict) -> str:
    return NAMES[row["family"]] + (" (linear layers only)" if row["set"].endswith(LINEARS) else "")
