"""What pictures teach: noise mixed in at random levels, to be predicted (DDPM's training loss; DPQ 2.2, item 5)."""
from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..calibration.settings import GOLDEN, Picture
from ..errors import UnsupportedError
from ..progress import Progress
from .images import Image, fitted
from .lessons import ADDED, TEXT, Batch

DRAWS = 32                                 # of noise and level for a picture; then they come again
HELD_OUT_DRAWS = 4
EMPTY_EVERY = 10                           # draws: one without its caption, so that guidance keeps its other half
_NAMES = ("latents", "text", "pooled", "empty_text", "empty_pooled", "time_ids")


class ImageLessons:
    """Encoded pictures in a folder, with Lessons' members. alphas: how much of a picture is left at each timestep.

    empty_every: one draw of so many has no caption; 0: none.
    """

    def __init__(self, folder: Path, pictures: Sequence[Picture], images: Sequence[Image | None],
                 empty_every: int = EMPTY_EVERY):
        self.empty_every = empty_every
        self.folder, self.pictures, self.images = folder, list(pictures), list(images)
        self._encoded: dict[int, dict[str, torch.Tensor]] = {}
        self.alphas, self.velocity = torch.zeros(0), False
        self.train: list[tuple[int, int]] = []
        self.held_out: list[tuple[int, int]] = []
        self.left_out = 0

    def schedule(self, scheduler, name: str) -> None:
        """Take the noise schedule of a model. UnsupportedError where it has none of DDPM's kind."""
        kind = scheduler.config.get("prediction_type", "epsilon")
        if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "v_prediction"):
            raise UnsupportedError(f"'{name}' has a noise schedule of its own kind ({type(scheduler).__name__}), and "
                                   f"--images mixes noise as SD and SDXL do: tune without it")
        self.alphas, self.velocity = scheduler.alphas_cumprod.float().cpu(), kind == "v_prediction"

    def draws(self, picture: Picture) -> int:
        """Of noise and level, of one picture."""
        return HELD_OUT_DRAWS if picture.held_out else DRAWS

    def missing(self) -> list[Picture]:
        """Pictures that were not encoded yet."""
        return [picture for picture in self.pictures if self._load(picture.index) is None]

    @torch.no_grad()
    def record(self, pipe, progress: Progress) -> None:
        """Encode what is missing with a model's own VAE and text encoders."""
        todo = self.missing()
        progress.start("encoding pictures", max(1, len(todo)))
        dtype = pipe.vae.dtype
        pipe.vae.float()                   # SDXL's gives NaN in float16
        for picture in todo:
            progress.advance(1, picture.prompt[:50])
            self._save(picture.index, self.encode(pipe, picture))
        pipe.vae.to(dtype)
        progress.finish()

    def encode(self, pipe, picture: Picture) -> dict[str, torch.Tensor]:
        """What is kept of one picture."""
        return encoded(pipe, self.images[picture.index])

    def sort_out(self, name: str) -> None:
        """Fill train and held_out; UnsupportedError where the VAE gave nothing finite."""
        self.train, self.held_out, self.left_out = [], [], 0
        for picture in self.pictures:
            draws = self.draws(picture)
            if all(bool(torch.isfinite(value).all()) for value in self._get(picture.index).values()):
                (self.held_out if picture.held_out else self.train).extend((picture.index, i) for i in range(draws))
            else:
                self.left_out += draws
        if not self.train or not self.held_out:
            raise UnsupportedError(f"the VAE or the text encoders of '{name}' gave NaN or infinite values for the "
                                   f"pictures: check the checkpoint")

    def batch(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        """Draws together, of pictures of one bucket."""
        found = [self._draw(picture, draw) for picture, draw in chosen]
        samples, answers, times = (torch.stack(some) for some in zip(*(item[:3] for item in found)))
        fixed = {name: torch.stack([item[3][name] for item in found]) for name in found[0][3]}
        return Batch(samples, times, fixed, answers[:, None], times.float())

    def batches(self, chosen: Sequence[tuple[int, int]], together: int):
        """All of `chosen` in batches of at most `together`, bucket by bucket."""
        shapes: dict[tuple, list] = {}
        for item in chosen:
            shapes.setdefault(tuple(self._get(item[0])["latents"].shape), []).append(item)
        for some in shapes.values():
            for first in range(0, len(some), together):
                yield self.batch(some[first:first + together])

    def power(self) -> float:
        """Mean square of at most 64 targets."""
        some = self.train[:: max(1, len(self.train) // 64)]
        return float(torch.stack([self._draw(*item)[1].square().mean() for item in some]).mean())

    def _draw(self, index: int, draw: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict]:
        """-> sample, target [4, h, w], timestep, conditions. The same for the same numbers."""
        picture, kept = self.pictures[index], self._get(index)
        random = torch.Generator().manual_seed((picture.seed << 8) + draw)
        noise = torch.randn(kept["latents"].shape, generator=random)
        draws = self.draws(picture)
        within = 0.5 if picture.held_out else float(torch.rand((), generator=random))
        place = ((draw + within) / draws + index * GOLDEN) % 1.0           # a draw an interval, shifted by picture
        time = torch.tensor(min(len(self.alphas) - 1, int(place * len(self.alphas))))
        every = self.empty_every
        empty = "empty_" if every and not picture.held_out and draw % every == every - 1 else ""
        fixed = {TEXT: kept[f"{empty}text"], f"{ADDED}text_embeds": kept[f"{empty}pooled"],
                 f"{ADDED}time_ids": kept["time_ids"]}
        return *mixed(kept["latents"], noise, self.alphas[time], self.velocity), time, fixed

    def _get(self, index: int) -> dict[str, torch.Tensor]:
        found = self._load(index)
        if found is None:
            raise UnsupportedError(f"an encoded picture is gone from '{self.folder.name}': run the same command again")
        return found

    def _load(self, index: int) -> dict[str, torch.Tensor] | None:
        if index not in self._encoded:
            try:
                with np.load(self._path(index), allow_pickle=False) as file:
                    self._encoded[index] = {name: torch.from_numpy(file[name]) for name in _NAMES}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                return None
        return self._encoded[index]

    def _save(self, index: int, values: dict[str, torch.Tensor]) -> None:
        part = self._path(index).with_suffix(".part")
        with open(part, "wb") as file:
            np.savez(file, **{name: value.float().cpu().numpy() for name, value in values.items()})
        os.replace(part, self._path(index))

    def _path(self, index: int) -> Path:
        return self.folder / f"image-{index:05d}.npz"


def mixed(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, velocity: bool
          ) -> tuple[torch.Tensor, torch.Tensor]:
    """-> what the UNet sees and what it should say: the noise, or v = sqrt(a) noise - sqrt(1 - a) clean.

    Ho et al. 2020, equation 14; Salimans and Ho 2022, section 2.4.
    """
    kept, added = alpha.sqrt(), (1 - alpha).sqrt()
    return kept * clean + added * noise, kept * noise - added * clean if velocity else noise


def encoded(pipe, image: Image) -> dict[str, torch.Tensor]:
    """A picture's latents [4, h, w], what the text encoders say of its caption and of nothing, SDXL's size numbers."""
    picture, corner = fitted(image)
    latents = pipe.vae.encode(picture[None].to(pipe.vae.device)).latent_dist.mode()[0]
    latents = (latents - (pipe.vae.config.get("shift_factor") or 0.0)) * pipe.vae.config.scaling_factor
    text, empty, pooled, empty_pooled = pipe.encode_prompt(image.caption, device=pipe.unet.device,
                                                           do_classifier_free_guidance=True)
    numbers = torch.tensor([*image.size, *corner, *image.bucket], dtype=torch.float32)
    return {"latents": latents, "text": text[0], "pooled": pooled[0], "empty_text": empty[0],
            "empty_pooled": empty_pooled[0], "time_ids": numbers}
