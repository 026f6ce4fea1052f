"""The header of a file: what it says of how the file was made, and its size, which stands in it."""
from __future__ import annotations

import hashlib
import json

from .bits import Stored, count_bits
from .inspection import REPORT_KEY, pack_report
from .keymap import KEYMAP_KEY
from .source import Source
from .text_encoders import stored_keymap
from .version import __version__
from .writer import Writer

MAX_MODELSPEC = 16384                      # longer values (thumbnails) would not fit the 1 MB header
PRIVATE_MODELSPEC = ("modelspec.thumbnail", "modelspec.date", "modelspec.hash_sha256")


def settle(writer: Writer, rows: list[dict], stored: list[Stored], metadata_of) -> tuple[int, dict[str, str]]:
    """Add the report -> (file's bytes, metadata). The size stands in the header: count until the numbers hold still.

    rows: of the report, one per coded layer; metadata_of(bits) -> the header's metadata for these averages.
    """
    if REPORT_KEY not in writer:
        writer.add(REPORT_KEY, pack_report({"layers": rows}))
    file_bytes, metadata = 0, {}
    for _ in range(8):
        metadata = metadata_of(count_bits(stored, file_bytes))
        size = writer.file_bytes(metadata)
        if size == file_bytes:
            break
        file_bytes = size
    return file_bytes, metadata


def common_metadata(source: Source, carried: dict[str, str]) -> dict[str, str]:
    """What every file's header has: tool, architecture, key map and what is carried over of its origin's modelspec."""
    keymap = stored_keymap(source)
    kept = {key: value for key, value in carried.items() if key.startswith("modelspec.")
            and key not in PRIVATE_MODELSPEC and len(value) <= MAX_MODELSPEC}
    return {**kept, **({KEYMAP_KEY: keymap.to_json()} if keymap else {}),
            "vqpack.tool": f"vqpack {__version__}", "vqpack.architecture": source.architecture}


def fingerprint(identity: dict, plan: dict, settings: dict, version: str) -> str:
    """What decides the bytes of a result: source, plan, settings and the program's version -> hex digits"""
    return hashlib.sha256(dump([identity, plan, settings, version]).encode()).hexdigest()


def dump(value) -> str:
    """JSON with one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
