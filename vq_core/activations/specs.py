"""What becomes of activations: frozen records, JSON in and out, presets by name (docs/activations.md)."""
from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields

from ..errors import PlanError

BINS = 20                                  # statistics are kept for so many stretches of the way from noise to picture
INTERVALS = (1, 2, 4, 5, 10, 20)           # what they can be merged into
AXES = ("auto", "paper", "channel", "token")
SCORES = ("keep", "row_uniform", "log2", "log_r")
SCALES = ("sample", "batch")
# LDM keys. Embeddings, first and last convolution: 1 % of the weights, and what every step begins and ends with.
DENSE_SPOTS = r"\.(time_embed|label_emb|emb_layers|input_blocks\.0\.0|out\.2)\b"
TEXT_SPOTS = r"\.attn2\.to_[kv]\b"         # computed once a prompt, so nothing is gained there


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise PlanError(message)


def _check_bits(bits: int) -> None:
    _check(type(bits) is int and 2 <= bits <= 8, f"activation bits must be 2 to 8, got {bits!r:.40}")


def _check_intervals(intervals: int) -> None:
    _check(intervals in INTERVALS, f"intervals must be one of {', '.join(map(str, INTERVALS))}, got {intervals!r:.40}")


@dataclass(frozen=True)
class KeepSpec:
    """As they are, 16 or 32 bits."""

    kind = "keep"


@dataclass(frozen=True)
class TokenSpec:
    """Symmetric integers with one scale a token, found anew at every call; needs no statistics.

    rotated: in the domain the layer's codes are rotated in. A convolution larger than 1x1 has one scale a picture.
    """

    bits: int = 8
    rotated: bool = True
    kind = "token"

    def __post_init__(self):
        _check_bits(self.bits)
        _check(type(self.rotated) is bool, f"rotated must be true or false, got {self.rotated!r:.40}")


@dataclass(frozen=True)
class StaticSpec:
    """Asymmetric integers with one range a layer, or a concatenated source of it, for each timestep interval.

    intervals = 1: Q-Diffusion (arXiv 2302.04304); one for every step of a 20-step sampler: TALSQ (2310.03270) as the AQ
    thesis (2506.05960) uses it, looked up by noise level.
    """

    bits: int = 8
    intervals: int = 1
    kind = "static"

    def __post_init__(self):
        _check_bits(self.bits)
        _check_intervals(self.intervals)


@dataclass(frozen=True)
class GroupSpec:
    """DGQ (arXiv 2501.04304): ranges for groups of channels or of tokens, grouped by their least and largest value.

    axis: named, or "paper", by the spread of the ranges (criterion D), or "auto", by error on held-out pictures: axis,
    or one range for all, and the number of intervals, at most `intervals`.
    """

    bits: int = 8
    groups: int = 8
    axis: str = "auto"
    intervals: int = BINS
    kind = "groups"

    def __post_init__(self):
        _check_bits(self.bits)
        _check(type(self.groups) is int and 1 <= self.groups <= 256,
               f"groups must be 1 to 256, got {self.groups!r:.40}")
        _check(self.axis in AXES, f"axis must be one of {', '.join(AXES)}, got {self.axis!r:.40}")
        _check_intervals(self.intervals)


@dataclass(frozen=True)
class ScoreSpec:
    """Softmax outputs: kept, uniform with a scale for each query, or logarithmic with one scale a sample.

    log_steps: levels a factor of two, of log_r. keep_start: in cross-attention the start token stays exact. scale_of:
    "batch" gives the logarithm the largest score of the whole batch, as DGQ does; results then depend on the company.
    """

    method: str = "keep"
    bits: int = 8
    log_steps: int = 4
    keep_start: bool = True
    scale_of: str = "sample"

    def __post_init__(self):
        _check(self.method in SCORES, f"scores must be one of {', '.join(SCORES)}, got {self.method!r:.40}")
        _check_bits(self.bits)
        _check(type(self.log_steps) is int and 1 <= self.log_steps <= 16,
               f"log_steps must be 1 to 16, got {self.log_steps!r:.40}")
        _check(type(self.keep_start) is bool, f"keep_start must be true or false, got {self.keep_start!r:.40}")
        _check(self.scale_of in SCALES, f"scale_of must be one of {', '.join(SCALES)}, got {self.scale_of!r:.40}")


InputSpec = KeepSpec | TokenSpec | StaticSpec | GroupSpec
KINDS = {cls.kind: cls for cls in (KeepSpec, TokenSpec, StaticSpec, GroupSpec)}
KEEP_DENSE = ((DENSE_SPOTS, KeepSpec()),)
KEEP_HARD = (*KEEP_DENSE, (TEXT_SPOTS, KeepSpec()))


@dataclass(frozen=True)
class Activations:
    """What happens to a UNet's activations. Of a layer's input an exact LDM key decides, then the first rule that
    matches its key, then `inputs`. attention: of queries, keys and values."""

    inputs: InputSpec = KeepSpec()
    attention: InputSpec = KeepSpec()
    scores: ScoreSpec = ScoreSpec()
    rules: tuple[tuple[str, InputSpec], ...] = KEEP_HARD
    layers: tuple[tuple[str, InputSpec], ...] = ()

    def spec_for(self, key: str, side: str = "input") -> InputSpec:
        """The spec of a layer's input or, side "output", of what becomes queries, keys or values."""
        if side == "output":
            return self.attention
        exact = dict(self.layers)
        if key in exact:
            return exact[key]
        return next((spec for pattern, spec in self.rules if re.search(pattern, key)), self.inputs)

    def to_json(self) -> dict:
        """-> the JSON object in plans"""
        return {"inputs": _to_json(self.inputs), "attention": _to_json(self.attention), "scores": asdict(self.scores),
                "rules": [{"match": pattern, "spec": _to_json(spec)} for pattern, spec in self.rules],
                "layers": {key: _to_json(spec) for key, spec in self.layers}}


def activations_from_json(data) -> Activations:
    """Inverse of to_json; unknown kinds and fields are refused by name."""
    known = {f.name for f in fields(Activations)}
    _check(isinstance(data, dict), f"activations must be a JSON object, got {data!r:.80}")
    _check_known(data, known, "activations")
    rules, layers, scores = data.get("rules", ()), data.get("layers", {}), data.get("scores", {})
    _check(isinstance(rules, list | tuple) and isinstance(layers, dict) and isinstance(scores, dict),
           "of activations, rules must be a list, layers and scores objects")
    _check_known(scores, {f.name for f in fields(ScoreSpec)}, "scores")
    return Activations(_from_json(data.get("inputs", {"kind": "keep"})),
                       _from_json(data.get("attention", {"kind": "keep"})), ScoreSpec(**scores),
                       tuple(map(_rule, rules)), tuple((key, _from_json(spec)) for key, spec in layers.items()))


def make_activations(name: str) -> Activations | None:
    """A preset by its name; None for "none"."""
    if name == "none":
        return None
    if name not in PRESETS:
        raise PlanError(f"unknown activations '{name}': expected none, {', '.join(PRESETS)}")
    return PRESETS[name]


PRESETS = {
    "int8": Activations(TokenSpec(8)), "int6": Activations(TokenSpec(6)),
    "qdiffusion8": Activations(StaticSpec(8), StaticSpec(8), rules=KEEP_DENSE),
    "qdiffusion6": Activations(StaticSpec(6), StaticSpec(6), rules=KEEP_DENSE),
    "talsq8": Activations(StaticSpec(8, BINS), StaticSpec(8, BINS), rules=KEEP_DENSE),
    "talsq6": Activations(StaticSpec(6, BINS), StaticSpec(6, BINS), rules=KEEP_DENSE),
    "dgq8": Activations(GroupSpec(8), GroupSpec(8), ScoreSpec("row_uniform", 8), KEEP_DENSE),
    "dgq6": Activations(GroupSpec(6), GroupSpec(6), ScoreSpec("row_uniform", 6), KEEP_DENSE),
    "dgq8-paper": Activations(GroupSpec(8, axis="paper"), GroupSpec(8, axis="paper"),
                              ScoreSpec("log2", 8, scale_of="batch"), KEEP_DENSE),
    "dgq6-paper": Activations(GroupSpec(6, axis="paper"), GroupSpec(6, axis="paper"),
                              ScoreSpec("log2", 6, scale_of="batch"), KEEP_DENSE),
}


def _to_json(spec: InputSpec) -> dict:
    return {"kind": spec.kind, **asdict(spec)}


def _from_json(data) -> InputSpec:
    _check(isinstance(data, dict) and data.get("kind") in KINDS,
           f"activations of a layer must be an object whose kind is one of {', '.join(KINDS)}, got {data!r:.80}")
    cls = KINDS[data["kind"]]
    options = {name: value for name, value in data.items() if name != "kind"}
    _check_known(options, {f.name for f in fields(cls)}, f"'{cls.kind}' activations")
    return cls(**options)


def _rule(rule) -> tuple[str, InputSpec]:
    _check(isinstance(rule, dict) and set(rule) == {"match", "spec"} and isinstance(rule["match"], str),
           f"a rule must be {{\"match\": regular expression, \"spec\": activations}}, got {rule!r:.80}")
    try:
        re.compile(rule["match"])
    except re.error as error:
        raise PlanError(f"'{rule['match']}' is not a regular expression: {error}") from None
    return rule["match"], _from_json(rule["spec"])


def _check_known(data: dict, known: set[str], what: str) -> None:
    unknown = sorted(set(data) - known)
    _check(not unknown, f"{what} have no entry '{unknown[0] if unknown else ''}': expected "
                        f"{', '.join(sorted(known)) or 'none'}")
