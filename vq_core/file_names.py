"""Names of result files: made from the model's name and its bits, safe on every system, never outside their folder."""
from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

SUFFIX = ".safetensors"
_MAX_BYTES = 200                           # file systems allow 255; `.part`, `.spool` and a number must still fit
_RESERVED = re.compile(r"^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|$)", re.IGNORECASE)


def output_name(folder: str | os.PathLike, model: str, unet_bits: float) -> Path:
    """`<folder>/<model>-vq<bits>b.safetensors`; `model` may hold anything, the result stays inside the folder."""
    ending = f"-vq{unet_bits:.2f}b{SUFFIX}"
    return Path(folder) / (safe_stem(model, _MAX_BYTES - len(ending)) + ending)


def safe_stem(name: str, most: int = _MAX_BYTES - len(SUFFIX)) -> str:
    """A file name's stem without separators, control or reserved characters, at most `most` UTF-8 bytes long."""
    name = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    name = "".join("_" if c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in name)
    name = name.encode("utf-8")[:most].decode("utf-8", "ignore").strip(". ")
    return f"_{name}" if not name or _RESERVED.match(name) else name


def numbered(path: Path) -> Path:
    """`path` itself if nothing is there, else the first free `<stem>-2.safetensors`, `-3`, ..."""
    count, candidate = 1, path
    while os.path.lexists(candidate):
        count += 1
        candidate = path.with_name(f"{path.stem}-{count}{path.suffix}")
    return candidate


def glob_safe(text: str) -> str:
    """A name as a glob pattern that matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
