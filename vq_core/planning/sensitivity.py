"""Sensitivity files: one number a layer that says what its errors do to the picture; for fine-tunes of the same base.

factor = what a squared error of 1, spread evenly over the layer's weights, adds to the squared norm of the predicted
noise. Nothing of prompts or pictures is in the file.
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..calibration.file import shapes_digest
from ..errors import FormatError, PlanError

VERSION = 1
_FIELDS = {"vqpack_sensitivity", "architecture", "base", "shapes", "noise_power", "layers"}


@dataclass(frozen=True)
class Sensitivity:
    """factors: layer key -> factor; noise_power: squared norm of the predicted noise; base: name, bytes, sha256."""

    architecture: str
    base: dict
    shapes: str                            # calibration.file.shapes_digest of the coded layers
    noise_power: float
    factors: Mapping[str, float]

    def check(self, architecture: str, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
        """PlanError where it belongs to another architecture. shapes: of the coded layers."""
        if self.architecture != architecture or self.shapes != shapes_digest(shapes):
            other = self.architecture if self.architecture != architecture else f"{architecture} with other layers"
            raise PlanError(f"the sensitivities were measured on '{self.base.get('name')}' ({other}), '{name}' is "
                            f"{architecture}: give those of a checkpoint with the same layers, or calibrate it")

    def to_json(self) -> dict:
        """-> the file's content"""
        return {"vqpack_sensitivity": VERSION, "architecture": self.architecture, "base": self.base,
                "shapes": self.shapes, "noise_power": self.noise_power,
                "layers": {key: float(f"{value:.6g}") for key, value in self.factors.items()}}


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Read a sensitivity file; FormatError in one sentence for anything else."""
    name = Path(path).name
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"cannot read the sensitivities '{name}': {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise FormatError(f"'{name}' is no sensitivity file: expected what `vqpack plan --export-sensitivity` "
                          f"writes") from None
    if not isinstance(data, dict) or "vqpack_sensitivity" not in data:
        raise FormatError(f"'{name}' is no sensitivity file: expected what `vqpack plan --export-sensitivity` writes")
    if data["vqpack_sensitivity"] != VERSION:
        raise FormatError(f"'{name}' holds sensitivities of version {data['vqpack_sensitivity']!r:.20}, this program "
                          f"reads version {VERSION}: export them again")
    layers, base = data.get("layers"), data.get("base")
    good = set(data) == _FIELDS and isinstance(layers, dict) and isinstance(base, dict) and layers
    good = good and all(isinstance(data[text], str) for text in ("architecture", "shapes"))
    if not good or not _positive(data["noise_power"]) or not all(_factor(value) for value in layers.values()):
        raise FormatError(f"the sensitivities '{name}' are damaged: expected a non-negative number for each layer and "
                          f"the fields {', '.join(sorted(_FIELDS))}; export them again")
    return Sensitivity(data["architecture"], base, data["shapes"], float(data["noise_power"]),
                       {key: float(value) for key, value in layers.items()})


def fitting(paths: Iterable[Path], architecture: str, shapes: Mapping[str, tuple[int, ...]], name: str, nbytes: int
            ) -> Path | None:
    """The file that fits a checkpoint: one measured on this very name and size, else the newest; damaged ones do not.

    shapes: of the coded layers.
    """
    paths, found = list(paths), []
    digest = shapes_digest(shapes) if paths else ""
    for path in paths:
        try:
            status = path.stat()
            known = _read(path, status.st_mtime_ns, status.st_size)
        except (FormatError, OSError):
            continue
        if (known.architecture, known.shapes) == (architecture, digest) and set(known.factors) >= set(shapes):
            own = (known.base.get("name"), known.base.get("bytes")) == (name, nbytes)
            found.append((own, status.st_mtime_ns, str(path), path))
    return max(found)[-1] if found else None


@lru_cache(maxsize=64)
def _read(path: Path, _time: int, _size: int) -> Sensitivity:
    return load_sensitivity(path)


def _factor(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _positive(value) -> bool:
    return _factor(value) and value > 0
