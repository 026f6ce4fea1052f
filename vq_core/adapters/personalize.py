"""personalize(): a vqpack file and a subject's pictures in, a small adapter out. A stopped run goes on."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..calibration.settings import Picture, preset_settings
from ..compare.models import free_memory, open_checkpoint
from ..compare.prompts import Prompts
from ..configs import read_config
from ..errors import PlanError
from ..progress import Progress
from ..tuning.drawing import Look, Looking
from ..tuning.inputs import MANY_STEPS
from ..tuning.job import NothingGained, Result, digest, in_words
from ..tuning.loop import Course
from ..tuning.settings import Tuning
from ..tuning.teacher import CheckpointTeacher, check_together
from .drawing import Preview, Prompted, Sampler
from .job import AdapterJob
from .settings import Scaling
from .student import AdapterStudent
from .subject import Prior, SubjectLessons, Subjects, read_subjects

STEPS, BATCH, CHECKS = 400, 4, 10
RATE = 3.0                                 # times tuning's; benchmarks/personalize.py
MOST_PREVIEWS = 4


def defaults(**changes) -> Tuning:
    """How a subject is learned unless something else is asked for."""
    return replace(Tuning(steps=STEPS, batch=BATCH, together=BATCH, checks=CHECKS, rate=RATE, scaling=Scaling()),
                   **changes)


def personalize(path: str | Path, images: str | Path | Sequence[tuple[str | Path, str | None]],
                output: str | Path | None = None, *, prompt: str | None = None, source: str | Path | None = None,
                prior: Prior | None = None, previews: Sequence[str] | None = None, tuning: Tuning | None = None,
                preset: str = "base", size: tuple[int, int] | None = None, device: str | None = None,
                configs: str | Path | None = None, overwrite: bool = False, finish: bool = False,
                progress: Progress | None = None, tell: Callable[[str], None] | None = None,
                show: Callable[[Look], None] | None = None, **settings) -> Result:
    """Learn a subject from 3 to 10 pictures (DreamBooth's loss, arXiv 2208.12242; scales as TuneQDM, 2401.04339).

    path: the file. images: folder, `prompt` what its pictures show; or (folder, prompt) for each of several subjects.
    A text file beside a picture goes before the prompt. output: file or folder, None = beside the file. source:
    checkpoint whose VAE and text encoders are used, None = the file's own. prior: pictures of the class that the model
    shall not forget. previews: prompts that `show` gets drawn, None = the subjects' prompts. settings: fields of
    calibration.settings.Settings for what is drawn. Other arguments as in tuning.run.tune.
    Raises VQError; where nothing got better NothingGained, and nothing is written.
    """
    started, progress, tuning = time.monotonic(), progress or Progress(), tuning or defaults()
    given = [(images, prompt)] if isinstance(images, str | Path) else list(images)
    tuning.check()
    if preset not in MANY_STEPS:
        raise PlanError(f"a subject is learned as base models are trained, which undoes what makes a model of the "
                        f"preset '{preset}' draw in few steps: learn it with the base model's file")
    file = open_checkpoint(path, "B")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    teacher = CheckpointTeacher(file if source is None else open_checkpoint(source, "A"), file, device, configs)
    check_together(file, teacher)
    chosen = preset_settings(preset, size or teacher.size(), **settings, device=torch.device(device).type)
    chosen.check(teacher.factor(), teacher.samplers, teacher.schedulers)
    step = teacher.factor() * 2 ** (len(read_config("unet", teacher.configs).get("block_out_channels", (0,) * 3)) - 1)
    subjects = read_subjects(given, prior, chosen, step, progress)
    shown = [p for _, p in given if p] if previews is None else list(previews)
    job = PersonalJob(file, teacher, tuning, chosen, subjects, shown[:MOST_PREVIEWS], progress,
                      tell or (lambda _: None))
    job.use(None, None, device)
    with in_words(job):
        return job.run(job.target(output), overwrite, finish, None, show, started)


class PersonalJob(AdapterJob):
    """One subject or several."""

    ending, learned_from = "-personal", "images"
    beside = "before, its VAE and text encoders are on the device beside the student"

    def __init__(self, file, teacher, tuning: Tuning, settings, subjects: Subjects, previews: Sequence[str],
                 progress: Progress, tell: Callable[[str], None]):
        self.subjects, self.previews, self.preview = subjects, previews, None
        images = [image for image in subjects.images if image is not None]
        texts = tuple(picture.prompt for picture in subjects.pictures)
        super().__init__(file, teacher, tuning, settings, Prompts(texts, "images", subjects.notes), images, progress,
                         tell)
        self.guidance, self.settings = settings.guidance, replace(settings, guidance=1.0)      # lessons have no halves
        self.drawn = digest([self.drawn, [picture.held_out for picture in subjects.pictures],
                             subjects.prior and asdict(subjects.prior), file.content or str(file.identity)])
        self.fingerprint = digest([self.fingerprint, self.drawn])
        self.asked.append(self.drawn)

    def drawn_from(self, prompts: Prompts) -> list[Picture]:
        """The subjects' and the class'."""
        return list(self.subjects.pictures)

    def judges(self) -> str:
        """For people."""
        return "held-out pictures and noise"

    def lessons(self, root: Path, student: AdapterStudent) -> SubjectLessons:
        """Pictures through the VAE, captions through the text encoders, the class drawn; what is there is taken."""
        pipe = self.teacher.pipeline(unet=student.unet)
        sampler = self._sampler(pipe)
        lessons = SubjectLessons(self.folder(root), self.subjects, student.unet, sampler, self.progress)
        lessons.schedule(pipe.scheduler, self.teacher.name)
        lessons.record(pipe, self.progress)
        if self.previews:
            said = [Prompted.of(pipe, prompt, self.settings.size) for prompt in self.previews]
            self.preview = Preview(sampler, said, self.settings.seed)
        del pipe
        free_memory()
        lessons.sort_out(self.teacher.name)
        if lessons.left_out:
            self.say(f"{lessons.left_out} calls gave NaN or infinite values and were left out.")
        return lessons

    def _sampler(self, pipe) -> Sampler:
        size = tuple(side // self.teacher.factor() for side in self.settings.size)
        return Sampler(pipe.scheduler, self.teacher.name, self.settings.steps, self.guidance, size)

    def looking(self, student: AdapterStudent, lessons: SubjectLessons, show: Callable[[Look], None]
                ) -> Callable[[Course], None]:
        """Draws the previews."""
        return Looking(student, self.preview, show, self.progress)

    def facts(self, student: AdapterStudent, course: Course, run: str) -> dict:
        """And whether the class was kept; never a caption."""
        return {**super().facts(student, course, run), "prior": self.subjects.prior is not None}

    def check_gain(self, course: Course) -> None:
        """NothingGained where the best is no better than the start."""
        if not course.best < course.start:
            raise NothingGained(f"{course.step} steps did not lower the error on held-out pictures and noise, so "
                                f"nothing was written: give more steps, other pictures, or another --rate")
