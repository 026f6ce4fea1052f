"""compare(): several checkpoints in, one report out; what is drawn is kept, so a stopped run goes on."""
from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import PlanError, VQError
from ..file_names import numbered
from ..locked_files import delete_locked, open_locked
from ..progress import Progress
from ..publish import check_space, os_error
from ..version import __version__
from .draw import Parts, Settings, draw_all, seed_of, work
from .measure import METRICS, difference, step_curve, summary
from .models import (
    LETTERS,
    Checkpoint,
    Models,
    built_in_prompts,
    check_together,
    find_configs,
    is_testbed,
    open_checkpoint,
    source_sha256,
)
from .output import read_json, write_json
from .prompts import BUILT_IN, Prompts, read_prompts
from .report import write_report
from .weights import layer_rows, mean_error

NAME, VERSION = "compare", 1               # of the report's files and of its JSON
STEPS, SEEDS, GUIDANCE, TESTBED_GUIDANCE = 20, 1, 5.0, 3.0


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    html: Path
    json: Path
    data: dict                             # what compare.json holds
    already_there: bool = False


def compare(paths: Sequence[str | Path], output: str | Path, *, prompts: str | Path = BUILT_IN,
            count: int | None = None, steps: int = STEPS, seeds: int = SEEDS, size: tuple[int, int] | None = None,
            sampler: str = "model", guidance: float | None = None, device: str | None = None,
            configs: str | Path | None = None, overwrite: bool = False, progress: Progress | None = None) -> Comparison:
    """Draw the same prompts from the same noise with every checkpoint and measure all against the first.

    paths: two or more checkpoints of one architecture, the first is the reference. output: a folder, made if needed.
    prompts: "built-in" or a file; count: only so many of them. size: (height, width), None = the model's own.
    sampler: as trajectory.sample. guidance: None = 5 (3 for the testbed). configs: a diffusers folder whose
    configurations files of unusual models get (default: the first folder among the paths).
    A report of another comparison is kept and the new one numbered unless `overwrite`; one of this very comparison is
    returned. Raises VQError in one sentence.
    """
    if not 2 <= len(paths) <= len(LETTERS):
        raise PlanError(f"compare takes 2 to {len(LETTERS)} checkpoints, got {len(paths)}")
    progress, device = progress or Progress(), device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoints = [open_checkpoint(path, letter) for path, letter in zip(paths, LETTERS)]
    notes = check_together(checkpoints)
    read = read_prompts(prompts, count, built_in_prompts(checkpoints[0]))
    models = Models(tuple(checkpoints), device, find_configs(checkpoints, configs))
    if guidance is None:
        guidance = TESTBED_GUIDANCE if is_testbed(checkpoints[0]) else GUIDANCE
    settings = Settings(read.texts, seeds, steps, float(guidance), tuple(size or models.size()), sampler, device)
    settings.check(models.factor())
    run = _Run(models, settings, read, [*notes, *read.notes], progress)
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return run.run(folder, overwrite)
    except OSError as error:
        raise os_error(error, folder) from None


class _Run:
    """One comparison: what is compared, how, and what was found so far."""

    def __init__(self, models: Models, settings: Settings, prompts: Prompts, notes: list[str], progress: Progress):
        self.models, self.settings, self.prompts = models, settings, prompts
        self.notes, self.progress, self.started = notes, progress, time.monotonic()
        identity = [VERSION, __version__, settings.to_json(), str(models.configs),
                    [checkpoint.identity for checkpoint in models.checkpoints]]
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    def run(self, folder: Path, overwrite: bool) -> Comparison:
        """Weights first, then pictures, the report after each checkpoint."""
        html = self._target(folder, overwrite)
        found = read_json(html.with_suffix(".json"))
        if found.get("complete") and found.get("fingerprint") == self.fingerprint and not overwrite:
            return Comparison(html, html.with_suffix(".json"), found, already_there=True)
        check_space(folder, self._bytes())
        kept = folder / f"{NAME}.parts"
        kept.mkdir(exist_ok=True)
        lock = kept / f"{self.fingerprint}.lock"
        held = open_locked(lock)
        if held is None:
            raise VQError(f"another run is making this comparison in '{folder}': wait for it or choose another folder")
        try:
            data = self._work(html, Parts(kept / self.fingerprint))
        finally:
            delete_locked(lock, held)
        Parts(kept / self.fingerprint).remove()
        return Comparison(html, html.with_suffix(".json"), data)

    def _work(self, html: Path, parts: Parts) -> dict:
        checkpoints, rows = self.models.checkpoints, {}
        for checkpoint in checkpoints:
            rows[checkpoint.letter] = parts.note(f"{checkpoint.letter}-weights", lambda c=checkpoint: layer_rows(
                c, checkpoints[0], self.progress))
        sha256 = self._reference_sha256(parts)
        self.progress.start("drawing", sum(work(c, self.models, self.settings, parts) for c in checkpoints))
        for number, checkpoint in enumerate(checkpoints, 1):
            draw_all(checkpoint, self.models, self.settings, parts, self.progress)
            if number > 1:
                data = self._data(number, parts, rows, sha256)
                write_report(html, data, lambda letter, prompt, seed: parts.load(letter, prompt, seed).picture)
                write_json(html.with_suffix(".json"), data)
        self.progress.finish()
        return data

    def _reference_sha256(self, parts: Parts) -> str | None:
        """Of the reference's file, where a vqpack file is measured that may want to keep the result."""
        first, *others = self.models.checkpoints
        wanted = any(checkpoint.content is not None for checkpoint in others)
        return parts.note("A-source", lambda: source_sha256(first, self.progress)) if wanted else None

    def _target(self, folder: Path, overwrite: bool) -> Path:
        """The report's name: of an earlier, perhaps partial report of this comparison, else a free one."""
        target = folder / f"{NAME}.html"
        if overwrite:
            return target
        for path in sorted(folder.glob(f"{NAME}*.json")):
            if read_json(path).get("fingerprint") == self.fingerprint and path.with_suffix(".html").is_file():
                return path.with_suffix(".html")
        return numbered(target)

    def _bytes(self) -> int:
        """Rough size of what a run keeps."""
        height, width = self.settings.size
        pictures = len(self.settings.prompts) * self.settings.seeds
        latents = 16 * height * width * (3 * self.settings.steps + 1) // self.models.factor() ** 2
        return pictures * (latents + 6 * height * width * len(self.models.checkpoints)) + (1 << 24)

    def _data(self, drawn: int, parts: Parts, rows: dict[str, list[dict]], sha256: str | None) -> dict:
        """Everything the report says, for the first `drawn` checkpoints."""
        checkpoints = self.models.checkpoints
        values = {c.letter: parts.values(c.letter, self.settings) for c in checkpoints[1:drawn]}
        pairs = [(a, b) for i, b in enumerate(values) for a in list(values)[i + 1:]]
        return {
            "version": VERSION, "tool": f"vqpack {__version__}", "fingerprint": self.fingerprint,
            "complete": drawn == len(checkpoints), "notes": self.notes,
            "settings": {**self.settings.to_json(), "prompt_file": self.prompts.origin, "torch": torch.__version__},
            "checkpoints": [{**_described(c, rows[c.letter], values.get(c.letter)),
                             **({"sha256": sha256} if c is checkpoints[0] else {})} for c in checkpoints[:drawn]],
            "not_drawn": [c.name for c in checkpoints[drawn:]],
            "metrics": [{"name": m.name, "title": m.title, "unit": m.unit, "statistic": m.statistic,
                         "digits": m.digits, "meaning": m.meaning, "higher_is_better": m.higher_is_better}
                        for m in METRICS if any(m.name in summary(v) for v in values.values())],
            "differences": [{"of": a, "minus": b, "metrics": difference(values[a], values[b])} for a, b in pairs],
            "pictures": [{"prompt": prompt, "seed": seed_of(p, n), "index": [p, n],
                          "values": {letter: found[p][n] for letter, found in values.items()}}
                         for p, prompt in enumerate(self.settings.prompts) for n in range(self.settings.seeds)],
            "layers": {c.letter: rows[c.letter] for c in checkpoints[:drawn]},
            "seconds": round(time.monotonic() - self.started, 1)}


def _described(checkpoint: Checkpoint, rows: list[dict], values) -> dict:
    return {"letter": checkpoint.letter, "name": checkpoint.name, "kind": checkpoint.kind,
            "architecture": checkpoint.architecture.name, "prediction": checkpoint.architecture.prediction,
            "file_bytes": checkpoint.file_bytes, "content": checkpoint.content, "bits": dict(checkpoint.bits),
            "texts": dict(checkpoint.texts),
            "weight_error": {part: mean_error(rows, part) for part in ("unet", "te1", "te2")},
            "metrics": summary(values) if values else {}, "steps": step_curve(values) if values else []}
