"""Where a file comes from and what may be done with it, in words, and its hashes as model sites compute them."""
from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .progress import Progress
from .safetensors_io import CHUNK, SafetensorsFile

LICENSE_KEY = "modelspec.license"
LOST = "source, license, plan and settings are lost: another program wrote this file anew without its metadata"
_LONGEST = 300
# Words of licenses and model pages that forbid handing on a changed model: "CC BY-NC-ND 4.0", "NoDerivatives",
# "no merges", "do not re-upload", "derivatives are not permitted". It may err, so it only makes us say something.
_CHANGED = r"(?:deriv\w*|modif\w*|merg\w*|re-?upload\w*|re-?distribut\w*)"
_FORBIDDEN = re.compile(rf"\bnd\b|\bno[ _-]?{_CHANGED}|\b(?:not|never|forbid\w*|prohibit\w*|disallow\w*)\b[^.;]{{0,40}}"
                        rf"\b{_CHANGED}|\b{_CHANGED}\b[^.;]{{0,40}}\b(?:not|forbid\w*|prohibit\w*|disallow\w*)\b",
                        re.IGNORECASE)


@dataclass(frozen=True)
class Hashes:
    """Of one file: SHA-256 of all bytes, and of those behind the safetensors header."""

    sha256: str
    data_sha256: str

    @property
    def auto_v2(self) -> str:
        """The first ten digits of the file's; A1111 shows them beside a checkpoint's name."""
        return self.sha256[:10]

    @property
    def auto_v3(self) -> str:
        """The first twelve digits of the data's: it stays when somebody edits the header."""
        return self.data_sha256[:12]


def file_hashes(path: str | Path, progress: Progress | None = None) -> Hashes:
    """Read a .safetensors file once -> its hashes; some seconds for 1.8 GB."""
    path, progress = Path(path), progress or Progress()
    whole, data = hashlib.sha256(), hashlib.sha256()
    progress.start("hashing", path.stat().st_size, path.name)
    with open(path, "rb") as file:
        head = file.read(8)
        head += file.read(int.from_bytes(head, "little"))
        whole.update(head)
        progress.advance(len(head))
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            data.update(chunk)
            progress.advance(len(chunk))
    progress.finish()
    return Hashes(whole.hexdigest(), data.hexdigest())


def provenance_lines(info: Mapping) -> list[str]:
    """Source, license and program of what inspection.inspect_file found; one line where another tool dropped them."""
    if info["tool"] is None and info["source"].get("sha256") is None:
        return [LOST]
    license_text = info["modelspec"].get(LICENSE_KEY)
    note = license_note(info["modelspec"])
    return [f"source: {one_line(info['source'].get('name') or 'not known')} (sha256 {info['source'].get('sha256')})",
            f"license: {one_line(license_text) if license_text else 'the source states none'}",
            *([note] if note else []), f"written by {one_line(info['tool'] or 'an unknown program')}"]


def license_note(metadata: Mapping[str, str]) -> str:
    """A sentence where a header's license seems to forbid handing on a changed model, else nothing."""
    if not _FORBIDDEN.search(metadata.get(LICENSE_KEY, "")):
        return ""
    return ("the license seems to forbid derivatives or handing them on, and a quantized file is one: keep it to "
            "yourself or ask the model's author")


def license_note_of(path: str | Path) -> str:
    """license_note of a .safetensors file's header."""
    with SafetensorsFile(path) as file:
        return license_note(file.metadata)


def one_line(text, most: int = _LONGEST) -> str:
    """Foreign text without control and direction characters, cut."""
    kept = (" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(text)[:most])
    return " ".join("".join(kept).split())
