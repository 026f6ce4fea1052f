"""What decides a fine-tune: which parameters move and how fast, the loss, how long, how much at once."""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from ..adapters.settings import Scaling
from ..errors import PlanError
from ..layout import MAX_RANK
from .lessons import TRAJECTORIES
from .masters import Trained

TABLES = ("frozen", "shared", "layer")
WEIGHTINGS = ("even", "relative")
MOST_CANDIDATES = 16
LOSSES = ("halves", "guided", "both")
REASSIGN = ("none", "frozen", "latent")
# Relative learning rates of AdamW at the start of the cosine. Latents: a third of it was worse on the testbed (product
# codes, 2 bits, 60 steps: 4.9 dB instead of 5.5; without them 4.7). Shares: VQ4DiT's, not tried otherwise.
RATES = {"scales": 3e-3, "books": 3e-3, "tables": 3e-3, "latents": 3e-3, "shares": 5e-2, "branches": 1e-2,
         "biases": 1e-2, "norms": 3e-3, "dense": 3e-3}
RATES_SUIT = 5e-3                          # relative squared error of a student for which these are


@dataclass(frozen=True)
class Tuning:
    """How the student learns. steps None: as many as fit into `minutes`."""

    steps: int | None = None
    minutes: float | None = None
    batch: int = 8                         # calls a step, each with its guidance halves
    together: int = 8                      # of them at once; fewer take less memory and longer
    rate: float = 1.0                      # times RATES
    warmup: int = 10                       # steps
    clip: float = 3.0                      # times the running mean of the gradient's norm
    loss: str = "halves"
    weighting: str = "even"
    trajectory: str = "teacher"
    flips: float = 0.0                     # share of a layer's code groups that may flip each time, 0 = none
    flip_every: int = 10                   # steps
    checks: int = 20                       # looks at the held-out pictures
    held_out_calls: int = 64               # at most, in each look
    seed: int = 0
    trained: Trained = field(default_factory=Trained)
    scaling: Scaling | None = None         # of an adapter, which is trained instead of the file

    def check(self) -> None:
        """PlanError in one sentence for what cannot be done."""
        for name, value, low, high in (("--steps", self.steps, 1, 10**7), ("--minutes", self.minutes, 0, 10**5),
                                       ("--batch", self.batch, 1, 4096), ("--together", self.together, 1, 4096),
                                       ("--rate", self.rate, 0, 1000), ("--flips", self.flips, 0, 1),
                                       ("checks", self.checks, 1, 10**5)):
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise PlanError(f"{name} must be {low} to {high}, got {value:g}")
        if self.steps is None and not self.minutes:
            raise PlanError("tune needs to know how long: give --minutes or --steps")
        if bool(self.flips) != self.trained.codes:
            raise PlanError("codes flip where a share of them is named: give flips and trained.codes together")
        self._check_reassignment()
        self._check_scaling()
        if not 0 <= self.trained.rank <= MAX_RANK:
            raise PlanError(f"--rank must be 0 to {MAX_RANK}, got {self.trained.rank}")
        for name, value, known in (("--tables", self.trained.tables, TABLES), ("--loss", self.loss, LOSSES),
                                   ("--weighting", self.weighting, WEIGHTINGS),
                                   ("--reassign", self.trained.reassign, REASSIGN),
                                   ("--trajectory", self.trajectory, TRAJECTORIES)):
            if value not in known:
                raise PlanError(f"{name} must be one of {', '.join(known)}, got '{value}'")

    def _check_reassignment(self) -> None:
        trained = self.trained
        if trained.reassign != "none" and self.flips:
            raise PlanError("--reassign and --flips both change codes: give one of them")
        if not 1 <= trained.candidates <= MOST_CANDIDATES:
            raise PlanError(f"--candidates must be 1 to {MOST_CANDIDATES}, got {trained.candidates}")
        if trained.candidates > 1 and trained.reassign != "frozen":
            raise PlanError(f"--candidates are the entries nearest to the teacher's weights, so they need --reassign "
                            f"frozen, got '{trained.reassign}'")

    def _check_scaling(self) -> None:
        trained = self.trained
        if self.scaling is None:
            return
        self.scaling.check()
        if trained.rank or self.flips or trained.columns or trained.reassign != "none" or trained.tables != "shared":
            raise PlanError("an adapter holds scales and nothing else: leave out --rank, --flips, --columns, --tables "
                            "and --reassign, or train the file itself")

    def to_json(self) -> dict:
        """Everything but how long, for fingerprints."""
        left_out = ("steps", "minutes", *(("scaling",) if self.scaling is None else ()))
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def gentler(error: float) -> float:
    """Share of the learning rates for a student that begins with this relative squared error.

    What has to move is as small as the error's root: steps made for 2 bits throw a better student farther off than it
    was. Testbed, 100 steps, gain in dB: planned to 2 bits (4.7e-4 at the start) 1.14 at rate 1 by way of -1.1, 1.13 at
    .25 without a step back; planned to 3 bits (3.2e-5) diverges at 1, 0.56 at .2 by way of -1.2, 0.64 at .07.
    """
    return min(1.0, math.sqrt(error / RATES_SUIT))


def schedule(step: int, steps: int | None, warmup: int) -> float:
    """Share of the learning rate: a linear start, then half a cosine down to nothing; steps None = not known yet."""
    start = min(1.0, (step + 1) / max(1, warmup))
    if steps is None:
        return start
    return start * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
