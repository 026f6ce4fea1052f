"""What compile_check.py compiles: one table of kernels, one of targets. The limits are in compile_check.py."""
from __future__ import annotations

import runpy
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
make = runpy.run_path(str(FOLDER / "triton_interpreted.py"))["make"]
from vqpack.kernels import decode_triton, int8_triton, linear_triton, viterbi_triton  # noqa: E402
from vqpack.kernels.launch_triton import merged  # noqa: E402

# Triton dropped sm_75; dispatch.py sends such cards to torch.
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")
QUICK_TARGETS = ("sm_80", "sm_90", "gfx1100")
HALF, BRAIN = torch.float16, torch.bfloat16


def decode(part, dtype=HALF, beside=0):
    out = torch.empty(part.out_features, part.taps, part.channels + beside, dtype=dtype)[:, :, beside:]
    return lambda target: decode_triton.launch(part, 0, part.out_features, out, arch=target)


def linear(part, tokens, dtype=HALF, programs=0):
    x, y = torch.empty(tokens, part.channels, dtype=dtype), torch.empty(tokens, part.out_features, dtype=dtype)
    of_token = torch.empty(tokens) if part.rotation else None
    return lambda target: linear_triton.launch(x, of_token, part, None, y, target, programs or 1)[0]


def viterbi(window, step_bits, vector=1):
    targets = torch.empty(4, 64, vector, dtype=torch.int32)
    table = torch.empty(1 << window, vector, dtype=torch.int8)
    kinds, states = torch.empty(64, dtype=torch.uint8), torch.empty(4, dtype=torch.int32)
    back, codes = (torch.empty(4, 64, dtype=torch.uint8) for _ in range(2))
    return lambda target: viterbi_triton.launch(targets, table, step_bits, kinds, states, 0, back, codes)


def rounding(part, dtype=HALF):
    x, q = torch.empty(256, part.channels, dtype=dtype), torch.empty(256, part.channels, dtype=torch.int8)
    return lambda target: int8_triton.launch_rounding(x, part, 8, q, torch.empty(256), target)


def int8_product(part, dtype=HALF):
    q, w = (torch.empty(rows, part.channels, dtype=torch.int8) for rows in (256, part.out_features))
    y, bias = torch.empty(256, part.out_features, dtype=dtype), torch.empty(part.out_features, dtype=dtype)
    return lambda target: int8_triton.launch_product(q, torch.empty(256), part, w, bias, y, target)


def group(part):
    """The same part three times, as q, k and v are."""
    return lambda target: merged([decode(part)(target) for _ in range(3)], decode_triton.POINTERS)[0]


def trellis(bits, vector=1, window=12, **options):
    return make.trellis(256, 1280, 1, window, bits, vector, 4, **options)


def cases() -> dict:
    """Name -> function of a target that gives the call to compile."""
    return {
        "decode trellis 2 bits": decode(trellis(2)),
        "decode trellis 3 bits": decode(trellis(3), BRAIN),
        "decode trellis 3 bits int8": decode(trellis(3), torch.int8),
        "decode trellis 3 bits rotated 128": decode(trellis(3, rotation=128)),
        "decode trellis 2.5 bits rotated 64": decode(trellis(5, 2, rotation=64)),
        "decode trellis 2 bits window 8 3x3 part": decode(make.trellis(256, 640, 9, 8, 2, 1, 1, col=True), beside=640),
        "decode trellis 3 bits rotated 128, group": group(trellis(3, rotation=128)),
        "decode palette 3 bits": decode(make.lut(64, 1280, 1, 3)),
        "decode uniform 4 bits groups": decode(make.lut(64, 1280, 1, 4, uniform=True, group=64)),
        "decode uniform 4 bits int8": decode(make.lut(64, 1280, 1, 4, uniform=True), torch.int8),
        "decode palette 4 bits rotated 128": decode(make.lut(64, 1280, 1, 4, rotation=128)),
        "decode additive 2 x 8": decode(make.additive(64, 1280, 1, 8, 8, 2)),
        "decode additive 2 x 8 rotated 128": decode(make.additive(64, 1280, 1, 8, 8, 2, rotation=128)),
        "decode product 1 x 8 kernels of 9": decode(make.additive(64, 640, 9, 8, 9, 1, order=1)),
        "linear trellis 3 bits 16 tokens": linear(trellis(3, rotation=128), 16, programs=999),
        "linear trellis 2 bits 256 tokens": linear(trellis(2), 256, BRAIN),
        "linear palette 4 bits 64 tokens": linear(make.lut(64, 1280, 1, 4), 64),
        "linear additive 2 x 8 64 tokens": linear(make.additive(64, 1280, 1, 8, 8, 2), 64),
        "rounding x": rounding(trellis(3), BRAIN),
        "rounding x rotated 128": rounding(trellis(3, rotation=128)),
        "rounding x rotated 128, columns": rounding(trellis(3, rotation=128, col=True)),
        "int8 product": int8_product(trellis(3)),
        "viterbi window 8, 2 bits": viterbi(8, 2),
        "viterbi window 12, 1 bit": viterbi(12, 1),
        "viterbi window 12, 3 bits": viterbi(12, 3),
        "viterbi window 12, 6 bits": viterbi(12, 6),
        "viterbi window 12, 3.5 bits": viterbi(12, 7, 2),
    }


QUICK = ("decode trellis 3 bits rotated 128", "decode uniform 4 bits groups", "linear trellis 3 bits 16 tokens")
