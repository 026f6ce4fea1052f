"""Node schemas that older ComfyUI versions take too, and the choices that nodes and loading share."""
from __future__ import annotations

import inspect

from comfy_api.latest import io

COMPRESSED, DECODED, DYNAMIC = "compressed", "decoded", "dynamic (experimental)"
MEMORY_MODES = (COMPRESSED, DECODED, DYNAMIC)       # append only: saved workflows hold these words
FULL, INT8, AS_FILED = "16 bits", "int8", "as the file says"
ACTIVATIONS = (FULL, INT8, AS_FILED)                # append only


FOUND_BY = ("quantize", "compress", "GGUF", "low VRAM", "small")    # every node of the pack, in the search


def make_schema(**fields) -> io.Schema:
    """io.Schema with FOUND_BY, without the fields this ComfyUI does not know (search_aliases came with 0.11)."""
    known = inspect.signature(io.Schema).parameters
    fields["search_aliases"] = list(dict.fromkeys((*fields.get("search_aliases", ()), *FOUND_BY)))
    return io.Schema(**{name: value for name, value in fields.items() if name in known})
