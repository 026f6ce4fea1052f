"""How a source's keys follow from the keys a file stores: renamed prefixes, concatenated rows, transposes.

Small, explicit and stored in the file's header (`vqpack.keymap`, docs/format.md section 6):
    {"rename": [[stored prefix, source prefix], ...],          longest matching stored prefix wins
     "concat": {source key: [stored keys, in order of rows]},
     "transpose": {source key: stored key}}
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .errors import FormatError

KEYMAP_KEY = "vqpack.keymap"


@dataclass(frozen=True)
class Rebuilt:
    """One tensor of the source: the stored tensors it is made of, concatenated by rows, then perhaps transposed."""

    key: str
    stored: tuple[str, ...]
    transpose: bool = False


@dataclass(frozen=True)
class KeyMap:
    """Frozen; `rename` holds (stored prefix, source prefix)."""

    rename: tuple[tuple[str, str], ...] = ()
    concat: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transpose: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rename or self.concat or self.transpose)

    def __add__(self, other: KeyMap) -> KeyMap:
        return KeyMap(self.rename + other.rename, {**self.concat, **other.concat},
                      {**self.transpose, **other.transpose})

    def rebuild(self, stored: Iterable[str]) -> list[Rebuilt]:
        """The source's tensors, in the order of the stored keys. FormatError if parts are missing or names collide.

        A concatenation none of whose parts is stored (a component left out) is left out too.
        """
        stored = list(stored)
        present, used, out = set(stored), {}, []
        for key, parts in self.concat.items():
            missing = [part for part in parts if part not in present]
            if missing and len(missing) < len(parts):
                raise FormatError(f"'{key}' cannot be rebuilt: the file lacks its part '{missing[0]}'")
            if not missing:
                _claim(used, Rebuilt(key, tuple(parts)))
        for key, part in self.transpose.items():
            if part in present:
                _claim(used, Rebuilt(key, (part,), True))
        prefixes = PrefixTable(self.rename)
        for key in stored:
            item = used.get(key)
            if item is None:
                out.append(Rebuilt(prefixes.apply(key), (key,)))
            elif item.stored[0] == key:
                out.append(item)
        names = {item.key for item in out}
        if len(names) != len(out):
            raise FormatError("the file's vqpack.keymap gives two tensors the same name; the header is damaged")
        return out

    def to_json(self) -> str:
        """-> the text of `vqpack.keymap`."""
        return json.dumps({"rename": [list(pair) for pair in self.rename],
                           "concat": {key: list(parts) for key, parts in self.concat.items()},
                           "transpose": dict(self.transpose)}, sort_keys=True, separators=(",", ":"))


def keymap_from_metadata(metadata: Mapping[str, str]) -> KeyMap:
    """Read `vqpack.keymap` of a header; an empty map where there is none, FormatError where it is damaged."""
    if KEYMAP_KEY not in metadata:
        return KeyMap()
    try:
        data = json.loads(metadata[KEYMAP_KEY])
        rename, concat, transpose = data.get("rename", []), data.get("concat", {}), data.get("transpose", {})
        good = (all(len(p) == 2 and _texts(p) for p in rename)
                and all(parts and _texts(parts) for parts in concat.values()) and _texts(transpose.values()))
    except (ValueError, AttributeError, TypeError, RecursionError):
        good = False
    if not good:
        raise FormatError("the file's vqpack.keymap is damaged: expected renamed prefixes, concatenations and "
                          "transposes; use a copy of the file whose header was not edited")
    return KeyMap(tuple((a, b) for a, b in rename), {key: tuple(parts) for key, parts in concat.items()}, transpose)


def _texts(values) -> bool:
    return not isinstance(values, str) and all(isinstance(value, str) for value in values)


def _claim(used: dict[str, Rebuilt], item: Rebuilt) -> None:
    for part in item.stored:
        if part in used:
            raise FormatError(f"the file's vqpack.keymap uses '{part:.120}' twice; the header is damaged")
        used[part] = item


class PrefixTable:
    """Longest-prefix renaming in time independent of the number of prefixes (each ends at a known length)."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        self._pairs = dict(pairs)
        self._lengths = sorted({len(prefix) for prefix in self._pairs}, reverse=True)

    def apply(self, key: str) -> str:
        """The key with its longest listed prefix replaced; unchanged where none is listed."""
        for length in self._lengths:
            new = self._pairs.get(key[:length])
            if new is not None and length <= len(key):
                return new + key[length:]
        return key
