"""What a fine-tune is given instead of prompts, checked: a folder of pictures."""
from __future__ import annotations

from pathlib import Path

from ..calibration.settings import Settings
from ..compare.prompts import BUILT_IN, Prompts
from ..configs import read_config
from ..errors import PlanError
from ..progress import Progress
from .images import Image, read_folder
from .settings import Tuning

MANY_STEPS = ("base", "v")                 # presets of models that are trained as --images trains


def read_images(folder: str | Path, teacher, settings: Settings, tuning: Tuning, prompts, count: int | None,
                progress: Progress) -> tuple[list[Image], Prompts]:
    """-> pictures and their captions; PlanError where something else asks for drawing."""
    if settings.preset not in MANY_STEPS:
        raise PlanError(f"--images trains as base models are trained, which undoes what makes a model of the preset "
                        f"'{settings.preset}' draw in few steps: leave one of the two out")
    if prompts != BUILT_IN or count is not None:
        raise PlanError("--images brings its own captions: leave out --prompts and --count")
    if tuning.loss != "halves" or tuning.trajectory != "teacher":
        raise PlanError("--images asks no teacher and draws nothing, so --loss and --trajectory must be left out")
    if not hasattr(teacher, "pipeline"):
        raise PlanError("--images need a checkpoint's VAE and text encoders: give the original as a file")
    unet = read_config("unet", teacher.configs)
    step = teacher.factor() * 2 ** (len(unet.get("block_out_channels", (0,) * 3)) - 1)
    images, notes = read_folder(folder, settings.size[0] * settings.size[1], step, progress)
    return images, Prompts(tuple(image.caption for image in images), "images", tuple(notes))
