"""The calibration file: grams as correlations in 16 bits, read lazily, nothing in it trusted (docs/calibration.md)."""
from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..container import Reader
from ..errors import FormatError, PlanError
from ..gram import Gram

SUFFIX = ".vqcal.safetensors"
METADATA, VERSION = "vqpack.calibration", 1
STEPS = 32767                              # of a correlation between 0 and 1
COUNTS, SQUARES, SENSITIVITY = "intervals.count", "intervals.mean_square", "sensitivity"
DIAGONAL, UPPER = 0, 1                     # of gram_keys


def gram_keys(index: int, held_out: bool) -> tuple[str, str]:
    """Keys of one gram: (diagonal, correlations above it)."""
    name = f"{'held_out' if held_out else 'gram'}.{index}"
    return f"{name}.diagonal", f"{name}.upper"


def pack_gram(mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [n, size, size] -> (correlations above the diagonal, int16 [n, size*(size-1)/2]; diagonal [n, size])."""
    diagonal = mean.diagonal(dim1=1, dim2=2).clamp(min=0).contiguous()
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    upper = np.empty((mean.shape[0], mean.shape[1] * (mean.shape[1] - 1) // 2), np.int16)
    for block, out in enumerate(upper):
        correlations = mean[block] * scale[block, :, None] * scale[block]
        rounded = (correlations * STEPS).round_().clamp_(-STEPS, STEPS).to(torch.int16).numpy()
        for row, (start, stop) in enumerate(_rows_above(mean.shape[1])):
            out[start:stop] = rounded[row, row + 1:]
    return torch.from_numpy(upper), diagonal


def unpack_gram(upper: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """Inverse of pack_gram -> float32 [n, size, size], symmetric."""
    n, size = diagonal.shape
    grams, stored = torch.zeros(n, size, size), upper.numpy()
    for block, gram in enumerate(grams):
        values, root = gram.numpy(), diagonal[block].sqrt()
        for row, (start, stop) in enumerate(_rows_above(size)):
            values[row, row + 1:] = stored[block, start:stop]
        gram /= STEPS
        gram += gram.t().clone()
        gram.fill_diagonal_(1.0).mul_(root[:, None] * root)
    return grams


def _rows_above(size: int) -> Iterator[tuple[int, int]]:
    """Where each row's elements above the diagonal stand."""
    start = 0
    for row in range(size):
        yield start, start + size - row - 1
        start += size - row - 1


def shapes_digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What tells one architecture from another: the coded layers' keys and shapes -> hex digits"""
    text = json.dumps({key: list(shape) for key, shape in shapes.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class LayerEntry:
    """One layer in the file's list."""

    shape: tuple[int, ...]
    group: int | None                      # whose gram it uses, None: it was never reached
    first: int                             # of its rows among all layers' sensitivities


@dataclass(frozen=True)
class GroupEntry:
    """One gram in the file's list."""

    blocks: int
    size: int
    text: bool
    count: int
    held_out_count: int
    left_out: int

    @property
    def diagonal_shape(self) -> tuple[int, int]:
        """Of its stored diagonal."""
        return self.blocks, self.size

    @property
    def upper_shape(self) -> tuple[int, int]:
        """Of its stored correlations above the diagonal."""
        return self.blocks, self.size * (self.size - 1) // 2


class Calibration:
    """An opened calibration file; grams are read when they are asked for. Usable from several threads.

    fingerprint: what decided its content; count: pictures drawn; settings: how; base: name, bytes and sha256 of the
    checkpoint it was made from. FormatError for anything that is not a calibration this version reads.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._reader = Reader(path, mapped=False)
        try:
            facts = _facts(self._reader)
            self.fingerprint: str = _get(facts, "fingerprint", str, self.path.name)
            self.count: int = _get(facts, "pictures", int, self.path.name)
            self.held_out: int = _get(facts, "held_out", int, self.path.name)
            self.settings: dict = _get(facts, "settings", dict, self.path.name)
            self.base: dict = _get(facts, "base", dict, self.path.name)
            self.facts = facts
            self.groups = [self._group(i, g) for i, g in enumerate(_get(facts, "groups", list, self.path.name))]
            self.layers = self._layers(_get(facts, "layers", list, self.path.name))
        except BaseException:
            self._reader.close()
            raise

    @property
    def noise_power(self) -> float | None:
        """Mean squared norm of the predicted noise of one picture; None without sensitivities."""
        value = self.facts.get("noise_power")
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def unreached(self) -> list[str]:
        """Layers without a gram: they are coded without data."""
        return [key for key, layer in self.layers.items() if layer.group is None]

    def shared(self) -> dict[int, list[str]]:
        """Group -> its layers."""
        found: dict[int, list[str]] = {}
        for key, layer in self.layers.items():
            if layer.group is not None:
                found.setdefault(layer.group, []).append(key)
        return found

    def check(self, shapes: Mapping[str, tuple[int, ...]], name: str = "this checkpoint") -> None:
        """PlanError where the calibration belongs to another architecture. shapes: coded layers' keys and shapes.

        A fine-tune of the same architecture passes; `base` says what the calibration was made from.
        """
        for key, layer in self.layers.items():
            if key not in shapes or tuple(shapes[key]) != layer.shape:
                got = f"has shape {list(shapes[key])}" if key in shapes else "does not exist"
                raise PlanError(f"'{self.path.name}' is a calibration of another base ('{self.base.get('name')}'): its "
                                f"layer '{key}' of shape {list(layer.shape)} {got} in {name}; calibrate {name} itself")
        missing = next((key for key in shapes if key not in self.layers), None)
        if missing is not None:
            raise PlanError(f"'{self.path.name}' is a calibration of another base ('{self.base.get('name')}'): it "
                            f"knows no layer '{missing}' of {name}; calibrate {name} itself")

    def gram(self, key: str) -> Gram | None:
        """The gram of a layer's inputs; None where the layer is unknown or was never reached."""
        layer = self.layers.get(key)
        if layer is None or layer.group is None:
            return None
        group = self.groups[layer.group]
        if not group.count:
            return None
        held_out = self._unpack(layer.group, True) if group.held_out_count else None
        return Gram(self._unpack(layer.group, False), group.count, held_out, group.held_out_count)

    def sensitivity(self, key: str) -> torch.Tensor | None:
        """s_o of a layer's output rows, float32 [out] (sensitivity.py); None where there is none."""
        layer = self.layers.get(key)
        if layer is None or layer.group is None or SENSITIVITY not in self._reader.header.entries:
            return None
        values = self._checked(SENSITIVITY, "F32", (sum(entry.shape[0] for entry in self.layers.values()),))
        return values[layer.first:layer.first + layer.shape[0]].clone()

    def interval_counts(self) -> torch.Tensor:
        """Input vectors by group and timestep interval (trajectory.EDGES), int64 [groups, intervals]."""
        return self._checked(COUNTS, "I64", (len(self.groups), 4))

    def interval_squares(self) -> torch.Tensor:
        """Mean squared input element by group and timestep interval, float32 [groups, intervals]."""
        return self._checked(SQUARES, "F32", (len(self.groups), 4))

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _group(self, index: int, value) -> GroupEntry:
        names = ("blocks", "size", "text", "count", "held_out_count", "left_out")
        good = isinstance(value, dict) and set(value) == set(names)
        good = good and type(value["text"]) is bool and all(
            type(value[n]) is int and 0 <= value[n] < 2**62 for n in names if n != "text")
        if not good or not value["blocks"] or not value["size"]:
            raise _damaged(self.path.name, f"entry {index} of its list of grams")
        group = GroupEntry(**value)
        for held_out in (False, True):
            keys = gram_keys(index, held_out)
            self._expect(keys[DIAGONAL], "F32", group.diagonal_shape)
            self._expect(keys[UPPER], "I16", group.upper_shape)
        return group

    def _layers(self, values: list) -> dict[str, LayerEntry]:
        found, first = {}, 0
        for value in values:
            good = isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and value[0] not in found
            good = good and isinstance(value[1], list) and len(value[1]) in (2, 4) and all(
                type(side) is int and 0 < side < 2**31 for side in value[1])
            good = good and (value[2] is None or type(value[2]) is int and 0 <= value[2] < len(self.groups))
            if not good:
                raise _damaged(self.path.name, f"layer {len(found)} of its list")
            key, shape, group = value[0], tuple(value[1]), value[2]
            columns = math.prod(shape[1:])
            if group is not None and self.groups[group].blocks * self.groups[group].size != columns:
                raise _damaged(self.path.name, f"the gram of '{key:.120}', which does not have its {columns} columns")
            found[key] = LayerEntry(shape, group, first)
            first += shape[0]
        return found

    def _expect(self, key: str, dtype: str, shape: tuple[int, ...]) -> None:
        entry = self._reader.header.entries.get(key)
        if entry is None or entry.dtype != dtype or entry.shape != shape:
            got = "nothing" if entry is None else f"{entry.dtype} {list(entry.shape)}"
            raise _damaged(self.path.name, f"'{key}': expected {dtype} {list(shape)}, got {got}")

    def _checked(self, key: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        self._expect(key, dtype, shape)
        values = self._reader.tensor(key)
        if values.is_floating_point() and not (torch.isfinite(values).all() and (values >= 0).all()):
            raise _damaged(self.path.name, f"'{key}' holds negative or infinite values")
        return values

    def _unpack(self, index: int, held_out: bool) -> torch.Tensor:
        group, keys = self.groups[index], gram_keys(index, held_out)
        return unpack_gram(self._checked(keys[UPPER], "I16", group.upper_shape),
                           self._checked(keys[DIAGONAL], "F32", group.diagonal_shape))


def header_facts(*, layers: Iterable[tuple[str, tuple[int, ...], int | None]], groups: list[GroupEntry],
                 **facts) -> str:
    """The JSON under METADATA."""
    listed = [[key, list(shape), group] for key, shape, group in layers]
    return json.dumps({"version": VERSION, "layers": listed, "groups": [vars(group) for group in groups], **facts},
                      sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _facts(reader: Reader) -> dict:
    name, text = reader.path.name, reader.metadata.get(METADATA)
    if text is None:
        raise FormatError(f"'{name}' is not a calibration: expected a file that `vqpack calibrate` wrote")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or "version" not in facts:
        raise _damaged(name, "its list of layers is no JSON object with a version")
    if facts["version"] != VERSION:
        raise FormatError(f"'{name}' is a calibration of version {facts['version']!r:.20}, this program reads version "
                          f"{VERSION}: install a newer vqpack or calibrate again")
    return facts


def _get(facts: dict, key: str, kind: type, name: str):
    value = facts.get(key)
    if type(value) is not kind:
        raise _damaged(name, f"its '{key}' is missing or of the wrong kind")
    return value


def _damaged(name: str, what: str) -> FormatError:
    return FormatError(f"the calibration '{name}' is damaged: {what}; calibrate again")
