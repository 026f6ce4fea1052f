"""What quality.py keeps of each student: values a prompt against the teacher's, and the pictures."""
from __future__ import annotations

import importlib.util
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from alias import ROOT, load_vqpack
from quality_students import TESTBED, Row, identity, student

load_vqpack()
from vqpack.vq_core import trajectory  # noqa: E402
from vqpack.vq_core.pipeline import quiet  # noqa: E402

SIDE, GUIDANCE = 64, 3.0
HELD_OUT = 11                              # seed of the scenes whose captions are drawn; training used 1
FIRST_NOISE = 1000                         # seed of the first prompt's noise
BATCH = 8                                  # part of the settings: other batches give other last bits
WAY = ("initial", "timesteps", "steps", "images", "predictions", "embeddings")


@dataclass(frozen=True)
class Settings:
    """What is drawn."""

    prompts: int
    steps: int
    batch: int = BATCH
    guidance: float = GUIDANCE
    side: int = SIDE
    scenes: int = HELD_OUT
    noise: int = FIRST_NOISE

    def __str__(self) -> str:
        return json.dumps(asdict(self))


class Kept:
    """The folder of partial results: one JSON and one file of pictures a student, named by what decides them."""

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, row: Row) -> Path:
        """Of a student's values."""
        return self.folder / f"{row.name}-{identity(row, str(self.settings))}.json"

    def load(self, row: Row) -> dict | None:
        """Values and pictures (uint8 [n, height, width, 3]) of a student; None where it was not measured."""
        path = self.path(row)
        try:
            found = json.loads(path.read_text())
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
                return {**found, "pictures": torch.from_numpy(file["pictures"])}
        except (OSError, ValueError, KeyError):
            return None

    def save(self, row: Row, values: dict, pictures: torch.Tensor) -> None:
        """The pictures first: with the values the student is complete."""
        path = self.path(row)
        part = self.folder / f"{path.stem}.{os.getpid()}.part"
        with part.open("wb") as file:
            np.savez_compressed(file, pictures=pictures.numpy())
        os.replace(part, path.with_suffix(".npz"))
        part.write_text(json.dumps(values))
        os.replace(part, path)


def measure(row: Row, kept: Kept) -> float:
    """Code, draw, compare, keep -> seconds of processor time"""
    started = time.process_time()
    pipe, teacher, settings = load_teacher(), draw_teacher(kept), kept.settings
    made = student(row, pipe.unet)
    own, pipe.unet = pipe.unet, made.unet.eval()
    try:
        ours = _sample(pipe, settings)
        pair = trajectory.noise_along(pipe, teacher, "teacher", settings.batch)
    finally:
        pipe.unet = own
    values = {"latent_psnr": trajectory.latent_psnr_along(ours, teacher).tolist(),                # [steps][n]
              "noise_snr": pair.snr().tolist(), "timesteps": pair.timesteps.tolist()}             # [steps][halves][n]
    coded = {name: getattr(made.coded, name) for name in ("bits_layers", "bits_unet", "share", "linear_share")}
    seconds = time.process_time() - started
    kept.save(row, {"name": row.name, "family": row.family, **coded, "seconds": seconds, **values},
              eight_bits(ours.images))
    return seconds


def draw_teacher(kept: Kept) -> trajectory.Trajectory:
    """The teacher's trajectory, drawn once a folder and settings."""
    path = kept.path(Row("teacher", "", None, ())).with_suffix(".pt")
    if not path.is_file():
        way = _sample(load_teacher(), kept.settings)
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save({name: getattr(way, name) for name in WAY}, part)
        os.replace(part, path)
    return _read_teacher(path, kept.settings)


@cache
def _read_teacher(path: Path, settings: Settings) -> trajectory.Trajectory:
    found = torch.load(path, weights_only=True)
    return trajectory.Trajectory(tuple(captions(settings)), _seeds(settings), _as_drawn(settings),
                                 prediction_type="epsilon", **found)


@cache
def load_teacher():
    """The testbed, its fp16 weights computed with in float32."""
    from diffusers import StableDiffusionXLPipeline

    quiet()
    return StableDiffusionXLPipeline.from_pretrained(TESTBED, low_cpu_mem_usage=False, local_files_only=True,
                                                     add_watermarker=False).to(torch.float32)


def eight_bits(images: torch.Tensor) -> torch.Tensor:
    """[n, 3, height, width], 0 to 1 -> uint8 [n, height, width, 3]; a broken model's NaN is black."""
    pixels = images.nan_to_num(0).clamp(0, 1)
    return (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous()


def as_images(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [n, height, width, 3] -> float32 [n, 3, height, width], 0 to 1"""
    return pictures.permute(0, 3, 1, 2).float() / 255


@cache
def captions(settings: Settings) -> tuple[str, ...]:
    """Of scenes the testbed was not trained on."""
    spec = importlib.util.spec_from_file_location("testbed_scenes", ROOT / "testbed" / "scenes.py")
    scenes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenes)
    return tuple(scenes.scene(settings.scenes, index)[1] for index in range(settings.prompts))


def _seeds(settings: Settings) -> tuple[int, ...]:
    return tuple(range(settings.noise, settings.noise + settings.prompts))


def _as_drawn(settings: Settings) -> trajectory.Settings:
    return trajectory.Settings(settings.steps, settings.guidance, (settings.side, settings.side), "model")


def _sample(pipe, settings: Settings) -> trajectory.Trajectory:
    return trajectory.sample(pipe, captions(settings), _seeds(settings), settings.steps, settings.guidance,
                             (settings.side, settings.side), batch=settings.batch)
