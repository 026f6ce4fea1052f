"""Runs whose result is an adapter: the loop, the lessons and what is kept of a stopped run are tuning's."""
from __future__ import annotations

from pathlib import Path

from ..container import Reader
from ..errors import VQError
from ..file_names import safe_stem
from ..tuning.job import Job, Result
from ..tuning.loop import Course
from ..version import __version__
from .file import SUFFIX, base_id, load_adapter, save_adapter, stem_of
from .student import AdapterStudent


def output_of(path: Path, output: str | Path | None, ending: str = "-personal") -> Path:
    """Where an adapter of a file goes: `output`, a file or a folder; None = beside the file."""
    found = path.parent if output is None else Path(output)
    if found.is_dir():
        found = found / f"{path.stem}{ending}"
    return found.with_name(safe_stem(stem_of(found)) + SUFFIX)


class AdapterJob(Job):
    """A fine-tune with tuning.scaling: scales are learned, the file stays as it is (recovery after compression)."""

    ending, learned_from = "-recovered", "teacher"

    def target(self, output: str | Path | None) -> Path:
        """Where the adapter goes."""
        return output_of(self.file.path, output, self.ending)

    def student(self) -> AdapterStudent:
        """The file with scales to be learned."""
        return AdapterStudent(self.file.path, self.tuning.scaling, self.device, self.teacher.configs)

    def prepare(self, student: AdapterStudent) -> None:
        """Nothing is added."""

    def existing(self, path: Path, run: str) -> Result | None:
        """The adapter that the same run made of this file before."""
        try:
            found = load_adapter(path)
            with Reader(self.file.path) as reader:
                same = found.base == base_id(reader) and found.facts.get("run") == run
            if not same:
                return None
            return Result(path, dict(self.file.bits), found.facts["before"], found.facts["after"], found.facts["of"],
                          0.0, already_there=True)
        except (VQError, OSError, KeyError):
            return None

    def written(self, student: AdapterStudent, course: Course, path: Path, overwrite: bool, run: str
                ) -> tuple[Path, dict[str, float]]:
        """Write the adapter -> its file, the bits of the file it belongs to."""
        self.check_gain(course)
        facts = {**self.facts(student, course, run), "sides": self.tuning.scaling.sides, "batch": self.tuning.batch,
                 "seed": self.tuning.seed, "tool": f"vqpack {__version__}", "learned_from": self.learned_from}
        return save_adapter(path, student.adapter(facts), overwrite, self.progress), dict(self.file.bits)
