"""calibrate(): a checkpoint and prompts in, one calibration file out. Bounded memory; a stopped run goes on."""
from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..compare.models import free_memory
from ..compare.prompts import BUILT_IN, Prompts, read_prompts, spread
from ..container import Writer
from ..device_memory import is_out_of_memory
from ..errors import FormatError, PlanError, UnsupportedError, VQError
from ..file_names import glob_safe
from ..progress import Progress
from ..publish import os_error
from ..version import __version__
from .capture import capture, stored_notes
from .file import (
    COUNTS,
    METADATA,
    SENSITIVITY,
    SQUARES,
    SUFFIX,
    Calibration,
    GroupEntry,
    header_facts,
    shapes_digest,
)
from .groups import Group, sweeps
from .kept import Kept
from .sensitivity import measure
from .settings import Settings, pictures, preset_settings
from .teacher import CheckpointTeacher

MEMORY = 8 << 30                           # bytes
LONGEST_PROMPT = 1 << 20                   # characters; what the encoders do not read is cut, which is said


@dataclass(frozen=True)
class Result:
    """What a run produced."""

    path: Path
    notes: tuple[str, ...]
    seconds: float
    already_there: bool = False


def calibrate(source: str | Path | CheckpointTeacher, output: str | Path, *,
              prompts: str | Path | Sequence[str] = BUILT_IN, preset: str = "base", count: int | None = None,
              size: tuple[int, int] | None = None, memory: int = MEMORY, sensitivity: bool = True,
              device: str | None = None, configs: str | Path | None = None, overwrite: bool = False,
              progress: Progress | None = None, tell: Callable[[str], None] | None = None, **settings) -> Result:
    """Draw prompts with a checkpoint's own sampler and write what its coded layers saw.

    source: any checkpoint with its text encoders, or a model in memory as in teacher.py; device and configs are for
    checkpoints only. output: NAME (".vqcal.safetensors" is added where it is missing). prompts: "built-in", a file,
    or a list; count: only so many of them, spread evenly. size: (height, width), None = the model's own.
    memory: bytes for the sums; what does not fit is captured in several sweeps. settings: fields of settings.Settings
    that replace the preset's (steps, guidance, sampler, scheduler, timesteps, window, seed, threads, ...). tell:
    called with each sentence worth reading as soon as it is known. Same input and settings give the same file on the
    same kind of device. Raises VQError.
    """
    started, progress = time.monotonic(), progress or Progress()
    opened = not isinstance(source, str | Path)
    teacher = source if opened else CheckpointTeacher(source, device, configs)
    given = read_given(prompts, count, teacher.built_in)
    calls = {} if sensitivity else {"sensitivity_calls": 0}
    where = torch.device(teacher.device).type
    chosen = preset_settings(preset, size or teacher.size(), **{**settings, **calls}, device=where)
    chosen.check(teacher.factor(), teacher.samplers, teacher.schedulers)
    job = _Job(teacher, chosen, given, memory, progress, tell or (lambda _: None))
    path = _target(output)
    there = None if overwrite else job.find_existing(path)
    if there is not None:
        return Result(there, tuple(job.notes), 0.0, already_there=True)
    try:
        with fixed_threads(chosen.threads if chosen.device == "cpu" else None):
            return Result(job.run(path, overwrite), tuple(job.notes), time.monotonic() - started)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _no_memory(error):
            raise
        raise VQError(f"out of memory while {progress.stage or 'starting'}: what was captured is kept; run again with "
                      f"less --memory (now {memory / 1e9:.1f} GB) or a smaller --size") from None
    except OSError as error:
        raise os_error(error, path.parent) from None
    finally:
        teacher.close()
        free_memory()


@contextmanager
def fixed_threads(count: int | None) -> Iterator[None]:
    """A fixed number of torch's threads, so that the bytes do not depend on the machine; None = as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_given(prompts, count: int | None, built_in: Sequence[str]) -> Prompts:
    """What calibrate() and tune() would draw. FormatError, PlanError where there is nothing to draw."""
    if isinstance(prompts, str | Path):
        return read_prompts(prompts, count, built_in, longest=LONGEST_PROMPT)
    texts = tuple(dict.fromkeys(text.strip() for text in prompts if text.strip()))
    if not texts:
        raise FormatError("the list of prompts is empty: at least one prompt is needed")
    return Prompts(tuple(spread(texts, count or len(texts))), "list")


def _target(output: str | Path) -> Path:
    path = Path(output)
    if path.is_dir():
        raise PlanError(f"-o must be a file name, '{path}' is a folder: give e.g. '{path / ('model' + SUFFIX)}'")
    stem = path.name.removesuffix(".safetensors").removesuffix(".vqcal")
    return path.with_name(stem + SUFFIX)


def _no_memory(error: RuntimeError) -> bool:
    return is_out_of_memory(error) or "can't allocate memory" in str(error)


class _Job:
    """One run: what is drawn, where it is kept, what was found so far."""

    def __init__(self, teacher: CheckpointTeacher, settings: Settings, prompts: Prompts, memory: int,
                 progress: Progress, tell: Callable[[str], None]):
        self.teacher, self.settings, self.memory = teacher, settings, memory
        self.progress, self._tell = progress, tell
        self.notes: list[str] = []
        for note in prompts.notes:
            self.say(note)
        self.pictures = pictures(prompts.texts, settings)
        self.layers = teacher.layers()
        self.base = teacher.identity(progress)
        asked = json.dumps([(p.prompt, p.seed) for p in self.pictures], ensure_ascii=False)
        self.prompt_fingerprint = hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()
        identity = [__version__, self.base, settings.to_json(), self.prompt_fingerprint]
        identity += [teacher.salt] if teacher.salt else []
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def say(self, note: str) -> None:
        """Keep a sentence for the result and tell it at once."""
        self.notes.append(note)
        self._tell(note)

    def find_existing(self, path: Path) -> Path | None:
        """`path`, or a numbered one beside it, that is already what this run would write."""
        for candidate in (path, *sorted(path.parent.glob(f"{glob_safe(path.stem)}-*{path.suffix}"))):
            try:
                with Calibration(candidate) as found:
                    if found.fingerprint == self.fingerprint:
                        return candidate
            except (FormatError, OSError):
                continue
        return None

    def run(self, path: Path, overwrite: bool) -> Path:
        """Draw, capture, differentiate, write -> the file's final name"""
        if not path.parent.is_dir():
            raise VQError(f"the folder '{path.parent}' does not exist: create it or choose another one")
        kept = Kept(path.with_name(path.name.removesuffix(".safetensors") + ".parts"), self.fingerprint)
        try:
            with Writer(path, overwrite, self.fingerprint, progress=self.progress) as writer:
                final = self._work(kept, writer)
        finally:
            kept.close()
        kept.remove()
        return final

    def _work(self, kept: Kept, writer: Writer) -> Path:
        self.progress.start("loading the model", 1, self.teacher.name)
        self.teacher.open()
        groups, unreached = self.teacher.groups(self.layers, self.settings)
        parts = sweeps(groups, self.memory)
        self._announce(groups, parts, unreached)
        for note in self.teacher.notes(self.pictures):
            self.say(note)
        self._draw(kept)
        left_out = self._check_drawn(kept)
        done = []
        for number, part in enumerate(parts, 1):
            stage = f"capturing, sweep {number} of {len(parts)}" if len(parts) > 1 else "capturing"
            self.teacher.make_room(sum(group.nbytes for group in part), self.settings)
            capture(self.teacher.unet, dict(enumerate(part, len(done))), self.pictures, kept, self.settings, writer,
                    self.progress, stage)
            done += part
        noise_power, answers = self._differentiate(groups, kept, writer)
        return writer.close({METADATA: self._facts(groups, writer, left_out, noise_power, answers),
                             "vqpack.tool": f"vqpack {__version__}"}, self.progress)

    def _announce(self, groups: list[Group], parts: list[list[Group]], unreached: list[str]) -> None:
        largest = max(sum(group.nbytes for group in part) for part in parts)
        total = sum(group.nbytes for group in groups)
        layers = sum(len(group.layers) for group in groups)
        self.say(f"{layers} coded layers share {len(groups)} grams: {total / 1e9:.2f} GB of sums, at most "
                 f"{largest / 1e9:.2f} GB at a time in {len(parts)} sweep{'s' if len(parts) > 1 else ''} over the "
                 f"recorded calls; the model comes on top.")
        apart = [group for group in groups if group.blocks > 1]
        if apart:
            self.say(f"{sum(len(g.layers) for g in apart)} convolutions of more than {self.settings.full_columns} "
                     f"columns get one gram a kernel tap.")
        if unreached:
            self.say(f"{len(unreached)} coded layers are never reached and will be coded without data, the first is "
                     f"'{unreached[0]}'.")

    def _draw(self, kept: Kept) -> None:
        """Record the pictures that are not there yet."""
        todo = [picture for picture in self.pictures if not kept.has(picture)]
        self.progress.start("drawing", max(1, len(todo)))
        self.teacher.prepare(todo, self.settings)
        for picture in todo:
            self.progress.advance(0, picture.prompt[:50])
            kept.save(picture, self.teacher.draw(picture, self.settings, self.progress))
        self.progress.finish()

    def _check_drawn(self, kept: Kept) -> int:
        """-> how many chosen steps held NaN or infinity; UnsupportedError where that leaves nothing."""
        found = [(picture, kept.calls(picture)) for picture in self.pictures]
        if not any(calls.steps for _, calls in found):
            low, high = self.settings.window
            raise PlanError(f"no step of this sampler lies in the window {low:g}:{high:g}: widen --window or draw more "
                            f"--steps")
        left_out = sum(not good for _, calls in found for good in calls.finite)
        for held_out in (False, True):
            if not any(any(calls.finite) for picture, calls in found if picture.held_out == held_out):
                raise UnsupportedError(f"'{self.teacher.name}' gave NaN or infinite values at every looked-at step "
                                       f"of the {'held-out' if held_out else 'calibration'} pictures: check the "
                                       f"checkpoint, or draw with another --sampler")
        if left_out:
            self.say(f"{left_out} steps gave NaN or infinite values and were left out.")
        return left_out

    def _differentiate(self, groups: list[Group], kept: Kept, writer: Writer) -> tuple[float | None, int]:
        """Sensitivities into the spool -> (mean squared norm of the predicted noise, answers differentiated)"""
        if not self.settings.sensitivity_calls:
            return None, 0
        if SENSITIVITY not in writer:
            drawn = [kept.calls(picture) for picture in self.pictures if not picture.held_out]
            unet = self.teacher.unet
            self.teacher.make_room(0, self.settings, gradients=True)
            modules = {layer.key: unet.get_submodule(layer.module) for layer in self.layers}
            found = measure(unet, modules, drawn, self.settings, self.progress, self.teacher.sensitivities)
            notes = stored_notes(len(groups), writer)
            trace = {key: note["trace"] for group, note in zip(groups, notes) for key in group.layers}
            rows = [found.rows(layer.key, layer.shape[0], trace.get(layer.key, 0.0)) for layer in self.layers]
            writer.add(SENSITIVITY, torch.cat(rows), note={"power": found.noise_power(), "answers": found.answers})
        note = writer.note(SENSITIVITY)
        return note["power"], note["answers"]

    def _facts(self, groups: list[Group], writer: Writer, left_out: int, noise_power: float | None,
               answers: int) -> str:
        notes = stored_notes(len(groups), writer)
        for key, name, dtype in ((COUNTS, "interval_counts", torch.int64),
                                 (SQUARES, "interval_squares", torch.float32)):
            if key not in writer:
                writer.add(key, torch.tensor([note[name] for note in notes], dtype=dtype))
        entries = [GroupEntry(**{name: note[name] for name in GroupEntry.__dataclass_fields__}) for note in notes]
        group_of = {key: index for index, group in enumerate(groups) for key in group.layers}
        return header_facts(
            layers=[(layer.key, layer.shape, group_of.get(layer.key)) for layer in self.layers], groups=entries,
            fingerprint=self.fingerprint, prompt_fingerprint=self.prompt_fingerprint, base=self.base,
            architecture=self.teacher.architecture.name, prediction=self.teacher.architecture.prediction,
            shapes=shapes_digest({layer.key: layer.shape for layer in self.layers}), settings=self.settings.to_json(),
            pictures=len(self.pictures), held_out=sum(p.held_out for p in self.pictures), left_out=left_out,
            noise_power=noise_power, sensitivity_answers=answers)
