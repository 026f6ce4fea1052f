"""What a subject's pictures teach (DreamBooth, arXiv 2208.12242), who judges, and pictures of the subject's class."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..calibration.settings import Picture, Settings
from ..errors import FormatError, PlanError
from ..progress import Progress
from ..tuning.image_lessons import ImageLessons
from ..tuning.images import Image, read_folder
from .drawing import Prompted, Sampler

DRAWS, JUDGED_DRAWS = 128, 16              # of noise and level, of one picture
JUDGE_FROM = 4                             # pictures of a subject, from which one of them only judges
FEW = 3                                    # DreamBooth's least
_NOTHING = "\0"                            # the caption of a picture that has none
PRIOR_HELD_OUT = 8                         # one of so many pictures of the class judges


@dataclass(frozen=True)
class Prior:
    """Pictures of the subject's class, drawn by the model as it is, so that it does not forget them. weight: of their
    share of the lessons, the subject's is 1."""

    prompt: str
    count: int = 24
    weight: float = 1.0

    def check(self) -> None:
        """PlanError in one sentence."""
        if not self.prompt.strip():
            raise PlanError("--prior must say what the subject is one of, e.g. 'a photo of a dog', got an empty text")
        for name, value, low, high in (("--prior-count", self.count, 2, 10**4), ("--prior-weight", self.weight, 0.01,
                                                                                 100)):
            if not low <= value <= high:
                raise PlanError(f"{name} must be {low} to {high}, got {value:g}")


@dataclass(frozen=True)
class Subjects:
    """images[i] belongs to pictures[i]; None: a picture of the class, drawn by the model."""

    pictures: tuple[Picture, ...]
    images: tuple[Image | None, ...]
    prior: Prior | None
    notes: tuple[str, ...]


def read_subjects(given: Sequence[tuple[str | Path, str | None]], prior: Prior | None, settings: Settings, step: int,
                  progress: Progress) -> Subjects:
    """given: a folder and what its pictures show, for each subject. step: sides of a picture are multiples of it.

    FormatError where a folder holds no picture that can be read, or one has no caption.
    """
    pairs, notes = [], []
    for folder, prompt in given:
        found, said = read_folder(folder, settings.size[0] * settings.size[1], step, progress, 1, prompt or _NOTHING)
        notes += [*said, *_few(Path(folder).name, found)]
        pairs += list(_judged(found))
    if prior is not None:
        prior.check()
        pairs += [(None, i % PRIOR_HELD_OUT == PRIOR_HELD_OUT - 1 or i == prior.count - 1) for i in range(prior.count)]
    pictures = tuple(Picture(i, prior.prompt if image is None else image.caption, settings.seed + i, held)
                     for i, (image, held) in enumerate(pairs))
    return Subjects(pictures, tuple(image for image, _ in pairs), prior, tuple(notes))


def _judged(images: Sequence[Image]) -> list[tuple[Image, bool]]:
    """(picture, only judges): the middle one of four and more, else each once more with other noise."""
    for image in images:
        if image.caption == _NOTHING:
            raise FormatError(f"nothing says what '{image.name}' shows: give --prompt, or a text file "
                              f"'{image.path.stem}.txt' beside it")
    if len(images) >= JUDGE_FROM:
        return [(image, i == len(images) // 2) for i, image in enumerate(images)]
    return [(image, held) for held in (False, True) for image in images]


def _few(name: str, images: Sequence[Image]) -> list[str]:
    if len(images) >= JUDGE_FROM:
        return []
    count = "1 picture" if len(images) == 1 else f"{len(images)} pictures"
    more = "" if len(images) >= FEW else ", and what is around the subject is learned with it: 3 to 10 are better"
    return [f"'{name}' holds {count}, too few for one that only judges: other noise on the same ones does{more}."]


class SubjectLessons(ImageLessons):
    """Pictures with their captions; those of the class are drawn by `unet` when they are missing."""

    def __init__(self, folder: Path, subjects: Subjects, unet, sampler: Sampler, progress: Progress):
        super().__init__(folder, subjects.pictures, subjects.images, empty_every=0)
        self.unet, self.sampler, self.progress, self.prior = unet, sampler, progress, subjects.prior
        own = sum(image is not None and not picture.held_out
                  for picture, image in zip(subjects.pictures, subjects.images, strict=True))
        others = sum(not picture.held_out for picture in subjects.pictures) - own
        self._of_class = max(1, round(DRAWS * own * self.prior.weight / others)) if others else 0

    def draws(self, picture: Picture) -> int:
        """So many that the class has its share."""
        if picture.held_out:
            return JUDGED_DRAWS
        return DRAWS if self.images[picture.index] is not None else self._of_class

    def encode(self, pipe, picture: Picture) -> dict[str, torch.Tensor]:
        """By the VAE, or drawn."""
        if self.images[picture.index] is not None:
            return super().encode(pipe, picture)
        height, width = (side * pipe.vae_scale_factor for side in self.sampler.size)
        said = Prompted.of(pipe, picture.prompt, (height, width))
        latents = self.sampler.draw(self.unet, [said], [picture.seed], self.progress)
        return {"latents": latents[0], "text": said.text[1], "pooled": said.pooled[1], "empty_text": said.text[0],
                "empty_pooled": said.pooled[0], "time_ids": said.time_ids}
