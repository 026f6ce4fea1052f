"""The header of a file: what it says of how the file was made, and its size, which stands in it."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from .bits import Stored, count_bits
from .inspection import REPORT_KEY, pack_report
from .keymap import KEYMAP_KEY
from .source import Source
from .text_encoders import stored_keymap
from .version import __version__
from .writer import Writer

WORKFLOW_KEY = "workflow"                  # ComfyUI opens the graph in it where a file is dropped on its canvas
_ALONE = {"unet", "te1", "te2", "vae"}     # what a file needs to be sampled from
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


def canvas_graph(components: Iterable[str]) -> dict[str, str]:
    """What ComfyUI opens where a file with these components is dropped on its canvas: load and sample, always the same.

    {} for a file that cannot be sampled from alone. Never a graph of the user's.
    """
    if not set(components) >= _ALONE:
        return {}
    template = Path(__file__).parent / "configs" / "canvas.json"
    return {WORKFLOW_KEY: dump(json.loads(template.read_text(encoding="utf-8")))}


def fingerprint(identity: dict, plan: dict, settings: dict, version: str) -> str:
    """What decides the bytes of a result: source, plan, settings and the program's version -> hex digits"""
    return hashlib.sha256(dump([identity, plan, settings, version]).encode()).hexdigest()


def dump(value) -> str:
    """JSON with one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
