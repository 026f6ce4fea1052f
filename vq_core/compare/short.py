"""The short form of a comparison: what stays in a vqpack file of it. No prompts, no paths, no pictures, no dates."""
from __future__ import annotations

import json
import re
from pathlib import Path

from ..describe import size
from ..errors import FormatError
from .checked import Odd, choice_of, number_of, text_of, whole_of

KEY = "comparison"                         # its place in `vq.report`
MAX_BYTES = 64 << 20                       # of compare.json: 26 checkpoints of SDXL are 8 MB
BUILT_IN, OWN = "built-in", "own"
KINDS = ("vqpack file", "checkpoint file", "diffusers folder")
COMPONENTS = ("unet", "te1", "te2")
_MOST_METRICS = 16
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


def checkpoint_of(data: dict, content: str | None, name: str) -> dict:
    """compare.json's entry of the file with this content_id, beside its reference; FormatError where it has none.

    name: what the comparison is called in messages.
    """
    others = [c for c in data["checkpoints"][1:] if isinstance(c, dict)]
    mine = next((c for c in others if content is not None and c.get("content") == content), None)
    if mine is None:
        known = any("content" in c for c in others)
        raise FormatError(f"'{name}' says nothing of this file: " + (
            "none of the checkpoints it measured against its reference has the same weights" if known else
            "it measured no vqpack file, or an older version wrote it: run vqpack compare again"))
    return mine


def short_form(data: dict, content: str, source: dict, name: str) -> dict:
    """compare.json's part about one file -> JSON for its report.

    content: content_id of the file; source: its `vqpack.source`; name: what compare.json is called in messages.
    FormatError where the comparison is not about this file or lacks something.
    """
    mine = checkpoint_of(data, content, name)
    try:
        return _checked(_collected(data, mine, source))
    except (Odd, KeyError, TypeError, AttributeError, IndexError) as error:
        said = f"'{error}'" if isinstance(error, Odd) else "parts of it"
        raise FormatError(f"'{name}' is not a complete result of vqpack compare ({said} missing or not as written): "
                          f"run vqpack compare again") from None


def stored_comparison(report: dict) -> dict | None:
    """The short form in a file's report; None where there is none or a foreign hand left something odd."""
    try:
        return _checked(report[KEY])
    except (Odd, KeyError, TypeError, AttributeError):
        return None


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
    """A copy with these fields and no others, every value of its kind and every text harmless; Odd names a field."""
    reference, drawn = short["reference"], short["settings"]
    sha256, is_source = reference.get("sha256"), reference.get("is_source")
    if not (sha256 is None or isinstance(sha256, str) and _HEX.fullmatch(sha256)) or not isinstance(is_source, bool):
        raise Odd("sha256")
    if not isinstance(drawn["size"], list) or len(drawn["size"]) != 2:
        raise Odd("size")
    if not isinstance(short["metrics"], list) or not 1 <= len(short["metrics"]) <= _MOST_METRICS:
        raise Odd("metrics")
    return {"tool": text_of(short, "tool"),
            "reference": {"name": text_of(reference, "name"), "kind": choice_of(reference, "kind", KINDS),
                          "bytes": whole_of(reference, "bytes"), "sha256": sha256, "is_source": is_source},
            "settings": {**{name: whole_of(drawn, name) for name in ("prompts", "seeds", "steps")},
                         "prompt_source": choice_of(drawn, "prompt_source", (BUILT_IN, OWN)),
                         "guidance": number_of(drawn, "guidance", finite=True),
                         "size": [whole_of({"size": side}, "size") for side in drawn["size"]],
                         "sampler": text_of(drawn, "sampler")},
            "metrics": [_metric(metric) for metric in short["metrics"]],
            "weight_error": {part: None if short["weight_error"].get(part) is None else
                             number_of(short["weight_error"], part, finite=True) for part in COMPONENTS}}


def _metric(metric: dict) -> dict:
    return {**{name: text_of(metric, name) for name in ("name", "title", "unit")},
            **{name: number_of(metric, name) for name in ("low", "value", "high")},
            "digits": min(6, whole_of(metric, "digits")), "count": whole_of(metric, "count")}
