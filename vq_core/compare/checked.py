"""Values of a foreign JSON object, each of its kind and harmless, or Odd with the field's name."""
from __future__ import annotations

import math
import unicodedata

_LONGEST, _MOST = 120, 2**53


class Odd(Exception):
    """Names what is missing or not as written."""


def text_of(values: dict, name: str) -> str:
    """Foreign text on one line, without control and direction characters."""
    if not isinstance(values[name], str):
        raise Odd(name)
    kept = ("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
            for c in values[name][:_LONGEST])
    return "".join(kept)


def whole_of(values: dict, name: str, most: int = _MOST) -> int:
    """0 to `most`."""
    value = values[name]
    if type(value) is not int or not 0 <= value <= most:
        raise Odd(name)
    return value


def number_of(values: dict, name: str, finite: bool = False) -> float | str | None:
    """A number in JSON's spelling: "inf", "-inf" and None (no number) where output.plain writes them."""
    value = values[name]
    if not finite and (value is None or value in ("inf", "-inf")):
        return value
    if type(value) is float and not finite and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if type(value) not in (int, float) or not abs(value) < 1e12:
        raise Odd(name)
    return round(float(value), 6)


def choice_of(values: dict, name: str, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    if values[name] not in choices:
        raise Odd(name)
    return values[name]
