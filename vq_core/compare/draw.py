"""Drawing with one checkpoint after the other, each picture kept on disk, so that a stopped run goes on."""
from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .. import trajectory
from ..errors import PlanError, UnsupportedError
from ..progress import Progress
from .measure import measure
from .models import Checkpoint, Models, free_memory

FIRST_SEED, NEXT_SEED = 1000, 10_000       # a prompt's first seed is FIRST_SEED + its number, further ones follow
MOST_PIXELS = 4096


@dataclass(frozen=True)
class Settings:
    """What decides the pictures besides the checkpoints."""

    prompts: tuple[str, ...]
    seeds: int                             # pictures a prompt
    steps: int
    guidance: float
    size: tuple[int, int]                  # height, width
    sampler: str
    device: str

    def check(self, factor: int) -> None:
        """PlanError in one sentence for what no model can draw. factor: pixels a latent."""
        step, (height, width) = max(8, factor), self.size
        if not all(8 * step <= side <= MOST_PIXELS and side % step == 0 for side in self.size):
            raise PlanError(f"--size must be HxW with multiples of {step} from {8 * step} to {MOST_PIXELS}, got "
                            f"{height}x{width}")
        if self.sampler not in trajectory.SAMPLERS:
            raise PlanError(f"--sampler must be one of {', '.join(trajectory.SAMPLERS)}, got '{self.sampler}'")
        for name, value, most in (("--steps", self.steps, 1000), ("--seeds", self.seeds, 1000)):
            if not 1 <= value <= most:
                raise PlanError(f"{name} must be 1 to {most}, got {value}")
        if not 0 <= self.guidance <= 50:
            raise PlanError(f"--guidance must be 0 to 50, got {self.guidance:g}")

    def of_trajectory(self) -> trajectory.Settings:
        """The part that trajectory.py knows."""
        return trajectory.Settings(self.steps, self.guidance, self.size, self.sampler)

    def to_json(self) -> dict:
        """-> what the report states"""
        return {**asdict(self), "prompts": list(self.prompts), "size": list(self.size)}


@dataclass(frozen=True)
class Drawn:
    """One picture and the way to it."""

    picture: torch.Tensor                  # uint8 [height, width, 3]
    values: dict | None = None             # measure() against the reference; None of the reference
    way: trajectory.Trajectory | None = None               # of the reference


WAY = ("initial", "timesteps", "steps", "predictions")      # what is kept of the reference's trajectory


def seed_of(prompt: int, number: int) -> int:
    """The seed of a prompt's picture `number`, both from 0."""
    return FIRST_SEED + prompt + NEXT_SEED * number


class Parts:
    """Finished pictures of one run: a folder named by what it draws, written picture by picture."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, letter: str, prompt: int, number: int, drawn: Drawn) -> None:
        """Keep one picture; complete or not there at all."""
        arrays = {"picture": drawn.picture.numpy(), "values": np.array(json.dumps(drawn.values))}
        if drawn.way is not None:
            arrays |= {name: getattr(drawn.way, name).numpy() for name in WAY}
            arrays["kind"] = np.array(drawn.way.prediction_type)
        with open(self._path(letter, prompt, number, ".part"), "wb") as file:
            np.savez(file, **arrays)
        os.replace(file.name, self._path(letter, prompt, number))

    def load(self, letter: str, prompt: int, number: int) -> Drawn | None:
        """One picture, None where it was not drawn yet (or its file was damaged)."""
        try:
            with np.load(self._path(letter, prompt, number), allow_pickle=False) as file:
                return Drawn(torch.from_numpy(file["picture"]), json.loads(str(file["values"])))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def load_way(self, prompt: int, number: int, settings: Settings) -> trajectory.Trajectory:
        """The reference's way to one picture; UnsupportedError where somebody deleted or damaged it."""
        try:
            with np.load(self._path("A", prompt, number), allow_pickle=False) as file:
                arrays, kind = {name: torch.from_numpy(file[name]) for name in WAY}, str(file["kind"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            raise UnsupportedError("a picture of the reference is gone from the folder of partial results: run the "
                                   "same command again") from None
        return trajectory.Trajectory((settings.prompts[prompt],), (seed_of(prompt, number),), settings.of_trajectory(),
                                     images=torch.empty(0), embeddings={}, prediction_type=kind, **arrays)

    def values(self, letter: str, settings: Settings) -> list[list[dict | None]]:
        """measure() of every picture: [prompt][number], None where it is not drawn."""
        def one(prompt: int, number: int) -> dict | None:
            drawn = self.load(letter, prompt, number)
            return None if drawn is None else drawn.values

        return [[one(p, n) for n in range(settings.seeds)] for p in range(len(settings.prompts))]

    def note(self, name: str, make):
        """JSON that is made once and kept: make() -> value"""
        path = self.folder / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            value = make()
            part = path.with_suffix(".part")
            part.write_text(json.dumps(value), encoding="utf-8")
            os.replace(part, path)
            return value

    def remove(self) -> None:
        """Delete everything; the folder above too if no other run uses it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _path(self, letter: str, prompt: int, number: int, ending: str = "") -> Path:
        return self.folder / f"{letter}-{prompt:04d}-{number:03d}.npz{ending}"


def todo(letter: str, settings: Settings, parts: Parts) -> list[tuple[int, int]]:
    """(prompt, number) of the pictures that are not there."""
    return [(p, n) for p in range(len(settings.prompts)) for n in range(settings.seeds)
            if parts.load(letter, p, n) is None]


def work(checkpoint: Checkpoint, models: Models, settings: Settings, parts: Parts) -> int:
    """How often the model has to walk the steps: once a picture, once more where its predictions are compared."""
    missing = todo(checkpoint.letter, settings, parts)
    return len(missing) + sum(_compares_noise(checkpoint, models, number) for _, number in missing)


def draw_all(checkpoint: Checkpoint, models: Models, settings: Settings, parts: Parts, progress: Progress) -> None:
    """Draw what is missing of one checkpoint, measure it against the reference, keep it; one model is in memory.

    `progress` advances by work().
    """
    missing = todo(checkpoint.letter, settings, parts)
    if not missing:
        return
    progress.advance(0, f"loading {checkpoint.name}")
    pipe = models.pipeline(checkpoint)
    try:
        for prompt, number in missing:
            progress.advance(0, f"{checkpoint.letter}: {settings.prompts[prompt][:50]}")
            compares = _compares_noise(checkpoint, models, number)
            parts.save(checkpoint.letter, prompt, number,
                       _draw(pipe, checkpoint, settings, prompt, number, parts, compares, progress))
    finally:
        del pipe
        free_memory()


def _draw(pipe, checkpoint: Checkpoint, settings: Settings, prompt: int, number: int, parts: Parts,
          compares: bool, progress: Progress) -> Drawn:
    """One picture by itself, so that it does not depend on what else is drawn."""
    way = trajectory.sample(pipe, [settings.prompts[prompt]], [seed_of(prompt, number)], settings.steps,
                            settings.guidance, settings.size, settings.sampler, progress=progress)
    picture = _eight_bits(way.images[0])
    if checkpoint.letter == "A":
        return Drawn(picture, way=way)
    reference = parts.load_way(prompt, number, settings)
    values = measure(picture, parts.load("A", prompt, number).picture, way, reference)
    if compares:
        pair = trajectory.noise_along(pipe, reference, progress=progress)
        values["noise_snr"] = float(pair.snr().mean())
    return Drawn(picture, values)


def _compares_noise(checkpoint: Checkpoint, models: Models, number: int) -> bool:
    """Predictions are compared for the first seed of a prompt, between models that predict the same thing."""
    first = models.checkpoints[0]
    return checkpoint is not first and number == 0 and (
        checkpoint.architecture.prediction == first.architecture.prediction)


def _eight_bits(image: torch.Tensor) -> torch.Tensor:
    """[3, height, width], 0 to 1 -> uint8 [height, width, 3]; a broken model's NaN is black."""
    pixels = image.nan_to_num(0).clamp(0, 1)
    return (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous()
