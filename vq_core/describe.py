"""An inspected file in words: the text of `vqpack inspect` and of the node Inspect (VQ)."""
from __future__ import annotations

from .provenance import provenance_lines


def describe(info: dict) -> str:
    """The short text of what inspection.inspect_file found."""
    bits, layers = info["bits"], info["layers"]
    lines = [f"{info['architecture']}, format {info['format_version']}, {size(info['file_bytes'])}",
             f"bits a weight: coded layers {bits['coded']:.3f}, whole UNet {bits['unet']:.3f}, file {bits['file']:.3f}",
             *provenance_lines(info)]
    counts: dict[str, list[int]] = {}
    for layer in layers:
        counts.setdefault(spec_name(layer["spec"]), []).append(layer["bytes"])
    lines += [f"  {len(sizes):4d} layers {name:18s} {size(sum(sizes))}" for name, sizes in counts.items()]
    worst = sorted((x for x in layers if "relative_error" in x), key=lambda x: -x["relative_error"])[:5]
    if worst:
        lines.append("largest relative weight error (squared error over squared norm):")
        lines += [f"  {layer['relative_error']:.4f}  {layer['name']}" for layer in worst]
    if info.get("comparison"):
        lines += comparison_lines(info["comparison"])
    return "\n".join(lines)


def comparison_lines(comparison: dict) -> list[str]:
    """The short form of a comparison (compare/short.py); the first line says against what and how."""
    reference, drawn = comparison["reference"], comparison["settings"]
    what = "this file's own source, " if reference["is_source"] else ""
    prompts, (height, width) = _count(drawn["prompts"], f"{drawn['prompt_source']} prompt"), drawn["size"]
    lines = [f"compared with {reference['name']} ({what}{reference['kind']}, {size(reference['bytes'])}): {prompts}, "
             f"{_count(drawn['seeds'], 'seed')} each, {_count(drawn['steps'], 'step')}, sampler: {drawn['sampler']}, "
             f"guidance {drawn['guidance']:g}, {width} x {height}, {comparison['tool']}"]
    return lines + [f"  {metric['title']:16s} {interval_text(metric)}" for metric in comparison["metrics"]]


def interval_text(metric: dict) -> str:
    """`21.5 dB  [19.0, 24.0]`: the value and its 95 % interval"""
    low, value, high = (_shown(metric[name], metric["digits"]) for name in ("low", "value", "high"))
    unit = f" {metric['unit']}" if metric["unit"] else ""
    return f"{value}{unit}" + (f"  [{low}, {high}]" if metric["count"] > 1 else "  (one prompt)")


def spec_name(spec: dict) -> str:
    """`trellis 3`, `additive 2x256/8`"""
    rate = spec.get("bits") or f"{spec.get('num_codebooks')}x{spec.get('codebook_size')}/{spec.get('group')}"
    return f"{spec['kind']} {rate}"


def size(nbytes: float) -> str:
    """Decimal units, as file managers and model sites print them."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit != "MB" else f"{nbytes:.1f} MB"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def _shown(value: float | str | None, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else value or "-"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
