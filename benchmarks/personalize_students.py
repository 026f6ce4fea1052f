"""DreamBooth in full precision: every weight of the testbed's UNet learns, with personalize()'s loss and loop."""
from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from alias import load_vqpack
from testbed_bench import SIDE

load_vqpack()
from vqpack.vq_core.adapters.drawing import Sampler  # noqa: E402
from vqpack.vq_core.adapters.personalize import BATCH, CHECKS  # noqa: E402
from vqpack.vq_core.adapters.subject import SubjectLessons, read_subjects  # noqa: E402
from vqpack.vq_core.calibration.settings import preset_settings  # noqa: E402
from vqpack.vq_core.progress import Progress  # noqa: E402
from vqpack.vq_core.tuning.loop import Loop  # noqa: E402
from vqpack.vq_core.tuning.settings import Tuning  # noqa: E402
from vqpack.vq_core.tuning.student import Trainable  # noqa: E402

# Of AdamW. Other pictures of the first subject, 150 steps, 8 pictures drawn: subject .450 at 3e-5, .461 at 1e-4, .358
# at 3e-4.
RATE = 1e-4


class DenseStudent:
    """What the loop asks of a student: all parameters, one learning rate, nothing rounded."""

    def __init__(self, unet: torch.nn.Module, rate: float):
        self.unet, self.rate = unet.requires_grad_(True), rate
        self.trainable = {name: Trainable(value, "dense", 1.0) for name, value in unet.named_parameters()}

    def groups(self, rates: Mapping[str, float]) -> list[dict]:
        return [{"params": [item.parameter for item in self.trainable.values()], "lr": self.rate, "base": self.rate}]

    def values(self) -> dict[str, torch.Tensor]:
        return {name: item.parameter.detach().clone() for name, item in self.trainable.items()}

    def take(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, item in self.trainable.items():
            item.parameter.data.copy_(values[name])

    @contextmanager
    def as_stored(self):
        yield

    def sharpen(self, progress: float) -> None:
        """Nothing is a mixture."""

    def keep_in_range(self) -> None:
        """Everything is in range."""

    def reassign(self) -> dict:
        return {}

    def changed(self) -> float:
        return 0.0


def dreambooth(pipe, folders: list[tuple[Path, None]], steps: int, folder: Path, rate: float = RATE) -> dict:
    """Train a pipeline's UNet in place, the best kept -> facts"""
    settings, progress = preset_settings("base", (SIDE, SIDE)), Progress()
    subjects = read_subjects(folders, None, settings, 16, progress)
    folder.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(pipe.scheduler, "the testbed", settings.steps, 1.0, (SIDE // 4, SIDE // 4))
    lessons = SubjectLessons(folder, subjects, pipe.unet, sampler, progress)
    lessons.schedule(pipe.scheduler, "the testbed")
    lessons.record(pipe, progress)
    lessons.sort_out("the testbed")
    student = DenseStudent(pipe.unet, rate)
    tuning = Tuning(steps=steps, batch=BATCH, together=BATCH, checks=CHECKS)
    loop = Loop(student, lessons, tuning, 1.0, progress, folder / "state.npz", print)
    loop.course.rate = 1.0
    course = loop.run()
    pipe.unet.requires_grad_(False)
    assert math.isfinite(course.best)
    return {"before": course.start, "after": course.best, "best_step": course.best_step, "bits": 32.0}
