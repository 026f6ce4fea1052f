"""The plan: which spec codes which layer. Versioned, readable, editable JSON (`--plan FILE`)."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from .activations.specs import Activations, activations_from_json, make_activations
from .errors import PlanError
from .spec import DenseSpec, Spec, UniformSpec, make_spec, spec_from_json, spec_to_json

PLAN_VERSION = 1
EMBEDDING_SPEC = UniformSpec(bits=8)       # token embeddings: 0.003 % relative error, a row per token
PARTS = ("unet", "te", "vae")


@dataclass(frozen=True)
class Plan:
    """unet / text_encoder / embedding: the spec of each kind of layer; rules override by regular expression (first
    match wins), layers by exact key (before the rules). activations: what the UNet is meant to be run with, None = as
    they come."""

    unet: Spec
    text_encoder: Spec = field(default_factory=DenseSpec)
    embedding: Spec = field(default_factory=DenseSpec)
    rules: tuple[tuple[str, Spec], ...] = ()
    layers: tuple[tuple[str, Spec], ...] = ()
    activations: Activations | None = None

    def spec_for(self, layer) -> Spec:
        """The spec of one arch.Layer; dense where the architecture keeps it dense and no entry names it."""
        if layer.key in self._exact:
            return self._exact[layer.key]
        if layer.dense:
            return DenseSpec()
        for pattern, spec in self.rules:
            if re.search(pattern, layer.key):
                return spec
        if layer.component == "unet":
            return self.unet
        if layer.component in ("te1", "te2"):
            return self.embedding if layer.role == "embedding" else self.text_encoder
        return DenseSpec()

    @cached_property
    def _exact(self) -> dict[str, Spec]:
        return dict(self.layers)

    def check(self, layers) -> None:
        """Refuse exact entries that name no codable weight of this checkpoint."""
        shapes = {layer.key: layer.shape for layer in layers}
        for key, spec in self.layers:
            if key not in shapes:
                raise PlanError(f"the plan names layer '{key}', which this checkpoint does not have; check the name "
                                f"with `vqpack inspect`")
            if spec.kind != "dense" and len(shapes[key]) not in (2, 4):
                raise PlanError(f"the plan codes '{key}' with {spec.kind}, but only linear, embedding and convolution "
                                f"weights can be coded and its shape is {list(shapes[key])}")

    def to_json(self) -> dict:
        """-> the JSON object written to files and headers."""
        later = {} if self.activations is None else {"activations": self.activations.to_json()}
        return {"vqpack_plan": PLAN_VERSION, "unet": spec_to_json(self.unet),
                "text_encoder": spec_to_json(self.text_encoder), "embedding": spec_to_json(self.embedding),
                "rules": [{"match": pattern, "spec": spec_to_json(spec)} for pattern, spec in self.rules],
                "layers": {key: spec_to_json(spec) for key, spec in self.layers}, **later}


def make_plan(bits: float = 3, method: str = "trellis", text_encoder_bits: int = 6, skip: str | None = None,
              **options) -> Plan:
    """The plan behind `quantize --bits B --method M --text-encoder-bits T --skip REGEX`."""
    if text_encoder_bits not in (4, 6, 8, 16):
        raise PlanError(f"text encoder bits must be 16 (kept), 8, 6 or 4, got {text_encoder_bits}")
    if skip:
        _check_pattern(skip)
    dense = text_encoder_bits == 16
    return Plan(unet=make_spec(method, bits, **options),
                text_encoder=DenseSpec() if dense else make_spec("palette", text_encoder_bits),
                embedding=DenseSpec() if dense else EMBEDDING_SPEC,
                rules=((skip, DenseSpec()),) if skip else ())


def with_activations(plan: Plan, name: str | None) -> Plan:
    """The plan with a preset's activations ("none": none); None leaves it as it is."""
    return plan if name is None else replace(plan, activations=make_activations(name))


def plan_from_json(data: dict) -> Plan:
    """Inverse of Plan.to_json; unknown versions and keys are refused by name."""
    if not isinstance(data, dict) or "vqpack_plan" not in data:
        raise PlanError("expected a plan: a JSON object with 'vqpack_plan'; `vqpack inspect FILE --json` shows one")
    if data["vqpack_plan"] != PLAN_VERSION:
        raise PlanError(f"this plan has version {data['vqpack_plan']!r}, this vqpack reads version {PLAN_VERSION}")
    known = {"vqpack_plan", "unet", "text_encoder", "embedding", "rules", "layers", "activations"}
    if set(data) - known:
        raise PlanError(f"unknown plan entry '{sorted(set(data) - known)[0]}': expected {', '.join(sorted(known))}")
    if "unet" not in data:
        raise PlanError("a plan needs 'unet', the spec of the UNet's layers")
    return Plan(unet=spec_from_json(data["unet"]),
                text_encoder=spec_from_json(data.get("text_encoder", {"kind": "dense"})),
                embedding=spec_from_json(data.get("embedding", {"kind": "dense"})),
                rules=tuple(_rule(rule) for rule in data.get("rules", ())),
                layers=tuple((str(k), spec_from_json(v)) for k, v in dict(data.get("layers", {})).items()),
                activations=activations_from_json(data["activations"]) if "activations" in data else None)


def load_plan(path: str | Path) -> Plan:
    """Read a plan file."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read the plan '{path}': {error.strerror or error}") from None
    except ValueError as error:
        raise PlanError(f"the plan '{path}' is not JSON: {error}") from None
    return plan_from_json(data)


def _rule(rule) -> tuple[str, Spec]:
    if not isinstance(rule, dict) or set(rule) != {"match", "spec"}:
        raise PlanError(f"a rule must be {{\"match\": regular expression, \"spec\": spec}}, got {rule!r:.80}")
    return _check_pattern(rule["match"]), spec_from_json(rule["spec"])


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise PlanError(f"'{pattern}' is not a regular expression: {error}") from None
    return pattern
