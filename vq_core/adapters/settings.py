"""What an adapter has: experts, and which sides of a weight it scales."""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import PlanError
from .noise_levels import MOST_EXPERTS

SIDES = ("both", "out")


@dataclass(frozen=True)
class Scaling:
    """What an adapter has: experts by noise, and scales of "both" sides of a weight or of its outputs alone ("out")."""

    experts: int = 2
    sides: str = "both"

    def check(self) -> None:
        """PlanError in one sentence for what cannot be made."""
        if not 1 <= self.experts <= MOST_EXPERTS:
            raise PlanError(f"--experts must be 1 to {MOST_EXPERTS}, got {self.experts}")
        if self.sides not in SIDES:
            raise PlanError(f"--scales must be one of {', '.join(SIDES)}, got '{self.sides}'")
