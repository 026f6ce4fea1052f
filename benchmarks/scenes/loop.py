"""The training loop of all models: AdamW, warm-up and cosine, moving average, resumable after a kill or a pause."""
from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

SAVE_SECONDS, WARM_UP, DECAY, CLIP, AVERAGED = 60, 200, 0.01, 1.0, 50
BETAS = (0.9, 0.99)


class Paused(Exception):
    """The time given is over; the state is on disk and the same call goes on from there."""


class SettingsError(ValueError):
    """A state on disk belongs to a run with other settings."""


@dataclass
class Run:
    """Where and how long: one object for all stages of a call."""

    folder: Path                       # states, one file a stage
    device: torch.device
    deadline: float = math.inf         # time.monotonic()
    settings: dict = field(default_factory=dict)      # plain values; a state of other settings is refused


def average_of(modules: nn.ModuleDict) -> nn.ModuleDict:
    """A frozen copy, to become the moving average."""
    return copy.deepcopy(modules).requires_grad_(False).eval()


def train(name: str, modules: nn.ModuleDict, loss, steps: int, rate: float, run: Run, ema: float = 0.999,
          average: nn.ModuleDict | None = None) -> tuple[nn.ModuleDict, list[float]]:
    """-> the moving average of `modules` and the loss, mean over every 50 steps. On CUDA in bfloat16 autocast."""
    average = average if average is not None else average_of(modules)
    optimizer = torch.optim.AdamW(modules.parameters(), rate, BETAS, weight_decay=DECAY)
    done, curve, recent = _resume(name, modules, average, optimizer, run)
    saved = time.monotonic()
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, steps)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
            value = loss(modules, torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), CLIP)
        optimizer.step()
        _follow(average, modules, min(ema, (step + 1) / (step + 10)))
        recent.append(value.detach())
        if len(recent) == AVERAGED or step == steps - 1:
            curve.append(float(torch.stack(recent).mean()))
            recent.clear()
            print(f"{name}: step {step + 1} of {steps}, loss {curve[-1]:.5f}", flush=True)
            _check(name, curve)
        late = time.monotonic() > run.deadline and step < steps - 1
        if late or step == steps - 1 or time.monotonic() - saved > SAVE_SECONDS:
            _save(name, modules, average, optimizer, run, step + 1, curve, recent)
            saved = time.monotonic()
        if late:
            raise Paused(f"{name}: paused after step {step + 1} of {steps}, the same command goes on from there")
    return average, curve


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine."""
    return min(1.0, (step + 1) / min(WARM_UP, max(1, steps // 10))) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def _follow(average: nn.ModuleDict, modules: nn.ModuleDict, decay: float) -> None:
    ours, theirs = list(average.parameters()), list(modules.parameters())
    torch._foreach_lerp_(ours, [value.detach() for value in theirs], 1 - decay)


def _check(name: str, curve: list[float]) -> None:
    if not math.isfinite(curve[-1]):
        raise FloatingPointError(f"{name}: the loss is {curve[-1]}: start in another folder with a smaller --rate")


def _save(name, modules, average, optimizer, run: Run, step: int, curve, recent) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / f"{name}.pt"
    part = path.with_name(path.name + ".part")
    torch.save({"modules": modules.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                "settings": run.settings, "step": step, "curve": curve,
                "recent": [value.cpu() for value in recent]}, part)
    part.replace(path)


def _resume(name, modules, average, optimizer, run: Run) -> tuple[int, list[float], list[torch.Tensor]]:
    path = run.folder / f"{name}.pt"
    if not path.is_file():
        return 0, [], []
    state = torch.load(path, map_location=run.device, weights_only=True)
    if state["settings"] != run.settings:
        raise SettingsError(f"{name}: expected the settings of the run that began in {path.parent.name}, "
                            f"{state['settings']}, got {run.settings}: use those or another folder")
    modules.load_state_dict(state["modules"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"{name}: goes on after step {state['step']}", flush=True)
    return state["step"], state["curve"], [value.to(run.device) for value in state["recent"]]
