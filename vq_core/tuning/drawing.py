"""A held-out prompt drawn by the student as it learns, to be looked at: Euler's method over the recorded timesteps.

Neither text encoders nor a pipeline are needed: the recorded calls hold text states, times and the first state, and the
teacher's last answer is its picture.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..adapters.noise_levels import NoiseTable
from ..compare.models import Checkpoint
from ..pipeline import load_parts
from ..progress import Progress
from .lessons import Lessons


@dataclass(frozen=True)
class Look:
    """How far a run has come, for people. Latents [1, 4, h, w] as the sampler has them; None where none are drawn."""

    history: tuple[tuple[int, float], ...]     # (step, held-out error)
    steps: int | None                      # of the whole run, None: not known yet
    teacher: torch.Tensor | None = None
    before: torch.Tensor | None = None     # by the student at the start
    now: torch.Tensor | None = None

    @property
    def pictures(self) -> dict[str, torch.Tensor]:
        """What there is to be seen, by its caption."""
        named = {"original": self.teacher, "before": self.before, "tuned": self.now}
        return {name: latents for name, latents in named.items() if latents is not None}


class Drawing:
    """The first held-out picture whose recorded calls are all finite, drawn again and again."""

    def __init__(self, lessons: Lessons, picture: int, sigmas: torch.Tensor, prediction: str, guidance: float):
        self.lessons, self.picture, self.prediction, self.guidance = lessons, picture, prediction, guidance
        self.calls = range(len(lessons.calls(picture).steps))
        self._sigmas = sigmas                                              # [calls], and 0 at the end

    @staticmethod
    def of(lessons: Lessons, student: Checkpoint, configs, guidance: float) -> Drawing | None:
        """None where there is no such picture, or noise is not counted in timesteps (EDM)."""
        alphas = getattr(load_parts(student.path, ["scheduler"], configs=configs)["scheduler"], "alphas_cumprod", None)
        found = next((i for i in sorted({i for i, _ in lessons.held_out}) if all(lessons.calls(i).finite)), None)
        if alphas is None or found is None or student.architecture.prediction not in ("eps", "v"):
            return None
        sigmas = NoiseTable(alphas).sigmas(lessons.calls(found).timesteps).float()
        return Drawing(lessons, found, torch.cat([sigmas, torch.zeros(1)]), student.architecture.prediction, guidance)

    def by(self, unet, progress: Progress) -> torch.Tensor:
        """-> latents [1, 4, h, w], float32 on the CPU"""
        state = None
        for call in self.calls:
            progress.check()
            batch = self.lessons.batch([(self.picture, call)])
            if state is not None:
                scaled = state / (1 + self._sigmas[call]**2).sqrt()
                batch = replace(batch, samples=scaled.expand_as(batch.samples))
            with torch.no_grad():
                said = batch.ask(unet)[0].float().cpu()                    # [halves, 4, h, w]
            state = self._next(call, batch.samples[:1], said)
        return state

    def by_teacher(self) -> torch.Tensor:
        """The picture its recorded way ended in -> latents [1, 4, h, w]"""
        last = self.lessons.batch([(self.picture, self.calls[-1])])
        return self._next(self.calls[-1], last.samples[:1], last.answers[0].float())

    def _next(self, call: int, sample: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """One step: sample [1, 4, h, w], what the UNet said of it [halves, 4, h, w] -> the next state [1, 4, h, w]"""
        answer = said[:1] if len(said) == 1 else said[:1] + self.guidance * (said[1:] - said[:1])
        sigma, after = self._sigmas[call], self._sigmas[call + 1]
        size = (1 + sigma**2).sqrt()
        state = sample * size
        clean = state - sigma * answer if self.prediction == "eps" else (sample - sigma * answer) / size
        return clean + (state - clean) * (after / sigma)


class Looking:
    """Shows a course and what the student draws. No closure, as in teacher.py: a stopped run must let go of it all."""

    def __init__(self, student, drawing: Drawing | None, show: Callable[[Look], None], progress: Progress):
        self.student, self.drawing, self.show, self.progress = student, drawing, show, progress
        self.teacher = None if drawing is None else drawing.by_teacher()
        self.before = self._drawn()

    def __call__(self, course) -> None:
        """With the student as a file would hold it."""
        with self.student.as_stored():
            now = self._drawn() if course.step else self.before
        self.show(Look(tuple(course.history), course.steps, self.teacher, self.before, now))

    def _drawn(self) -> torch.Tensor | None:
        return None if self.drawing is None else self.drawing.by(self.student.unet, self.progress)
