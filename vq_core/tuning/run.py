"""tune(): a vqpack file, its teacher and prompts in, a better file of the same codes out. A stopped run goes on."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..adapters.job import AdapterJob
from ..calibration.run import read_given
from ..calibration.settings import preset_settings
from ..compare.models import open_checkpoint
from ..compare.prompts import BUILT_IN
from ..errors import PlanError
from ..progress import Progress
from .drawing import Look
from .images import Image
from .inputs import read_images
from .job import Job, NothingGained, Result, in_words, state_folder
from .settings import Tuning
from .teacher import CheckpointTeacher, check_together

__all__ = ["HELD_OUT_SHARE", "MINUTES", "NothingGained", "Result", "state_folder", "tune"]

MINUTES = 30.0
HELD_OUT_SHARE = 0.2                       # of the pictures


def tune(path: str | Path, teacher: str | Path | CheckpointTeacher, output: str | Path | None = None, *,
         prompts: str | Path | Sequence[str] = BUILT_IN, count: int | None = None, tuning: Tuning | None = None,
         preset: str = "base", size: tuple[int, int] | None = None, device: str | None = None,
         configs: str | Path | None = None, calibration: str | Path | None = None,
         recordings: str | Path | None = None, images: str | Path | None = None, overwrite: bool = False,
         finish: bool = False, run: str | None = None, progress: Progress | None = None,
         tell: Callable[[str], None] | None = None, show: Callable[[Look], None] | None = None, **settings) -> Result:
    """Teach a vqpack file to predict what the checkpoint it was made from predicts; codes move only where asked.

    path: the file. teacher: the original, any checkpoint of the same architecture and kind of prediction, or an object
    like teacher.CheckpointTeacher. output: file or folder, None = beside the file; the file itself where `overwrite`.
    prompts: "built-in", a file, or a list; a fifth of them is held out. finish: write the best that a stopped run has
    found, without another step. settings: fields of calibration.settings.Settings that replace the preset's.
    calibration: file of `vqpack calibrate`, for where low-rank branches begin. run: what the file says by which the
    same run finds it, None = a hash of all that decides it. tell: called with each sentence worth reading; show: with
    a Look at the start, after each look at the held-out pictures and at the end. recordings: folder where what the
    teacher said is kept for other runs. images: folder of pictures with captions; the file then learns to predict the
    noise in them (DDPM's loss). The same input, settings and number of steps give the same bytes on the CPU.
    With tuning.scaling the result is an adapter, docs/adapters.md, and the file stays as it is.
    Raises VQError; where nothing got better NothingGained, and nothing is written.
    """
    started, progress = time.monotonic(), progress or Progress()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tuning = tuning or Tuning(minutes=MINUTES)
    tuning.check()
    file = open_checkpoint(path, "B")
    if isinstance(teacher, str | Path):
        teacher = CheckpointTeacher(open_checkpoint(teacher, "A"), file, device, configs)
    check_together(file, teacher)
    teacher.check(tuning.trajectory)
    chosen = preset_settings(preset, size or teacher.size(), **{"held_out_share": HELD_OUT_SHARE, **settings},
                             device=torch.device(device).type)
    if settings.get("timesteps") is None:
        chosen = replace(chosen, timesteps=chosen.steps)     # every step that is drawn is learned from
    try:
        chosen.check(teacher.factor(), teacher.samplers, teacher.schedulers)
    except PlanError as error:             # --steps are of learning here
        raise PlanError(str(error).replace("--steps", "--sampler-steps")) from None
    pictured: list[Image] = []
    if images is None:
        given = read_given(prompts, count, teacher.built_in)
    else:
        pictured, given = read_images(images, teacher, chosen, tuning, prompts, count, progress)
        chosen = replace(chosen, guidance=1.0)               # no halves
    kind = Job if tuning.scaling is None else AdapterJob
    job = kind(file, teacher, tuning, chosen, given, pictured, progress, tell or (lambda _: None))
    job.use(calibration, recordings, device)
    with in_words(job):
        return job.run(job.target(output), overwrite, finish, run, show, started)
