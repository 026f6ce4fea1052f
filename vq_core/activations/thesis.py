"""The AQ thesis' settings (A. Hasan, arXiv 2506.05960) as plans: additive codes, 8-bit tables by noise level."""
from __future__ import annotations

from ..errors import PlanError
from ..plan import Plan
from ..spec import AdditiveSpec
from .specs import make_activations

# Coded with one book instead of two in W1.5: about half of SDXL's weights. Which roles bear it is a guess; with a
# calibration the planner chooses layer by layer (`vqpack plan --method additive --bits 1.5`).
ONE_BOOK = r"\.ff\.net\.0\.proj\.|\.attn2\.to_[kv]\.|\.attn1\.to_[qk]\."
BITS = {"w4a8": 4, "w2a8": 2, "w1.5a8": 2}


def thesis_plan(name: str) -> Plan:
    """"w4a8", "w2a8" or "w1.5a8" -> how the UNet is coded and run; the rest stays as it is."""
    if name not in BITS:
        raise PlanError(f"unknown setting '{name}': expected one of {', '.join(BITS)}")
    rules = ((ONE_BOOK, AdditiveSpec(1, conv_group="kernel")),) if name == "w1.5a8" else ()
    return Plan(AdditiveSpec(BITS[name], conv_group="kernel"), rules=rules, activations=make_activations("talsq8"))
