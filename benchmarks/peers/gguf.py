"""GGUF Q2_K to Q5_K by ggml's own quantizer, as ComfyUI-GGUF lays SDXL out: any weight of 256 n flattened to rows.

The library is that of the llama-cpp-python package, or the file GGML_LIBRARY names (libggml-base, which takes two
minutes to build from the package's source). Quantized without an importance matrix, as SDXL files are.
"""
from __future__ import annotations

import ctypes
import importlib.util
import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch

from .coded import Coded, NotHere, kept, version
from .ggml_blocks import BLOCK_BYTES, SUPER, TYPE_IDS, decode

KINDS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K"}


def codes(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape fills whole blocks."""
    return len(shape) in (2, 4) and math.prod(shape) % SUPER == 0


def code(weight: torch.Tensor, bits: int) -> Coded:
    """Code float32 [out, in(, kh, kw)] as Q<bits>_K."""
    kind, library = KINDS[bits], _library()
    name, settings = f"gguf-{kind}", {"kind": kind, "imatrix": False, "package": _described()}
    if not codes(tuple(weight.shape)):
        return kept(weight, name, settings)
    rows = np.ascontiguousarray(weight.numpy().reshape(-1, SUPER), dtype=np.float32)
    blocks = np.zeros((len(rows), BLOCK_BYTES[kind]), dtype=np.uint8)
    written = library.ggml_quantize_chunk(TYPE_IDS[kind], rows.ctypes.data, blocks.ctypes.data, 0, len(rows), SUPER,
                                          None)
    if written != blocks.nbytes:
        raise NotHere(f"ggml wrote {written} bytes for {blocks.nbytes} of {kind}: another layout than this bench reads")
    return Coded(torch.from_numpy(decode(blocks, kind)).view(weight.shape), blocks.nbytes, 1.0, name, settings)


@cache
def _library():
    path = _find()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotHere(f"ggml: {path.name} does not load: {error}") from None
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                                            ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return library


def _find() -> Path:
    named = os.environ.get("GGML_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise NotHere("ggml: GGML_LIBRARY names no file")
        return Path(named)
    found = importlib.util.find_spec("llama_cpp")
    places = [Path(place) / "lib" for place in (found.submodule_search_locations or ())] if found else []
    for place in places:
        for path in sorted(place.glob("*ggml-base*")):
            return path
    raise NotHere("ggml: neither the package llama-cpp-python nor GGML_LIBRARY is there")


def _described() -> str:
    return f"llama-cpp-python {version('llama-cpp-python')}".strip() if not os.environ.get("GGML_LIBRARY") \
        else "libggml-base named by GGML_LIBRARY"
