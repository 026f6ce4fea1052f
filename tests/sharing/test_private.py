"""Nothing private is in a produced file: no user, host, path, prompt or date, found by a scan of all bytes.

The run that made them has a user, a machine, a home and folders with names that can be found again (conftest.py).
compare.html and compare.json are for the user's own eyes and show the prompts; they hold nothing else of this.
"""
from __future__ import annotations

import base64
import gzip
import json
import re
import struct
import time
from pathlib import Path

OWN_EYES = ("compare.html", "compare.json")
DATE = re.compile(rb"20[2-9]\d[-:/](0[1-9]|1[0-2])[-:/][0-3]\d|\d\d:\d\d:\d\d|"
                  rb"(?<![0-9A-Za-z.+/])1[7-9]\d{8}(?![0-9A-Za-z])")


def contents(path: Path) -> bytes:
    """A file's bytes, and behind them what is packed in it: the report. Pictures of a page are taken out."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        start = 8 + struct.unpack_from("<Q", data)[0]
        entry = json.loads(data[8:start]).get("vq.report")
        if entry:
            packed = data[start:][slice(*entry["data_offsets"])]
            assert packed[4:8] == bytes(4), "gzip's time stamp"
            data += gzip.decompress(packed)
    if path.suffix == ".html":
        data = re.sub(rb"base64,([A-Za-z0-9+/=]+)", lambda match: text_chunks(base64.b64decode(match[1])), data)
    return data


def text_chunks(png: bytes) -> bytes:
    """What a PNG says besides its pixels."""
    found, position = b"", 8
    while png[:4] == b"\x89PNG" and position + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        found += b"" if kind == b"IDAT" else png[position:position + 12 + length]
        position += 12 + length
    return found


def leaks(data: bytes, secrets) -> list[str]:
    """What of it is there, in UTF-8 or UTF-16, and dates."""
    lower = data.lower()
    found = [word for word in secrets if word.lower().encode() in lower or word.lower().encode("utf-16-le") in lower]
    return found + [match[0].decode() for match in DATE.finditer(data)]


def test_everything_was_produced(produced):
    names = {path.relative_to(produced).as_posix() for path in produced.rglob("*") if path.is_file()}
    assert names == {"calibration.vqcal.safetensors", "coded.safetensors", "tuned.safetensors", "attached.safetensors",
                     "plain.safetensors", "saved.safetensors", "README.md", "comparison.png", "report/compare.html",
                     "report/compare.json"}


def test_nothing_private_is_in_any_of_them(produced, secrets, repository):
    names, prompts = secrets
    words = [*prompts, "yellow triangle", "prompts of mine"]
    found = {path.name: leaks(contents(path), [*names, str(produced), str(repository),
                                               *(words if path.name not in OWN_EYES else [])])
             for path in sorted(produced.rglob("*")) if path.is_file()}
    assert found == {name: [] for name in found}


def test_the_scan_would_find_it(produced, secrets):
    names, prompts = secrets
    data = contents(produced / "coded.safetensors")
    for secret in (names[0], prompts[0], "2026-11-28", "12:34:56", f" {int(time.time())} "):
        assert leaks(data + secret.encode(), [names[0], prompts[0]]), secret
    assert leaks(data + names[1].encode("utf-16-le"), names)
    assert leaks(contents(produced / "report" / "compare.json"), prompts)
