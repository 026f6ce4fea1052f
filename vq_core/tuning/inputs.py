"""What a fine-tune is given, checked: file and teacher together, prompts, or a folder of pictures."""
from __future__ import annotations

from pathlib import Path

from ..calibration.settings import Settings
from ..compare.models import NEEDS_PICTURE, Checkpoint, Models, built_in_prompts, described, unet_shapes
from ..compare.prompts import BUILT_IN, Prompts, read_prompts
from ..configs import read_config
from ..errors import FormatError, PlanError, UnsupportedError
from ..progress import Progress
from .images import Image, read_folder
from .settings import Tuning

LONGEST_PROMPT = 1 << 20                   # characters; what the encoders do not read is cut
MANY_STEPS = ("base", "v")                 # presets of models that are trained as --images trains


def check_together(file: Checkpoint, original: Checkpoint) -> None:
    if file.kind != "vqpack file":
        raise UnsupportedError(f"'{file.name}' is an ordinary checkpoint: give a file of `vqpack quantize`")
    if original.architecture.name in NEEDS_PICTURE:
        raise UnsupportedError(f"'{original.name}' is {NEEDS_PICTURE[original.architecture.name]}, which starts from a "
                               f"picture, and tune draws from text")
    if unet_shapes(file) != unet_shapes(original):
        raise UnsupportedError(f"the teacher '{original.name}' is {described(original)} and '{file.name}' is "
                               f"{described(file)}: the teacher must be the checkpoint the file was made from")
    kinds = [(c.architecture.prediction, c.architecture.zero_terminal_snr) for c in (file, original)]
    if kinds[0] != kinds[1]:
        raise UnsupportedError(f"the teacher '{original.name}' predicts '{kinds[1][0]}' and '{file.name}' "
                               f"'{kinds[0][0]}': the teacher must be the checkpoint the file was made from")


def read_given_prompts(prompts, count: int | None, original: Checkpoint) -> Prompts:
    if isinstance(prompts, str | Path):
        return read_prompts(prompts, count, built_in_prompts(original), longest=LONGEST_PROMPT)
    texts = tuple(dict.fromkeys(text.strip() for text in prompts if text.strip()))
    if not texts:
        raise FormatError("the list of prompts is empty: tune needs at least one prompt")
    return Prompts(texts[:count], "list")


def read_images(folder: str | Path, models: Models, original: Checkpoint, settings: Settings, tuning: Tuning, prompts,
                count: int | None, progress: Progress) -> tuple[list[Image], Prompts]:
    """-> pictures and their captions; PlanError where something else asks for drawing."""
    if settings.preset not in MANY_STEPS:
        raise PlanError(f"--images trains as base models are trained, which undoes what makes a model of the preset "
                        f"'{settings.preset}' draw in few steps: leave one of the two out")
    if prompts != BUILT_IN or count is not None:
        raise PlanError("--images brings its own captions: leave out --prompts and --count")
    if tuning.loss != "halves" or tuning.trajectory != "teacher":
        raise PlanError("--images asks no teacher and draws nothing, so --loss and --trajectory must be left out")
    unet = read_config("unet", models.folder(original))
    step = models.factor() * 2 ** (len(unet.get("block_out_channels", (0,) * 3)) - 1)
    images, notes = read_folder(folder, settings.size[0] * settings.size[1], step, progress)
    return images, Prompts(tuple(image.caption for image in images), "images", tuple(notes))
