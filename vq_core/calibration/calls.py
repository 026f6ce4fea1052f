"""The UNet's calls: recorded while the model's own pipeline draws, kept on disk picture by picture, made again."""
from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import trajectory
from ..progress import Progress
from .settings import Picture, Settings, chosen_steps

_TEXT, _ADDED = "text", "added."


@dataclass(frozen=True)
class Calls:
    """What the UNet was asked at the chosen steps of one picture, float32 on the CPU."""

    steps: tuple[int, ...]                 # positions in the trajectory, 0 = first
    levels: tuple[float, ...]              # of noise: timesteps, 1000 = pure noise
    finite: tuple[bool, ...]               # whether question and answer were finite numbers
    timesteps: torch.Tensor                # [T], as the scheduler gave them
    samples: torch.Tensor                  # [T, halves, 4, h, w]
    fixed: dict[str, torch.Tensor]         # text [halves, tokens, width] and the added conditions, same for all steps

    def ask(self, unet, call: int, half: int | None = None, gradients: bool = False) -> torch.Tensor:
        """Make a call again -> the UNet's answer [halves, 4, h, w]. half: only this one; gradients: keep the graph."""
        rows = slice(None) if half is None else slice(half, half + 1)
        place = {"device": unet.device, "dtype": unet.dtype}
        sample = self.samples[call, rows].to(**place)
        fixed = {name: value[rows].to(**place) for name, value in self.fixed.items()}
        added = {name[len(_ADDED):]: value for name, value in fixed.items() if name.startswith(_ADDED)}
        plain = {name: value for name, value in fixed.items() if name != _TEXT and not name.startswith(_ADDED)}
        with torch.set_grad_enabled(gradients):
            return unet(sample, self.timesteps[call].to(unet.device), added_cond_kwargs=added, return_dict=False,
                        encoder_hidden_states=fixed[_TEXT], **plain)[0]


def draw(pipe, picture: Picture, settings: Settings, progress: Progress | None = None) -> Calls:
    """Draw one picture as the user would and keep what the UNet was asked at the chosen steps."""
    asked, answered = [], []
    hooks = [pipe.unet.register_forward_pre_hook(lambda _, args, named: asked.append(_question(args, named)),
                                                 with_kwargs=True),
             pipe.unet.register_forward_hook(lambda _, __, output: answered.append(_is_finite(output)))]
    try:
        way = trajectory.sample(pipe, [picture.prompt], [picture.seed], settings.steps, settings.guidance,
                                settings.size, settings.sampler, scheduler=settings.scheduler, decode=False,
                                progress=progress)
    finally:
        for hook in hooks:
            hook.remove()
    return chosen_calls(asked, answered, noise_levels(way.timesteps), settings, picture)


def chosen_calls(asked: list[tuple[torch.Tensor, float, dict[str, torch.Tensor]]], answered: list[bool],
                 levels: list[float], settings: Settings, picture: Picture) -> Calls:
    """What is kept of a trajectory. asked: sample [halves, 4, h, w], timestep and conditions of each call; answered:
    whether the answer was finite; levels: of noise.
    """
    inside = [i for i, level in enumerate(levels) if settings.window[0] <= level <= settings.window[1]]
    steps = chosen_steps(inside, settings.timesteps, picture.index)
    samples = [asked[i][0] for i in steps]
    fixed = asked[0][2]
    finite = [answered[i] and bool(torch.isfinite(asked[i][0]).all()) for i in steps]
    return Calls(tuple(steps), tuple(levels[i] for i in steps), tuple(finite),
                 torch.tensor([asked[i][1] for i in steps]),
                 torch.stack(samples) if samples else asked[0][0][None][:0], fixed)


def noise_levels(timesteps: torch.Tensor) -> list[float]:
    """Timesteps as levels 0 to 1000; schedules with times of their own kind (EDM) get their place in the trajectory."""
    times = [float(t) for t in timesteps]
    if min(times) >= 0 and max(times) <= 1000 and max(times) > 20:
        return times
    return [1000.0 * (1 - i / len(times)) for i in range(len(times))]


def _question(args: tuple, named: dict) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """Sample, timestep and conditions of one call, copied."""
    fixed = {_TEXT: named["encoder_hidden_states"], "timestep_cond": named.get("timestep_cond"),
             **{_ADDED + name: value for name, value in (named.get("added_cond_kwargs") or {}).items()}}
    sample, timestep = args[0], args[1]
    return _kept(sample), float(timestep), {name: _kept(value) for name, value in fixed.items() if value is not None}


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _is_finite(output) -> bool:
    return bool(torch.isfinite(output[0] if isinstance(output, tuple) else output.sample).all())


def save_calls(path: Path, calls: Calls) -> None:
    """Write one picture's calls; complete or not there at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.savez(file, steps=np.array(calls.steps, np.int64), levels=np.array(calls.levels, np.float64),
                 finite=np.array(calls.finite, bool), timesteps=calls.timesteps.numpy(), samples=calls.samples.numpy(),
                 **{f"fixed.{name}": value.numpy() for name, value in calls.fixed.items()})
    os.replace(part, path)


def load_calls(path: Path) -> Calls | None:
    """Read one picture's calls; None where they are not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            fixed = {name[len("fixed."):]: torch.from_numpy(file[name]) for name in file.files
                     if name.startswith("fixed.")}
            return Calls(tuple(int(i) for i in file["steps"]), tuple(float(v) for v in file["levels"]),
                         tuple(bool(v) for v in file["finite"]), torch.from_numpy(file["timesteps"]),
                         torch.from_numpy(file["samples"]), fixed)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
