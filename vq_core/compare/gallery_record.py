"""One run of Compare (VQ) as it is kept: what was drawn with, and the numbers. No prompts, no paths, no dates."""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..version import __version__
from .checked import Odd, number_of, text_of, whole_of
from .output import numeric, plain

KIND, VERSION = "vqpack_pictures", 1       # the field that names the format, and its value
METRICS = ("latent_psnr", "image_psnr", "ssim")                        # of measure.METRICS
MOST_MEASURED = 64                         # pictures of one run: the node's largest batch
_MOST_BESIDE = 8                           # things beside the weights that are named
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Side:
    """One of the two models. name: of its file, "" where nothing says it; patched: weights with a LoRA or merge on
    them; beside: what else was on the model, in words."""

    name: str
    patched: int = 0
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What both drew. width, height in pixels; count: pictures of each."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int
    count: int


@dataclass(frozen=True)
class Run:
    """values: metric -> one number a picture; pictures: (SHA-256 of A's PNG, of B's) of those that are kept."""

    a: Side
    b: Side
    settings: Settings
    values: Mapping[str, Sequence[float]]
    pictures: tuple[tuple[str, str], ...] = ()
    tool: str = f"vqpack {__version__}"

    @property
    def key(self) -> str:
        """The same for the same models and settings."""
        text = json.dumps([asdict(self.a), asdict(self.b), asdict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """The same run as the same text."""
        fields = {KIND: VERSION, "tool": self.tool, "a": asdict(self.a), "b": asdict(self.b),
                  "settings": asdict(self.settings), "values": {k: list(v) for k, v in self.values.items()},
                  "pictures": self.pictures}
        return json.dumps(plain(fields), indent=1, sort_keys=True, allow_nan=False)


def read_run(text: str) -> Run | None:
    """What to_json wrote; None for anything else. Nothing in it is trusted, every text comes out harmless."""
    try:
        data = json.loads(text)
        if whole_of(data, KIND) != VERSION:
            raise Odd(KIND)
        settings = _settings(data["settings"])
        values = {name: _numbers(data["values"], name, settings.count) for name in METRICS}
        return Run(_side(data["a"]), _side(data["b"]), settings, values, _pictures(data["pictures"], settings.count),
                   text_of(data, "tool"))
    except (Odd, KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError):
        return None


def _side(found: dict) -> Side:
    beside = found["beside"]
    if not isinstance(beside, list) or len(beside) > _MOST_BESIDE:
        raise Odd("beside")
    return Side(text_of(found, "name"), whole_of(found, "patched"), tuple(text_of({"said": x}, "said") for x in beside))


def _settings(found: dict) -> Settings:
    whole = {name: whole_of(found, name) for name in ("steps", "height", "width", "count")}
    if not 1 <= whole["count"] <= MOST_MEASURED:
        raise Odd("count")
    return Settings(seed=whole_of(found, "seed", 2**64 - 1), cfg=number_of(found, "cfg", finite=True),
                    sampler=text_of(found, "sampler"), scheduler=text_of(found, "scheduler"), **whole)


def _numbers(found: dict, name: str, count: int) -> tuple[float, ...]:
    if not isinstance(found[name], list) or len(found[name]) != count:
        raise Odd(name)
    return tuple(numeric(number_of({name: value}, name)) for value in found[name])


def _pictures(found: list, count: int) -> tuple[tuple[str, str], ...]:
    pairs = tuple((a, b) for a, b in found)
    if len(pairs) > count or not all(isinstance(x, str) and _DIGEST.fullmatch(x) for pair in pairs for x in pair):
        raise Odd("pictures")
    return pairs
