"""Who is learned from: a checkpoint that diffusers draws. Who has a model in memory gives an object with these members.

The ComfyUI node does (nodes/teacher.py): run.tune() records, learns and writes the same way for both.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from .. import trajectory
from ..calibration.calls import Calls, draw
from ..calibration.settings import Picture, Settings
from ..compare.models import (
    NEEDS_PICTURE,
    Checkpoint,
    Models,
    built_in_prompts,
    described,
    find_configs,
    unet_shapes,
)
from ..errors import UnsupportedError
from ..progress import Progress
from ..source_reader import open_reader
from .lessons import Lessons


class CheckpointTeacher:
    """A checkpoint of any kind, drawn with its own sampler.

    name, architecture, shapes (LDM key -> shape): what it is; samplers, schedulers: names it can be drawn with;
    built_in: prompts it can follow; configs: diffusers folder of its UNet's configuration, None = SDXL's own.
    """

    samplers: Sequence[str] = tuple(trajectory.SAMPLERS)
    schedulers: Sequence[str] = tuple(trajectory.SCHEDULERS)

    def __init__(self, original: Checkpoint, student: Checkpoint, device: str, configs: str | Path | None = None):
        self.name, self.architecture, self.shapes = original.name, original.architecture, original.shapes
        self._checkpoint = original
        self._models = Models((original, student), device, find_configs([original, student], configs))
        self.configs = self._models.folder(original) or self._models.folder(student)
        self.built_in = built_in_prompts(original)

    def identity(self, progress: Progress):
        """What its recordings are kept under: names, sizes and times of its files."""
        return self._checkpoint.identity

    def size(self) -> tuple[int, int]:
        """The model's own picture size: (height, width)."""
        return self._models.size()

    def factor(self) -> int:
        """Pixels a latent."""
        return self._models.factor()

    def weights(self):
        """Its weights, to be closed: an opened reader that decompress.decode_tensor takes."""
        return open_reader(self._checkpoint.path)

    def pipeline(self, **ready):
        """Its diffusers pipeline, with VAE and text encoders. ready: parts that need not be loaded."""
        return self._models.pipeline(self._checkpoint, **ready)

    def check(self, trajectory: str) -> None:
        """UnsupportedError where pictures cannot be drawn by whom `trajectory` (of lessons.TRAJECTORIES) says."""

    def record(self, lessons: Lessons, student_unet, trajectory: str, settings: Settings, progress: Progress) -> None:
        """Draw the pictures that are missing, with the student in the teacher's place where `trajectory` says so, and
        keep what the teacher says at every step.
        """
        pipe = self.pipeline()
        drawn = partial(_drawn, pipe, pipe.unet, student_unet, trajectory, settings, progress)
        lessons.record(drawn, progress)


def _drawn(pipe, teacher, student_unet, trajectory: str, settings: Settings, progress: Progress, picture: Picture
           ) -> tuple[Calls, list[torch.Tensor]]:
    """One picture. No closure: the frames of an exception would keep what it closes over, however they are cleared."""
    by_student = trajectory == "student" or (trajectory == "mixed" and picture.index % 2 == 1)
    pipe.unet = student_unet if by_student else teacher
    calls = draw(pipe, picture, settings, progress)
    return calls, [calls.ask(teacher, call) for call in range(len(calls.steps))]


def check_together(student: Checkpoint, teacher) -> None:
    """UnsupportedError in one sentence where the file cannot learn from this teacher."""
    if student.kind != "vqpack file":
        raise UnsupportedError(f"'{student.name}' is an ordinary checkpoint: give a file of `vqpack quantize`")
    if teacher.architecture.name in NEEDS_PICTURE:
        raise UnsupportedError(f"'{teacher.name}' is {NEEDS_PICTURE[teacher.architecture.name]}, which starts from a "
                               f"picture, and tune draws from text")
    if unet_shapes(student) != unet_shapes(teacher):
        raise UnsupportedError(f"the teacher '{teacher.name}' is {described(teacher)} and '{student.name}' is "
                               f"{described(student)}: the teacher must be the checkpoint the file was made from")
    kinds = [(c.architecture.prediction, c.architecture.zero_terminal_snr) for c in (student, teacher)]
    if kinds[0] != kinds[1]:
        raise UnsupportedError(f"the teacher '{teacher.name}' predicts '{kinds[1][0]}' and '{student.name}' "
                               f"'{kinds[0][0]}': the teacher must be the checkpoint the file was made from")
