"""doctor: what this machine can do and, for every path it cannot take, the reason in words."""
from __future__ import annotations

import torch

from ..kernels import capabilities, dispatch, int8_linear, linear, viterbi
from ..kernels.parts import Scales, TrellisPart
from .tables import get_table
from .version import FORMAT_VERSION, __version__

WAYS = {"decoding": dispatch.BACKENDS, "multiplying without decoding": (linear.FUSED,),
        "int8 products": int8_linear.BACKENDS}


def diagnose() -> dict:
    """-> {"vqpack", "format_version", "machine", and WAYS}: name -> value; of WAYS, path -> "ready" or why not."""
    kinds = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {"vqpack": __version__, "format_version": FORMAT_VERSION, "machine": capabilities.table(),
            "coding": {kind: _ready(viterbi.report(kind)) for kind in kinds},
            **{what: {kind: _ready(_refusals(backends, kind)) for kind in kinds} for what, backends in WAYS.items()}}


def describe(facts: dict) -> str:
    """The same as lines of text."""
    lines = [f"vqpack {facts['vqpack']}, file format {facts['format_version']}"]
    lines += [f"  {name:10s} {value}" for name, value in facts["machine"].items()]
    for what in ("coding", *WAYS):
        for kind, paths in facts[what].items():
            lines.append(f"{what} on {kind}, first ready path is taken:")
            lines += [f"  {name:13s} {state}" for name, state in paths.items()]
    return "\n".join(lines)


def _ready(reasons: dict[str, str | None]) -> dict[str, str]:
    return {name: "ready" if reason is None else f"no: {reason}" for name, reason in reasons.items()}


def _refusals(backends: tuple[dispatch.Backend, ...], kind: str) -> dict[str, str | None]:
    part = _small_part(kind)
    return {known.name: known.requirements.refusal(part, torch.float16, known.module) for known in backends}


def _small_part(device: str) -> TrellisPart:
    """32 rows of 4 columns of zeros in the default code."""
    table, _ = get_table(12, 3, 1)
    return TrellisPart(out_features=32, channels=4, taps=1, window=12, step_bits=3, vector=1, chain=4,
                       codes=torch.zeros(1, 3, 4, dtype=torch.int32, device=device), table=table.to(device),
                       scales=Scales(1.0, torch.ones(32, dtype=torch.float16, device=device)))
