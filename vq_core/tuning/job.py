"""One fine-tune from the files to its result: lessons, the loop, what is written, and where a stopped run is kept."""
from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..calibration.file import Calibration
from ..calibration.groups import coded_layers
from ..calibration.run import fixed_threads
from ..calibration.settings import Picture, Settings, pictures
from ..compare.models import Checkpoint, free_memory
from ..compare.prompts import Prompts
from ..device_memory import is_out_of_memory
from ..errors import FormatError, PlanError, VQError
from ..inspection import json_field, read_result
from ..locked_files import delete_locked, open_locked
from ..progress import Progress
from ..publish import os_error
from ..version import __version__
from . import reassign
from .branch import add_branches
from .drawing import Drawing, Look, Looking
from .export import target, write
from .image_lessons import ImageLessons
from .images import Image
from .lessons import Lessons
from .loop import Course, Loop
from .memory import RECORDING, of_student
from .settings import Tuning
from .student import Student


class NothingGained(VQError):
    """The held-out error did not fall, so no file was written."""


@dataclass(frozen=True)
class Result:
    """What a run produced. before, after: squared error of the held-out predictions over the teacher's power.

    already_there: the same run's file was found and nothing was done.
    """

    path: Path
    bits: dict[str, float]
    before: float
    after: float
    steps: int
    seconds: float
    history: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    already_there: bool = False
    changed: float = 0.0                   # share of the code groups that are not the file's, where they may change

    @property
    def gain(self) -> float:
        """dB"""
        return 10 * math.log10(self.before / self.after) if self.after > 0 else math.inf


class Job:
    """One run: who learns what from whom, and where its state is. An adapter's jobs replace a few of these methods."""

    beside = RECORDING

    def __init__(self, file: Checkpoint, teacher, tuning: Tuning, settings: Settings, prompts: Prompts,
                 images: list[Image], progress: Progress, tell: Callable[[str], None]):
        self.file, self.teacher, self.tuning = file, teacher, tuning
        self.settings, self.progress, self._tell = settings, progress, tell
        self.images = images
        self.notes: list[str] = []
        for note in prompts.notes:
            self.say(note)
        self.pictures = self.drawn_from(prompts)
        asked = [(picture.prompt, picture.seed) for picture in self.pictures]
        drawn = [__version__, teacher.identity(progress), settings.to_json(), asked]
        if images:
            drawn.append([(image.name, image.sha256, image.bucket) for image in images])
        if tuning.trajectory != "teacher":
            drawn.append((file.content or str(file.identity), tuning.trajectory))
        self.drawn = digest(drawn)
        self.fingerprint = digest([self.drawn, file.content or str(file.identity), tuning.to_json()])
        before = json_field(file.metadata, "vqpack.settings", {}).get("tuning")      # of a file that is tuned again
        self.asked = [teacher.name, before, settings.to_json(), asked, tuning.to_json(), tuning.steps, tuning.minutes]

    def drawn_from(self, prompts: Prompts) -> list[Picture]:
        """The pictures of a run, some of them held out."""
        return pictures(prompts.texts, self.settings)

    def use(self, path: str | Path | None, recordings: str | Path | None, device: str) -> None:
        """Take low-rank branches' beginnings from a calibration; keep recordings in a folder of their own."""
        self.calibration, self.recordings, self.device = path, recordings, device
        if path is None:
            return
        if not self.tuning.trained.rank:
            raise PlanError("--calibration says where low-rank branches begin: give --rank too, or leave it out")
        with Calibration(path) as found:
            found.check({layer.key: layer.shape for layer in coded_layers(self.teacher.shapes)},
                        f"'{self.teacher.name}'")
            self.fingerprint = digest([self.fingerprint, found.fingerprint])
            self.asked.append(found.fingerprint)

    def target(self, output: str | Path | None) -> Path:
        """Where the result goes."""
        return target(self.file.path, output)

    def say(self, note: str) -> None:
        """Keep a sentence for the result and tell it at once."""
        self.notes.append(note)
        self._tell(note)

    def run(self, path: Path, overwrite: bool, finish: bool, run: str | None, show, started: float) -> Result:
        """Record, learn, write."""
        if not path.parent.is_dir():
            raise VQError(f"the folder '{path.parent}' does not exist: create it or choose another one")
        run = run or digest([*self.asked, finish])[:32]
        found = None if overwrite else self.existing(path, run)
        if found is not None:
            return found
        root = state_folder(path)
        state = root / f"{self.fingerprint[:32]}.npz"
        if finish and not state.is_file():
            raise VQError(f"there is no stopped run of these settings beside '{path.name}' to be finished: leave out "
                          f"--finish")
        root.mkdir(exist_ok=True)
        lock = root / f"{self.fingerprint[:32]}.lock"
        held = open_locked(lock)
        if held is None:
            raise VQError(f"another run is tuning this file for '{path.name}': wait for it or choose another -o")
        try:
            student, course = self._learn(root, state, finish, show)
            final, bits = self.written(student, course, path, overwrite, run)
        finally:
            delete_locked(lock, held)
        state.unlink(missing_ok=True)
        shutil.rmtree(root / self.drawn[:32], ignore_errors=True)
        if not any(root.iterdir()):
            root.rmdir()
        return Result(final, bits, course.start, course.best, course.step, time.monotonic() - started,
                      tuple(course.history), tuple(self.notes), changed=student.changed())

    def existing(self, path: Path, run: str) -> Result | None:
        """What the same run made of this file before."""
        own, found = read_result(self.file.path), read_result(path)
        if own is None or found is None or found["tuning"].get("run") != run or found["identity"] != own["identity"]:
            return None
        said = found["tuning"]
        return Result(path, found["bits"], said["before"], said["after"], said["of"], 0.0, already_there=True)

    def _learn(self, root: Path, state: Path, finish: bool, show) -> tuple[Student, Course]:
        self.progress.start("loading the file", 1, self.file.name)
        student = self.student()
        if student.content != self.file.content:
            raise FormatError(f"'{self.file.name}' was changed while it was read: run the same command again")
        self.prepare(student)
        memory = of_student(student, self.tuning.together, self.settings, self.teacher.factor())
        self.say(memory.sentence(self.beside))
        if memory.checkpoint:
            student.unet.enable_gradient_checkpointing()
        lessons = self.lessons(root, student)
        self.say(f"{_listed(student.numbers())} are trained on {len(lessons.train)} calls; {len(lessons.held_out)} of "
                 f"{self.judges()} judge.")
        looked = (lambda _: None) if show is None else self.looking(student, lessons, show)
        loop = Loop(student, lessons, self.tuning, self.settings.guidance, self.progress, state, self.say, looked)
        if loop.course.step:
            self.say(f"Going on after step {loop.course.step} of a stopped run.")
        course = loop.finished() if finish else loop.run()
        if course.stopped:
            self.say(f"{course.stopped[0].upper()}{course.stopped[1:]}.")
        looked(course)
        return student, course

    def student(self) -> Student:
        """Who learns."""
        return Student(self.file.path, self.tuning.trained, self.device, self.teacher.configs)

    def prepare(self, student: Student) -> None:
        """Before memory is counted: branches, and what codes are assigned from."""
        self._add_branches(student)
        if self.tuning.trained.reassign != "none":
            with self.teacher.weights() as original:
                reassign.prepare(student, original, self.progress)

    def judges(self) -> str:
        """Whose calls are held out, for people."""
        return "other pictures" if self.images else "other prompts"

    def folder(self, root: Path) -> Path:
        """Where recordings lie."""
        found = Path(self.recordings or root) / self.drawn[:32]
        found.mkdir(parents=True, exist_ok=True)
        return found

    def lessons(self, root: Path, student: Student) -> Lessons | ImageLessons:
        """What the teacher says, or pictures teach; what is missing is recorded or encoded."""
        folder = self.folder(root)
        if self.images:
            lessons = ImageLessons(folder, self.pictures, self.images)
            pipe = self.teacher.pipeline()
            lessons.schedule(pipe.scheduler, self.teacher.name)
            lessons.record(pipe, self.progress)
            del pipe
            free_memory()
        else:
            lessons = Lessons(folder, self.pictures)
            if lessons.missing():
                self.teacher.record(lessons, student.unet, self.tuning.trajectory, self.settings, self.progress)
                free_memory()
        lessons.sort_out(self.teacher.name)
        if lessons.left_out:
            self.say(f"{lessons.left_out} calls gave NaN or infinite values and were left out.")
        return lessons

    def looking(self, student: Student, lessons: Lessons, show: Callable[[Look], None]) -> Callable[[Course], None]:
        """What shows the course."""
        drawing = None if self.images else Drawing.of(lessons, self.file, self.teacher.configs, self.settings.guidance)
        return Looking(student, drawing, show, self.progress)

    def _add_branches(self, student: Student) -> None:
        rank = self.tuning.trained.rank
        if not rank:
            return
        had = sum(layer.branch is not None for layer in student.layers.values())
        with Calibration(self.calibration) if self.calibration else nullcontext() as found, \
                self.teacher.weights() as original:
            add_branches(student, original, rank, found, self.progress)
        if had:
            self.say(f"{had} layers have a low-rank branch already, which is trained as it is.")

    def check_gain(self, course: Course) -> None:
        """NothingGained where the best is no better than the start."""
        if not course.best < course.start:
            raise NothingGained(f"tuning did not lower the error on the held-out prompts in {course.step} steps, so "
                                f"nothing was written: give more prompts or steps, or a lower --rate")

    def facts(self, student: Student, course: Course, run: str) -> dict:
        """What every result says of how it was learned."""
        return {"run": run, "steps": course.best_step, "of": course.step, "pictures": len(self.pictures),
                "before": float(f"{course.start:.6g}"), "after": float(f"{course.best:.6g}"),
                "trained": student.numbers()}

    def written(self, student: Student, course: Course, path: Path, overwrite: bool, run: str
                ) -> tuple[Path, dict[str, float]]:
        """Write the result -> the file, its bits."""
        self.check_gain(course)
        facts = {**self.facts(student, course, run), "rank": self.tuning.trained.rank,
                 "flips": self.tuning.flips, "flipped": course.flipped, "reassign": self.tuning.trained.reassign,
                 "candidates": self.tuning.trained.candidates, "changed": float(f"{student.changed():.6g}"),
                 "learned_from": "images" if self.images else "teacher", "loss": self.tuning.loss,
                 "weighting": self.tuning.weighting, "trajectory": self.tuning.trajectory, "batch": self.tuning.batch,
                 "seed": self.tuning.seed}
        with self.teacher.weights() as original:
            return write(student, original, path, overwrite, facts, self.progress)


@contextmanager
def in_words(job: Job) -> Iterator[None]:
    """Around a run: its threads, the system's errors in one sentence, its memory given back."""
    try:
        with fixed_threads(job.settings.threads if job.settings.device == "cpu" else None):
            yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        raise VQError(f"out of memory while {job.progress.stage or 'starting'}: the best so far is kept; run the same "
                      f"command with a smaller --together (now {job.tuning.together}) or --size") from None
    except OSError as error:
        raise os_error(error, job.file.path.parent) from None
    finally:
        free_memory()


def state_folder(path: Path) -> Path:
    """Where the state of a run lies whose result goes to `path`; gone once that is there."""
    return path.with_name(path.name.removesuffix(".safetensors") + ".tuning")


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in numbers.items())


def digest(value) -> str:
    """Hex digits of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "replace")).hexdigest()
