"""The short form of a comparison: what stays in a vqpack file of it. No prompts, no paths, no pictures, no dates."""
from __future__ import annotations

import json
import math
import re
import unicodedata
from pathlib import Path

from ..describe import size
from ..errors import FormatError

KEY = "comparison"                         # its place in `vq.report`
MAX_BYTES = 64 << 20                       # of compare.json: 26 checkpoints of SDXL are 8 MB
BUILT_IN, OWN = "built-in", "own"
KINDS = ("vqpack file", "checkpoint file", "diffusers folder")
COMPONENTS = ("unet", "te1", "te2")
_MOST_METRICS, _LONGEST, _MOST_COUNT = 16, 120, 2**53
_HEX = re.compile(r"[0-9a-f]{64}")


def read_comparison(path: str | Path) -> dict:
    """compare.json, or the folder it is in -> its JSON; FormatError in one sentence for anything else."""
    path = Path(path)
    path = path / "compare.json" if path.is_dir() else path
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"'{path.name}' has {size(path.stat().st_size)}, a result of vqpack compare has at most "
                              f"{size(MAX_BYTES)}: give the compare.json it wrote")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"cannot read '{path.name}' ({error.strerror or error}): give the folder or the compare.json "
                          f"that vqpack compare wrote") from None
    except (ValueError, RecursionError):
        raise FormatError(f"'{path.name}' is not JSON: give the compare.json that vqpack compare wrote") from None
    if not isinstance(data, dict) or not isinstance(data.get("checkpoints"), list):
        raise FormatError(f"'{path.name}' is not a result of vqpack compare: it lists no checkpoints")
    return data


def short_form(data: dict, content: str, source: dict, name: str) -> dict:
    """compare.json's part about one file -> JSON for its report.

    content: content_id of the file; source: its `vqpack.source`; name: what compare.json is called in messages.
    FormatError where the comparison is not about this file or lacks something.
    """
    others = [c for c in data["checkpoints"][1:] if isinstance(c, dict)]
    mine = next((c for c in others if c.get("content") == content), None)
    if mine is None:
        known = any("content" in c for c in others)
        raise FormatError(f"'{name}' says nothing of this file: " + (
            "none of the checkpoints it measured against its reference has the same weights" if known else
            "it measured no vqpack file, or an older version wrote it: run vqpack compare again"))
    try:
        return _checked(_collected(data, mine, source))
    except (_Odd, KeyError, TypeError, AttributeError, IndexError) as error:
        said = f"'{error}'" if isinstance(error, _Odd) else "parts of it"
        raise FormatError(f"'{name}' is not a complete result of vqpack compare ({said} missing or not as written): "
                          f"run vqpack compare again") from None


def stored_comparison(report: dict) -> dict | None:
    """The short form in a file's report; None where there is none or a foreign hand left something odd."""
    try:
        return _checked(report[KEY])
    except (_Odd, KeyError, TypeError, AttributeError):
        return None


class _Odd(Exception):
    """Names what is missing or not as written."""


def _collected(data: dict, mine: dict, source: dict) -> dict:
    first, settings = data["checkpoints"][0], data["settings"]
    sha256 = first.get("sha256")
    metrics = [{"name": m["name"], "title": m["title"], "unit": m["unit"], "digits": m["digits"],
                **{key: mine["metrics"][m["name"]][key] for key in ("low", "value", "high", "count")}}
               for m in data["metrics"] if m["name"] in mine["metrics"]]
    return {"tool": data["tool"], "metrics": metrics,
            "reference": {"name": first["name"], "kind": first["kind"], "bytes": first["file_bytes"], "sha256": sha256,
                          "is_source": sha256 is not None and sha256 == source.get("sha256")},
            "settings": {"prompts": len(settings["prompts"]), "seeds": settings["seeds"], "steps": settings["steps"],
                         "prompt_source": BUILT_IN if settings["prompt_file"] == BUILT_IN else OWN,
                         "guidance": settings["guidance"], "size": settings["size"], "sampler": settings["sampler"]},
            "weight_error": {part: mine["weight_error"].get(part) for part in COMPONENTS}}


def _checked(short: dict) -> dict:
    """A copy with these fields and no others, every value of its kind and every text harmless; _Odd names a field."""
    reference, drawn = short["reference"], short["settings"]
    sha256, is_source = reference.get("sha256"), reference.get("is_source")
    if not (sha256 is None or isinstance(sha256, str) and _HEX.fullmatch(sha256)) or not isinstance(is_source, bool):
        raise _Odd("sha256")
    if not isinstance(drawn["size"], list) or len(drawn["size"]) != 2:
        raise _Odd("size")
    if not isinstance(short["metrics"], list) or not 1 <= len(short["metrics"]) <= _MOST_METRICS:
        raise _Odd("metrics")
    return {"tool": _text(short, "tool"),
            "reference": {"name": _text(reference, "name"), "kind": _choice(reference, "kind", KINDS),
                          "bytes": _whole(reference, "bytes"), "sha256": sha256, "is_source": is_source},
            "settings": {**{name: _whole(drawn, name) for name in ("prompts", "seeds", "steps")},
                         "prompt_source": _choice(drawn, "prompt_source", (BUILT_IN, OWN)),
                         "guidance": _number(drawn, "guidance", finite=True),
                         "size": [_whole({"size": side}, "size") for side in drawn["size"]],
                         "sampler": _text(drawn, "sampler")},
            "metrics": [_metric(metric) for metric in short["metrics"]],
            "weight_error": {part: None if short["weight_error"].get(part) is None else
                             _number(short["weight_error"], part, finite=True) for part in COMPONENTS}}


def _metric(metric: dict) -> dict:
    return {**{name: _text(metric, name) for name in ("name", "title", "unit")},
            **{name: _number(metric, name) for name in ("low", "value", "high")},
            "digits": min(6, _whole(metric, "digits")), "count": _whole(metric, "count")}


def _text(values: dict, name: str) -> str:
    """Foreign text on one line, without control and direction characters."""
    if not isinstance(values[name], str):
        raise _Odd(name)
    kept = ("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
            for c in values[name][:_LONGEST])
    return "".join(kept)


def _whole(values: dict, name: str) -> int:
    value = values[name]
    if type(value) is not int or not 0 <= value <= _MOST_COUNT:
        raise _Odd(name)
    return value


def _number(values: dict, name: str, finite: bool = False) -> float | str | None:
    """A number in JSON's spelling: "inf", "-inf" and None (no number) where compare.json has them."""
    value = values[name]
    if not finite and (value is None or value in ("inf", "-inf")):
        return value
    if type(value) is float and not finite and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if type(value) not in (int, float) or not abs(value) < 1e12:
        raise _Odd(name)
    return round(float(value), 6)


def _choice(values: dict, name: str, choices: tuple[str, ...]) -> str:
    if values[name] not in choices:
        raise _Odd(name)
    return values[name]
