"""What the teacher says: its UNet's answers to calls recorded on teacher's or student's own way, picture by picture."""
from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..calibration.calls import Calls, load_calls, save_calls
from ..calibration.settings import Picture
from ..errors import UnsupportedError
from ..progress import Progress

TRAJECTORIES = ("teacher", "student", "mixed")
CACHE_BYTES = 2 << 30                      # of recorded pictures held in memory
TEXT, ADDED = "text", "added."             # as calibration.calls


@dataclass(frozen=True)
class Batch:
    """Calls to be made together, n of them with `halves` guidance halves each."""

    samples: torch.Tensor                  # [n * halves, 4, h, w]
    timesteps: torch.Tensor                # [n * halves]
    fixed: dict[str, torch.Tensor]         # text and added conditions, [n * halves, ...]
    answers: torch.Tensor                  # teacher's, [n, halves, 4, h, w]
    levels: torch.Tensor                   # of noise, [n], 1000 = pure noise

    def ask(self, unet) -> torch.Tensor:
        """-> a UNet's answers [n, halves, 4, h, w]"""
        place = {"device": unet.device, "dtype": unet.dtype}
        fixed = {name: value.to(**place) for name, value in self.fixed.items()}
        added = {name[len(ADDED):]: value for name, value in fixed.items() if name.startswith(ADDED)}
        plain = {name: value for name, value in fixed.items() if name != TEXT and not name.startswith(ADDED)}
        said = unet(self.samples.to(**place), self.timesteps.to(unet.device), added_cond_kwargs=added,
                    encoder_hidden_states=fixed[TEXT], return_dict=False, **plain)[0]
        return said.unflatten(0, self.answers.shape[:2])


class Lessons:
    """Recorded pictures in a folder. train, held_out: (picture, call) of all calls with finite numbers."""

    def __init__(self, folder: Path, pictures: Sequence[Picture]):
        self.folder, self.pictures = folder, list(pictures)
        self._cache: OrderedDict[int, tuple[Calls, torch.Tensor]] = OrderedDict()
        self.train: list[tuple[int, int]] = []
        self.held_out: list[tuple[int, int]] = []
        self.left_out = 0

    def missing(self) -> list[Picture]:
        """Pictures that were not recorded yet."""
        return [picture for picture in self.pictures if self._load(picture.index) is None]

    def record(self, drawn: Callable[[Picture], tuple[Calls, list[torch.Tensor]]], progress: Progress) -> None:
        """Keep what is missing. drawn(picture): its calls and, for each, what the teacher says [halves, 4, h, w]."""
        todo = self.missing()
        progress.start("recording the teacher", max(1, len(todo)))
        for picture in todo:
            progress.advance(0, picture.prompt[:50])
            calls, said = drawn(picture)
            said = [answer.detach().to("cpu", torch.float32) for answer in said]
            self._save(picture.index, calls, torch.stack(said) if said else torch.zeros(0))
        progress.finish()

    def calls(self, picture: int) -> Calls:
        """What the UNet was asked in one picture."""
        return self._get(picture)[0]

    def sort_out(self, name: str) -> None:
        """Fill train and held_out; UnsupportedError where the teacher said nothing finite."""
        self.train, self.held_out, self.left_out = [], [], 0
        for picture in self.pictures:
            calls, answers = self._get(picture.index)
            for call, finite in enumerate(calls.finite):
                good = finite and bool(torch.isfinite(answers[call]).all())
                self.left_out += not good
                if good:
                    (self.held_out if picture.held_out else self.train).append((picture.index, call))
        if not self.train or not self.held_out:
            which = "training" if not self.train else "held-out"
            raise UnsupportedError(f"'{name}' gave NaN or infinite values at every step of the {which} pictures: check "
                                   f"the checkpoint, or draw with another --sampler")

    def batch(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        """Calls together."""
        found = [(*self._get(picture), call) for picture, call in chosen]
        halves = found[0][0].samples.shape[1]
        fixed = {name: torch.cat([calls.fixed[name] for calls, _, _ in found]) for name in found[0][0].fixed}
        times = torch.stack([calls.timesteps[call] for calls, _, call in found]).repeat_interleave(halves)
        return Batch(torch.cat([calls.samples[call] for calls, _, call in found]), times, fixed,
                     torch.stack([answers[call] for _, answers, call in found]),
                     torch.tensor([calls.levels[call] for calls, _, call in found]))

    def batches(self, chosen: Sequence[tuple[int, int]], together: int) -> Iterator[Batch]:
        """All of `chosen`, at most `together` calls at once."""
        for first in range(0, len(chosen), together):
            yield self.batch(chosen[first:first + together])

    def power(self) -> float:
        """Mean square of the teacher's training answers, from at most 64 of them."""
        some = self.train[:: max(1, len(self.train) // 64)]
        return float(torch.stack([self._get(picture)[1][call].square().mean() for picture, call in some]).mean())

    def _get(self, index: int) -> tuple[Calls, torch.Tensor]:
        found = self._load(index)
        if found is None:
            raise UnsupportedError(f"a recorded picture is gone from '{self.folder.name}': run the same command again")
        return found

    def _load(self, index: int) -> tuple[Calls, torch.Tensor] | None:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        calls = load_calls(self._path(index))
        try:
            answers = torch.from_numpy(np.load(self._answers(index), allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None
        if calls is None or answers.shape[:1] != calls.samples.shape[:1]:
            return None
        self._cache[index] = calls, answers
        while len(self._cache) > 1 and sum(8 * a.numel() for _, a in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return calls, answers

    def _save(self, index: int, calls: Calls, answers: torch.Tensor) -> None:
        save_calls(self._path(index), calls)
        part = self._answers(index).with_suffix(".part")
        with open(part, "wb") as file:
            np.save(file, answers.numpy())
        os.replace(part, self._answers(index))

    def _path(self, index: int) -> Path:
        return self.folder / f"picture-{index:05d}.npz"

    def _answers(self, index: int) -> Path:
        return self.folder / f"answers-{index:05d}.npy"


def order(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Indices of a step's batch: every example once an epoch, in another order each time."""
    batch = min(batch, count)
    epoch, within = divmod(step, count // batch)
    shuffled = np.random.default_rng((seed, epoch)).permutation(count)
    return shuffled[within * batch:(within + 1) * batch].tolist()


def spread(items: Sequence, most: int) -> list:
    """At most `most` items at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[int((i + 0.5) * len(items) / most)] for i in range(most)]
