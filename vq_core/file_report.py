"""What a file lost, in words: its plan, the weight error by what layers do, the worst layers, and its comparison."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .describe import comparison_lines, size, spec_name
from .inspection import StoredTensor

# What layers do, by arch.Layer.role; "other" is what no pattern names.
GROUPS = (("self attention", r"self_.*|attention"), ("cross attention", r"cross_.*"), ("feed forward", r"ff_.*|mlp"),
          ("convolution", r"conv\d|shortcut|downsample|upsample|conv_in|conv_out"),
          ("projection", r"proj_in|proj_out|projection"), ("embedding", r".*embed.*|time_proj|position"))
OTHER = "other"
WORST = 8                                  # layers that are named
_PARTS = {"unet": "UNet", "te1": "first text encoder", "te2": "second text encoder", "vae": "VAE"}
_LONGEST = 160


@dataclass(frozen=True)
class ErrorGroup:
    """Coded layers that do the same in one part of the model."""

    part: str                              # "UNet", "first text encoder", ...
    what: str                              # of GROUPS, or "other"
    layers: int
    bits: float                            # stored bits a weight
    mean: float                            # squared error over squared norm, mean over the weights
    worst: float


def group_of(role: str) -> str:
    """A layer's role -> what it does."""
    return next((name for name, pattern in GROUPS if re.fullmatch(pattern, role)), OTHER)


def errors_of(info: dict) -> dict[str, float]:
    """Layer -> relative error, from what inspect_file found; empty where the file does not know."""
    return {layer["name"]: layer["relative_error"] for layer in info["layers"] if "relative_error" in layer}


def error_groups(info: dict, tensors: Sequence[StoredTensor]) -> list[ErrorGroup]:
    """Groups in order of parts, then of GROUPS; layers without a known error are in none."""
    errors, found = errors_of(info), {}
    for tensor in tensors:
        if tensor.key in errors:
            found.setdefault((tensor.component, group_of(tensor.role)), []).append(tensor)
    order = [name for name, _ in GROUPS] + [OTHER]
    parts = [*_PARTS, *sorted({part for part, _ in found} - set(_PARTS))]
    return [_group(_PARTS.get(part, part), what, found[part, what], errors) for part in parts for what in order
            if (part, what) in found]


def describe_report(info: dict, tensors: Sequence[StoredTensor]) -> str:
    """The text of the node Report (VQ)."""
    bits, coded = info["bits"], {layer["name"] for layer in info["layers"]}
    kept = sum(1 for t in tensors if t.weights and len(t.shape) in (2, 4) and t.key not in coded)
    lines = [f"{info['architecture']}, {size(info['file_bytes'])}, bits a weight: coded layers {bits['coded']:.3f}, "
             f"whole UNet {bits['unet']:.3f}, file {bits['file']:.3f}",
             f"{plan_line(info['plan'])}; {kept} matrices kept as they were"]
    errors = errors_of(info)
    if errors:
        lines.append("weight error (squared error over squared norm), mean and worst layer:")
        lines += [f"  {f'{g.part}, {g.what}':38s} {g.layers:4d} layers  {g.bits:5.2f} bits  {g.mean:.4f}  {g.worst:.4f}"
                  for g in error_groups(info, tensors)]
        lines.append("worst layers:")
        worst = sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:WORST]
        lines += [f"  {error:.4f}  {key:.{_LONGEST}}" for key, error in worst]
    else:
        lines.append("the file does not say its weight error: `vqpack verify FILE --against ORIGINAL` measures it")
    if info["comparison"]:
        return "\n".join(lines + comparison_lines(info["comparison"]))
    return "\n".join([*lines, "no comparison of pictures is in this file: `vqpack compare ORIGINAL FILE -o DIR` makes "
                              "one, `vqpack attach FILE DIR` puts it into a copy"])


def plan_line(plan) -> str:
    """`plan: UNet trellis 3, text encoder palette 6, embedding uniform 8, 1 rule`"""
    if not isinstance(plan, dict) or not isinstance(plan.get("unet"), dict):
        return "plan: not known"
    parts = [f"{name} {_spec(plan[key])}" for name, key in (("UNet", "unet"), ("text encoder", "text_encoder"),
                                                            ("embedding", "embedding")) if key in plan]
    for key, what in (("rules", "rule"), ("layers", "single layer")):
        count = len(plan[key]) if isinstance(plan.get(key), list | dict) else 0
        parts += [f"{count} {what}{'s' * (count != 1)}"] * bool(count)
    return "plan: " + ", ".join(parts)


def _spec(spec) -> str:
    if not isinstance(spec, dict) or not isinstance(spec.get("kind"), str):
        return "not known"
    return "kept" if spec["kind"] == "dense" else spec_name(spec)[:40]


def _group(part: str, what: str, tensors: list[StoredTensor], errors: dict[str, float]) -> ErrorGroup:
    weights = sum(t.weights for t in tensors)
    return ErrorGroup(part, what, len(tensors), 8 * sum(t.nbytes for t in tensors) / weights,
                      sum(t.weights * errors[t.key] for t in tensors) / weights, max(errors[t.key] for t in tensors))
