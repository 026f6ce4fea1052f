"""How a calibration is drawn: presets by kind of model, checks, and which steps of a trajectory are looked at."""
from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from .. import trajectory
from ..errors import PlanError

# A checkpoint does not say which of these it is; what it predicts comes from its marker keys.
PRESETS = {
    "base": {"steps": 25, "guidance": 5.0, "sampler": "model", "scheduler": "model"},
    "v": {"steps": 25, "guidance": 5.0, "sampler": "model", "scheduler": "model"},
    "lcm": {"steps": 8, "guidance": 1.5, "sampler": "lcm", "scheduler": "model"},
    "lightning": {"steps": 8, "guidance": 1.0, "sampler": "euler", "scheduler": "sgm_uniform"},
    "hyper": {"steps": 8, "guidance": 1.0, "sampler": "euler", "scheduler": "sgm_uniform"},
    "turbo": {"steps": 4, "guidance": 1.0, "sampler": "euler", "scheduler": "sgm_uniform"},
}
TIMESTEPS = 8                              # looked at in each picture (AutoRound's default for diffusion models, too)
# Input vectors taken from one call of one layer. Held-out loss of ideal feedback on the testbed's convolutions, against
# all vectors: 8: 1.35, 32: 1.1, 128: 1.02, 256: 1.007. More pictures help more than more vectors.
TOKENS = 256
FULL_COLUMNS = 5760                        # wider convolutions get a gram a kernel tap; SDXL: 15 % more sums than 2304
HELD_OUT_SHARE = 0.25                      # of the pictures, at least one
SENSITIVITY_CALLS = 32
GOLDEN = 0.6180339887498949                # its multiples modulo 1 spread any number of pictures evenly
LEVELS = (0.0, 1000.0)                     # of noise, as timesteps


@dataclass(frozen=True)
class Settings:
    """What decides a calibration besides the checkpoint and the prompts."""

    preset: str
    steps: int
    guidance: float
    sampler: str
    scheduler: str
    size: tuple[int, int]                  # height, width in pixels
    timesteps: int = TIMESTEPS
    window: tuple[float, float] = LEVELS
    seed: int = 0
    tokens: int = TOKENS
    full_columns: int = FULL_COLUMNS
    held_out_share: float = HELD_OUT_SHARE
    sensitivity_calls: int = SENSITIVITY_CALLS             # 0: none
    device: str = "cpu"
    threads: int = 1                       # on the CPU: sums come out in another order, the last bits differ

    def check(self, factor: int, samplers=tuple(trajectory.SAMPLERS),
              schedulers=tuple(trajectory.SCHEDULERS)) -> None:
        """PlanError in one sentence for what cannot be drawn. factor: pixels a latent; names that are known."""
        step, (height, width) = max(8, factor), self.size
        if not all(8 * step <= side <= 4096 and side % step == 0 for side in self.size):
            raise PlanError(f"--size must be HxW with multiples of {step} from {8 * step} to 4096, got "
                            f"{height}x{width}")
        for name, value, low, high in (("--steps", self.steps, 1, 1000), ("--timesteps", self.timesteps, 1, 1000),
                                       ("--cfg", self.guidance, 0, 50), ("--seed", self.seed, 0, 2**62),
                                       ("tokens", self.tokens, 1, 1 << 20), ("--threads", self.threads, 1, 256)):
            if not low <= value <= high:
                raise PlanError(f"{name} must be {low} to {high}, got {value:g}")
        for name, value, known in (("--sampler", self.sampler, samplers), ("--scheduler", self.scheduler, schedulers)):
            if value not in known:
                raise PlanError(f"{name} must be one of {', '.join(known)}, got '{value}'")
        if not 0 <= self.window[0] < self.window[1] <= 1000:
            raise PlanError(f"--window must be LO:HI with 0 <= LO < HI <= 1000 (1000 = pure noise), got "
                            f"{self.window[0]:g}:{self.window[1]:g}")
        if not 0 < self.held_out_share < 1:
            raise PlanError(f"the held-out share must lie between 0 and 1, got {self.held_out_share:g}")

    def to_json(self) -> dict:
        """-> what the file states"""
        return {**asdict(self), "size": list(self.size), "window": list(self.window)}


def preset_settings(preset: str, size: tuple[int, int], **given) -> Settings:
    """A preset's settings with those given instead (None = the preset's)."""
    if preset not in PRESETS:
        raise PlanError(f"unknown preset '{preset}': expected one of {', '.join(PRESETS)}")
    settings = Settings(preset, size=tuple(size), **PRESETS[preset])
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Picture:
    """One picture to be drawn. tokens: which text tokens are counted (all, or every other one)."""

    index: int
    prompt: str
    seed: int
    held_out: bool
    tokens: tuple[int, int] = (0, 1)       # first, distance


def pictures(prompts: tuple[str, ...], settings: Settings) -> list[Picture]:
    """The pictures of a calibration, some of them held out, spread evenly over the list.

    A single prompt is drawn from two seeds; the second picture and every other text token are held out.
    """
    if len(prompts) == 1:
        return [Picture(0, prompts[0], settings.seed, False, (0, 2)),
                Picture(1, prompts[0], settings.seed + 1, True, (1, 2))]
    chosen = held_out_of(len(prompts), settings.held_out_share)
    return [Picture(i, prompt, settings.seed + i, i in chosen) for i, prompt in enumerate(prompts)]


def held_out_of(count: int, share: float) -> set[int]:
    """Which of `count` pictures are held out: at least one, spread evenly; none of a single one."""
    held = min(count - 1, max(1, round(count * share)))
    return {int((i + 0.5) * count / held) for i in range(held)}


def chosen_steps(candidates: list[int], count: int, picture: int) -> list[int]:
    """At most `count` of a trajectory's steps at even distances, shifted from picture to picture: all come up."""
    total = len(candidates)
    if count >= total:
        return list(candidates)
    shift = (0.5 + picture * GOLDEN) % 1.0
    return [candidates[int((i + shift) * total / count)] for i in range(count)]
