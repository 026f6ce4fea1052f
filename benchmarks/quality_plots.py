"""The plots of quality.py: fidelity over stored bits, SNR of the noise predictions over time, a grid of pictures."""
from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from quality_measure import captions, eight_bits  # noqa: E402
from quality_report import Judged, curve_of  # noqa: E402
from quality_students import LINEARS, TRELLIS  # noqa: E402

PANELS = (("latent_psnr", "latent PSNR, dB"), ("noise_snr", "prediction SNR, dB"), ("image_psnr", "image PSNR, dB"),
          ("ssim", "SSIM"), ("attributes", "attribute score"))
OURS = {TRELLIS: ("#c1121f", "trellis (ours)"), LINEARS: ("#c1121f", "trellis (ours)"),
        "ours-additive": ("#7b5ea7", "additive books"), "ours-product": ("#b08900", "product books"),
        "ours-palette-rows": ("#2a9d8f", "palette, row scales"), "ours-palette": ("#6c757d", "palette, no scales"),
        "ours-uniform": ("#8d99ae", "uniform, rounded")}
PEERS = {"sdnq": ("#1d4ed8", "o"), "gguf": ("#111111", "s"), "optimum-quanto": ("#e07a00", "D"),
         "hqq": ("#15803d", "^"), "bitsandbytes": ("#be185d", "v"), "torchao": ("#0e7490", "P"),
         "comfy-kitchen": ("#854d0e", "X"), "fp8": ("#555555", "*")}
SHORT = (("sdnq-uint", "u"), ("quanto-", ""), ("gguf-", ""), ("torchao-int4-", ""), ("kitchen-w4a8-", ""), ("bnb-", ""),
         ("hqq-", ""), ("-codebook", " book"), ("-hadamard", " rot"), ("-fp16-scales", " fp16"),
         ("-uint8-scales", " u8"), ("-tensor", " tensor"), ("-rows", " rows"))
LABELED, LABEL_WIDTH, LABEL_HEIGHT = 2, 58, 9             # panels with names; pixels at the figures' 100 dpi
LEAST_GAP = 0.9                            # dB between two curves' names
MOST_NAMES = 5                             # settings of a peer whose points get names
MOST_BITS = 7.0                            # of the UNet, in the panels where all layers are coded
INK, SOFT = "#222222", "#8a8a8a"
CURVES = ("ours-trellis-4", "ours-trellis-3", "ours-trellis-2", "gguf-Q4_K", "gguf-Q3_K", "gguf-Q2_K", "ours-uniform-3",
          "ours-palette-4", "quanto-qint4-hqq", "sdnq-uint3-uint8-scales")
PICTURES = ("ours-trellis-4", "gguf-Q4_K", "ours-trellis-3", "gguf-Q3_K", "sdnq-uint3-uint8-scales", "ours-trellis-2",
            "gguf-Q2_K", "ours-additive-2", "ours-palette-2", "quanto-qint2-hqq")
GRID_PROMPTS = 7


def draw(judged: list[Judged], teacher, settings, folder: Path) -> None:
    """Write quality-fidelity.png, -linears, -timesteps and -pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams.update({"font.size": 9, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "text.color": INK,
                            "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
                            "axes.spines.right": False, "axes.grid": True, "grid.color": "#e8e8e8"})
    students = [one for one in judged if one.found["family"]]
    named = {one.name: one for one in students}
    for name, figure in (("fidelity", _fidelity(students)), ("linears", _linears(students)),
                         ("timesteps", _timesteps(named)), ("pictures", _pictures(named, teacher, settings))):
        figure.savefig(folder / f"quality-{name}.png", dpi=100)
    pyplot.close("all")


def _fidelity(students: list[Judged]):
    """All layers coded: one panel a metric, the legend in the sixth."""
    names = {one.name for one in _linear(students)}
    every = [one for one in students if one.name not in names and one.found["bits_unet"] <= MOST_BITS]
    figure, axes = pyplot.subplots(2, 3, figsize=(14.5, 9))
    for axis, (metric, title) in zip(axes.flat, PANELS):
        _panel(axis, every, metric, "bits_unet")
        axis.set(title=title, xlabel="stored bits a weight, whole UNet")
    axes[1, 2].axis("off")
    axes[1, 2].legend(handles=_legend(every), loc="center", frameon=False, fontsize=11, labelspacing=0.9,
                      title="Median or mean of the prompts,\n95 % intervals", title_fontsize=11)
    figure.tight_layout(h_pad=2)
    for axis, (metric, _) in zip(axes.flat, PANELS[:LABELED]):
        _label(axis, every, metric, "bits_unet")
    return figure


def _linears(students: list[Judged]):
    """Linear layers alone coded, the convolutions fp16 on both sides."""
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5.2))
    for axis, (metric, title) in zip(axes, PANELS):
        _panel(axis, _linear(students), metric, "bits_layers")
        axis.set(title=title, xlabel="stored bits a weight, linear layers")
    axes[0].legend(handles=_legend(_linear(students)), loc="upper left", frameon=False)
    figure.tight_layout()
    for axis, (metric, _) in zip(axes, PANELS[:LABELED]):
        _label(axis, _linear(students), metric, "bits_layers")
    return figure


def _linear(students: list[Judged]) -> list[Judged]:
    return [one for one in students if LINEARS in (one.found["family"], curve_of(one.found)[0])]


def _panel(axis, students: list[Judged], metric: str, bits: str) -> None:
    for family, (color, _) in OURS.items():
        points = sorted((one.found[bits], one) for one in students if one.found["family"] == family
                        and metric in one.metrics and not isinstance(one.metrics[metric][1], str))
        if not points:
            continue
        x, intervals = [p for p, _ in points], [one.metrics[metric][1] for _, one in points]
        main = family in (TRELLIS, LINEARS)
        axis.plot(x, [i.value for i in intervals], color=color, lw=2.4 if main else 1.3, marker="o",
                  ms=4.5 if main else 3, zorder=4 if main else 2)
        if main:
            axis.fill_between(x, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.13, lw=0)
    for one in students:
        if one.found["family"] in PEERS and metric in one.values:
            color, marker = PEERS[one.found["family"]]
            x, interval = one.found[bits], one.metrics[metric][1]
            axis.errorbar(x, interval.value, yerr=[[interval.value - interval.low], [interval.high - interval.value]],
                          color=color, marker=marker, ms=5, lw=0, elinewidth=0.7, zorder=3, alpha=0.9)


def _label(axis, students: list[Judged], metric: str, bits: str) -> None:
    """A name right of each point of the peers with few, lower where another would cover it; the axes must have their
    final size. A peer with many settings is a cloud: its names are in the table."""
    placed: list[tuple[float, float]] = []
    families = [one.found["family"] for one in students]
    points = [(one.found[bits], one.metrics[metric][1].value, one) for one in students
              if one.found["family"] in PEERS and families.count(one.found["family"]) <= MOST_NAMES]
    for x, y, one in sorted(points, key=lambda point: (-point[1], point[0])):
        left, height = axis.transData.transform((x, y))
        while any(abs(left - other) < LABEL_WIDTH and abs(height - at) < LABEL_HEIGHT for other, at in placed):
            height -= 2
        placed.append((left, height))
        axis.annotate(_short(one.name), axis.transData.inverted().transform((left, height)), xytext=(5, -3),
                      textcoords="offset points", fontsize=7, color=PEERS[one.found["family"]][0], zorder=5)


def _short(name: str) -> str:
    """A label beside a point whose color and shape tell the family."""
    for long, short in SHORT:
        name = name.replace(long, short)
    return name


def _legend(students: list[Judged]) -> list:
    families = {one.found["family"] for one in students}
    line = pyplot.Line2D
    lines = {TRELLIS, LINEARS} & families
    ours = [line([], [], color=color, lw=2.4 if family in lines else 1.3, marker="o", ms=4, label=label)
            for family, (color, label) in OURS.items() if family in families and (family != LINEARS or len(lines) == 1)]
    return ours + [line([], [], color=color, marker=marker, lw=0, ms=6, label=family)
                   for family, (color, marker) in PEERS.items() if family in families]


def _timesteps(students: dict[str, Judged]):
    """Median over the prompts of the SNR at every step, with the prompt."""
    figure, axis = pyplot.subplots(figsize=(9, 5.2))
    curves = [(torch.tensor(students[name].found["noise_snr"])[:, -1].median(1).values, students[name])
              for name in CURVES if name in students]
    height = math.inf
    for snr, one in sorted(curves, key=lambda curve: -float(curve[0][0])):
        color, _ = OURS.get(one.found["family"], PEERS.get(one.found["family"], (INK, "")))
        ours, times = one.found["family"] == TRELLIS, one.found["timesteps"]
        axis.plot(times, snr, color=color, lw=2.4 if ours else 1.3, ls="-" if ours else "--",
                  marker="o" if ours else None, ms=4)
        height = min(float(snr[0]), height - LEAST_GAP)
        axis.annotate(f"{one.name.removeprefix('ours-')}  {one.found['bits_unet']:.2f} bits", (times[0], height),
                      xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=7.5, color=color)
    axis.set(xlabel="timestep (left: noise, right: picture)", ylabel="SNR of the noise prediction, dB",
             xlim=(1250, -10), xticks=range(0, 1001, 250))
    figure.tight_layout()
    return figure


def _pictures(students: dict[str, Judged], teacher, settings):
    """Students across; above each its bits and median latent PSNR, below each picture its own PSNR."""
    columns = []
    for one in (students[name] for name in PICTURES if name in students):
        columns.append((f"{_two_lines(one.name)}\n{one.found['bits_unet']:.2f} bits, "
                        f"{one.metrics['latent_psnr'][1].value:.1f} dB", one.found["pictures"],
                        one.values["image_psnr"][1].tolist(),
                        OURS[TRELLIS][0] if one.found["family"] == TRELLIS else INK))
    return grid(captions(settings)[:GRID_PROMPTS], eight_bits(teacher.images), columns)


def grid(prompts, theirs: torch.Tensor, columns: list[tuple[str, torch.Tensor, list[float], str]]):
    """Prompts down, the teacher's pictures uint8 [n, h, w, 3] first, then columns: title, pictures, PSNR, color."""
    figure, axes = pyplot.subplots(len(prompts), len(columns) + 1,
                                   figsize=(1.42 * (len(columns) + 1) + 1.7, 1.58 * len(prompts) + 0.9), squeeze=False)
    for row, prompt in enumerate(prompts):
        _cell(axes[row, 0], theirs[row], "")
        axes[row, 0].set_ylabel(_wrapped(prompt), rotation=0, ha="right", va="center", fontsize=7.5, labelpad=8)
        for column, (_, pictures, psnr, _) in enumerate(columns, 1):
            _cell(axes[row, column], pictures[row], f"{psnr[row]:.1f} dB" if math.isfinite(psnr[row]) else "equal")
    axes[0, 0].set_title("fp16\n16 bits\n", fontsize=8)
    for column, (title, _, _, color) in enumerate(columns, 1):
        axes[0, column].set_title(title, fontsize=8, color=color)
    figure.tight_layout(w_pad=0.3, h_pad=0.3)
    return figure


def _cell(axis, picture: torch.Tensor, text: str) -> None:
    axis.imshow(picture.numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel(text, fontsize=7, labelpad=2)


def _two_lines(name: str) -> str:
    """A name of at most two lines of 14 characters or so, broken at a dash."""
    name = name.removeprefix("ours-")
    if len(name) <= 14:
        return f"\n{name}"
    cut = name.rindex("-", 0, 14)
    return f"{name[:cut]}\n{name[cut:]}"


def _wrapped(text: str, width: int = 22) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
