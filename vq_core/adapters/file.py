"""The file of an adapter (docs/adapters.md): logarithms of scales, which base they belong to; nothing in it is trusted.

Written whole or not at all, the same adapter as the same bytes.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..arch import UNET_PREFIX
from ..container import Reader, Writer
from ..errors import FormatError
from ..inspection import content_id
from ..progress import Progress
from ..writer import CRC_KEY
from .noise_levels import MOST_EXPERTS

SUFFIX = ".vqscales.safetensors"
METADATA, VERSION = "vqpack.scales", 1
OUT, IN = ".out", ".in"                    # what a tensor's name ends with, after the weight's
MOST_LOG = 4.0                             # a scale never leaves 1/55 to 55


@dataclass(frozen=True)
class Adapter:
    """W -> diag(exp(out)) W diag(exp(in)) of every layer, one pair an expert (TuneQDM, arXiv 2401.04339, 4.1).

    base: base_id of the file it was trained on. boundaries: between the experts, sigmas, ascending. layers: key of the
    weight -> (out [experts, rows], in [experts, input channels] or None for ones), float16 logarithms. facts: how it
    was made, JSON.
    """

    base: str
    boundaries: tuple[float, ...]
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
    facts: Mapping = field(default_factory=dict)

    @property
    def experts(self) -> int:
        """How many."""
        return len(self.boundaries) + 1

    @property
    def numbers(self) -> int:
        """Stored float16 numbers: experts * (rows + input channels), summed over the layers."""
        return sum(x.numel() for pair in self.layers.values() for x in pair if x is not None)


def base_id(reader: Reader) -> str:
    """SHA-256 of a vqpack file's UNet, whatever else the file holds: of a line `key dtype [d0,d1,...] crc32` a tensor,
    sorted by key and joined by line feeds. The header's checksums where it is intact, else those of the bytes.
    """
    lines, sums = [], None if content_id(reader) is None else reader.metadata[CRC_KEY]
    bare = not any(key.startswith(UNET_PREFIX) for key in reader.keys())
    for index, key in enumerate(reader.keys()):
        if key.startswith("vq.") or not (bare or key.startswith(UNET_PREFIX)):
            continue
        crc = f"{zlib.crc32(reader.raw(key).numpy()):08x}" if sums is None else sums[8 * index:8 * index + 8]
        entry = reader.entry(key)
        shape = ",".join(map(str, entry.shape))
        lines.append(f"{UNET_PREFIX if bare else ''}{key} {entry.dtype} [{shape}] {crc}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def save_adapter(path: str | os.PathLike, adapter: Adapter, overwrite: bool = False,
                 progress: Progress | None = None) -> Path:
    """Write an adapter -> the file's final name (SUFFIX is added where it is missing)."""
    path = Path(path)
    with Writer(path.with_name(stem_of(path) + SUFFIX), overwrite) as writer:
        for key, sides in adapter.layers.items():
            for ending, side in zip((OUT, IN), sides, strict=True):
                if side is not None:
                    writer.add(key + ending, side)
        facts = {**adapter.facts, "version": VERSION, "base": adapter.base, "experts": adapter.experts,
                 "boundaries": list(adapter.boundaries)}
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return writer.close({METADATA: text}, progress)


def stem_of(path: Path) -> str:
    """Its name without the ending."""
    return path.name.removesuffix(".safetensors").removesuffix(".vqscales")


def load_adapter(path: str | os.PathLike) -> Adapter:
    """Read an adapter; FormatError in one sentence for anything else."""
    with Reader(path, mapped=False) as reader:
        name, facts = reader.path.name, read_facts(reader)
        layers, experts = {}, facts["experts"]
        for key in reader.keys():
            if not key.endswith(OUT):
                if not (key.endswith(IN) and key.removesuffix(IN) + OUT in reader.header.entries):
                    raise _damaged(name, f"'{key:.120}' is no scale of a layer")
                continue
            layer = key.removesuffix(OUT)
            has_in = layer + IN in reader.header.entries
            layers[layer] = (_logs(reader, key, experts), _logs(reader, layer + IN, experts) if has_in else None)
        if not layers:
            raise _damaged(name, "it holds no layer")
        own = ("version", "base", "experts", "boundaries")
        return Adapter(facts["base"], tuple(facts["boundaries"]), layers,
                       {key: value for key, value in facts.items() if key not in own})


def check_base(adapter: Adapter, identity: str | None, name: str, base: str) -> None:
    """FormatError where an adapter (file `name`) was made for another file than that with this base_id."""
    if adapter.base != identity:
        made = adapter.facts.get("base_name")
        of = f"of '{made:.80}' ({adapter.base[:12]})" if isinstance(made, str) else adapter.base[:12]
        raise FormatError(f"the adapter '{name}' was trained on the UNet {of}, and '{base}' holds another one "
                          f"({(identity or 'unknown')[:12]}): load the file it was trained on, or train it on this one")


def read_facts(reader: Reader) -> dict:
    """The checked record of an adapter's header, without reading any tensor."""
    name, text = reader.path.name, reader.metadata.get(METADATA)
    if text is None:
        raise FormatError(f"'{name}' is no scale adapter: expected a file of `vqpack personalize` or `vqpack tune "
                          f"--adapter`")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or "version" not in facts:
        raise _damaged(name, "its record is no JSON object with a version")
    if type(facts["version"]) is not int or facts["version"] != VERSION:
        raise FormatError(f"'{name}' is a scale adapter of version {facts['version']!r:.20}, this program reads "
                          f"version {VERSION}: install a newer vqpack")
    edges, experts, base = facts.get("boundaries"), facts.get("experts"), facts.get("base")
    if type(experts) is not int or not 1 <= experts <= MOST_EXPERTS:
        raise _damaged(name, f"it has {experts!r:.20} experts, 1 to {MOST_EXPERTS} are possible")
    if not isinstance(base, str) or not re.fullmatch("[0-9a-f]{64}", base):
        raise _damaged(name, "it does not say which file it belongs to")
    if not _ascending(edges) or len(edges) != experts - 1:
        raise _damaged(name, f"{experts} experts need {experts - 1} ascending noise levels between them")
    return facts


def _ascending(edges) -> bool:
    good = isinstance(edges, list) and all(type(e) in (int, float) and math.isfinite(e) and e > 0 for e in edges)
    return good and all(a < b for a, b in zip(edges, edges[1:]))


def _logs(reader: Reader, key: str, experts: int) -> torch.Tensor:
    entry = reader.entry(key)
    if entry.dtype != "F16" or len(entry.shape) != 2 or entry.shape[0] != experts or not entry.shape[1]:
        raise _damaged(reader.path.name, f"'{key:.120}' is {entry.dtype} {list(entry.shape)}, expected F16 [{experts}, "
                                         f"channels]")
    logs = reader.tensor(key)
    if not bool((logs.float().abs() <= MOST_LOG).all()):               # NaN too
        raise _damaged(reader.path.name, f"'{key:.120}' holds scales beyond exp({MOST_LOG:g})")
    return logs


def _damaged(name: str, what: str) -> FormatError:
    return FormatError(f"the scale adapter '{name}' is damaged: {what}; use another copy of it")
