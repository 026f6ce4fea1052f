"""Owns the trellis encoder of one matrix: scales, choice of rotation, chains of columns, Viterbi, refit, packing.

The trellis itself is in kernels/viterbi*.py, the tables in vq_core/tables, the decoder's side in docs/format.md.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...kernels import viterbi
from ...kernels.packing import UNIT_STEPS, pack_trellis
from ...kernels.parts import Scales, TrellisPart
from ...kernels.rotation import rotate, signs
from ..errors import PlanError
from ..gram import Gram, inner
from ..progress import Progress
from ..spec import TrellisSpec
from ..tables import get_table
from .feedback import Feedback, make_feedback, one_thread
from .scales import divide, root_mean_square, to_half
from .trellis_feedback import code_with_feedback

# Steps a chain has at least, where the layer is large enough. A chain starts in state 0, which costs as much as 10
# coded steps at window 12 (docs/trellis.md): 0.25 % of the error at 4096 steps, 1 % at 1024.
CHAIN_STEPS = 4096
ROTATION_BLOCKS = (128, 64, 32, 16)
# 0.6 s (torch, window 8) to 1.6 s (numba, window 12) on one core. Plain torch codes 3.5 M weights/s per core at 512
# sequences of 4096 steps, 2.6 at 256, 1.7 at 128.
BATCH_WEIGHTS = 1 << 21
GPU_BATCH = 4             # times BATCH_WEIGHTS: 2048 sequences, some for every multiprocessor
# The rotation is chosen on a sample, with window 8: log(error with / without) of the whole 640 x 640 matrix at window
# 12 against this sample, 3 bits: uniform +.050 / +.069, Gaussian .000 / .002, heavier -.031 / -.066, Student t(5)
# -.46 / -.64, uneven columns -.99 / -.92. Four times the sample changes the estimate by less than .01 around zero.
SAMPLE_WEIGHTS = 1 << 15
SAMPLE_ROWS = 64
SAMPLE_WINDOW = 8
# Corrections make the columns larger than the weights, so the scales too: 640 x 640 of correlated inputs, error against
# 1.00: 0.98, 0.993, 0.998, 0.991, 0.988 at 1, 1.5, 2, 3, 4 bits with 1.04, and more than at 1.04 with 1.12.
FEEDBACK_SCALE = 1.05
WORTH_ROTATING = 0.99     # of the error without; below that a gain is noise, and decoding pays for the rotation


@dataclass(frozen=True)
class _Code:
    """A trellis code and its encoder."""

    table: torch.Tensor            # int8 [2**window, vector]
    step: float                    # sigmas in one table unit
    step_bits: int
    backend: str | None

    @property
    def vector(self) -> int:
        return self.table.shape[1]

    @property
    def window(self) -> int:
        return self.table.shape[0].bit_length() - 1

    def padded_steps(self, rows: int) -> int:
        """Steps of one column, whole units."""
        return -(-rows // (self.vector * UNIT_STEPS)) * UNIT_STEPS


def encode_trellis(matrix: torch.Tensor, spec: TrellisSpec, *, channels: int, taps: int = 1, seed: int = 0,
                   device: torch.device | str | None = None, progress: Progress | None = None,
                   backend: str | None = None, shrink: int = 1, gram: Gram | None = None) -> TrellisPart:
    """Code matrix float32 [out_features, taps * channels]; rows of zeros decode to exact zeros.

    Same codes from every backend, batch size and number of threads. shrink: batches so many times smaller. gram: of the
    layer's inputs, codes with error feedback. Raises PlanError where the wished rotation does not divide the channels.
    Source: QTIP (arXiv 2406.11235), section 3, for the bitshift trellis.
    """
    device = torch.device(device if device is not None else "cpu")
    matrix = matrix.to(device, torch.float32)
    rms = root_mean_square(matrix[:, None], matrix.new_ones(1, matrix.shape[1]))[:, 0]        # [out_features]
    code = _make_code(spec, spec.window, backend)
    sign = signs(seed % 2**32, channels, device).repeat(taps)                                 # [cols]
    chain = chain_columns(*matrix.shape, code)
    if gram is not None:
        return _encode_with_gram(matrix, rms * FEEDBACK_SCALE, spec, code, channels, taps, seed, chain, gram, progress)
    block = _choose_rotation(matrix, rms, spec, channels, sign, backend)
    words, sums = [], []
    for start, stop in _chunks(matrix.shape, max(chain, block), _batch(device, shrink)):
        targets = _targets(matrix[:, start:stop], rms, block, sign[start:stop])               # [columns, out_features]
        steps, decoded = _code_columns(targets, rms > 0, code, chain, progress, shrink)
        words.append(pack_trellis(steps, code.step_bits).cpu())                               # [units, B, columns]
        sums.append(torch.stack([(targets * decoded).sum(0), decoded.square().sum(0)]))       # [2, out_features]
    dot, energy = torch.stack(sums).double().sum(0)
    fit = torch.where(energy > 0, dot / energy.clamp(min=1e-30), 0)                           # least squares
    return _part(code, channels, taps, chain, torch.cat(words, 2), rms * fit, block, seed)


def _encode_with_gram(matrix, rms, spec, code, channels, taps, seed, chain, gram, progress) -> TrellisPart:
    """encode_trellis column by column, each correcting the errors of those before it (feedback.py)."""
    sign = signs(seed % 2**32, channels, matrix.device).repeat(taps)                          # [cols]
    with one_thread():
        block, feedback = _choose_feedback(matrix, rms, spec, channels, sign, code.backend, gram)
        targets = _targets(matrix, rms, block, sign)                                          # [cols, out_features]
        steps, decoded = code_with_feedback(targets, rms > 0, code, chain, feedback, progress)
        dot = inner(decoded.t(), targets.t(), feedback.gram)                                  # [out_features]
        energy = inner(decoded.t(), decoded.t(), feedback.gram)
        fit = torch.where(energy > 0, dot / energy.clamp(min=1e-30), 0)
    words = pack_trellis(steps, code.step_bits).cpu()                                         # [units, B, cols]
    return _part(code, channels, taps, chain, words, rms * fit, block, seed)


def _part(code: _Code, channels: int, taps: int, chain: int, words, scales, block: int, seed: int) -> TrellisPart:
    half, gain = to_half(scales, code.step / max(1, block) ** 0.5)
    return TrellisPart(out_features=len(scales), channels=channels, taps=taps, window=code.window,
                       step_bits=code.step_bits, vector=code.vector, chain=chain, codes=words, table=code.table,
                       scales=Scales(gain=gain, row=half), rotation=block,
                       rotation_seed=seed % 2**32 if block else 0)


def chain_columns(rows: int, cols: int, code: _Code) -> int:
    """Columns in one sequence: the smallest power of two that makes CHAIN_STEPS, at most all columns."""
    chain = 1
    while chain * code.padded_steps(rows) < CHAIN_STEPS and chain < cols:
        chain *= 2
    return chain


def _make_code(spec: TrellisSpec, window: int, backend: str | None) -> _Code:
    table, step = get_table(window, spec.step_bits, spec.vector)
    return _Code(table, step, spec.step_bits, backend)


def _batch(device: torch.device, shrink: int = 1) -> int:
    """Weights coded between two looks at the user's wish to stop."""
    return (BATCH_WEIGHTS if device.type == "cpu" else GPU_BATCH * BATCH_WEIGHTS) // shrink


def _chunks(shape: tuple[int, int], multiple: int, weights: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns of about so many weights whose edges are multiples of `multiple`, a power of two."""
    rows, cols = shape
    size = max(1, weights // (rows * multiple)) * multiple
    return ((start, min(cols, start + size)) for start in range(0, cols, size))


def _targets(columns: torch.Tensor, rms: torch.Tensor, block: int, sign: torch.Tensor) -> torch.Tensor:
    """Weights [out_features, columns] over row scales, rotated: float32 [columns, out_features], in sigmas."""
    scaled = divide(columns.float()[:, None], rms[:, None])[:, 0]                             # [out_features, columns]
    if block:
        scaled = rotate(scaled, block, sign) / block**0.5
    return scaled.t().contiguous()


def _code_columns(targets: torch.Tensor, live: torch.Tensor, code: _Code, chain: int,
                  progress: Progress | None = None, shrink: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Code float32 [columns, out_features] -> (step codes uint8 [padded steps, columns], decoded, like targets).

    live: bool [out_features], False for rows of zeros, whose steps cost nothing.
    """
    columns, rows = targets.shape
    steps, vector = code.padded_steps(rows), code.vector
    device = targets.device
    x = torch.zeros(columns, steps * vector, dtype=torch.int32, device=device)                # [columns, padded rows]
    x[:, :rows] = viterbi.fixed_point(targets / code.step)
    mask = torch.zeros(steps * vector, dtype=torch.bool, device=device)
    mask[:rows] = live
    codes = torch.empty(columns, steps, dtype=torch.uint8, device=device)
    decoded = torch.empty(columns, steps * vector, device=device)
    for start, stop, length in _batches(columns, chain, max(1, _batch(device, shrink) // (chain * rows))):
        if progress is not None:
            progress.check()
        sequences = x[start:stop].view(-1, length * steps, vector)
        chosen = viterbi.encode(sequences, code.table, code.step_bits, mask.view(steps, vector).repeat(length, 1),
                                code.backend)
        codes[start:stop] = chosen.view(-1, steps)
        decoded[start:stop] = viterbi.replay(chosen, code.table, code.step_bits).view(-1, steps * vector) * code.step
    return codes.t(), decoded[:, :rows]


def _batches(columns: int, chain: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(first column, end, columns in a chain): `count` whole chains at a time, then the rest as one shorter chain."""
    whole = columns // chain * chain
    for start in range(0, whole, chain * count):
        yield start, min(whole, start + chain * count), chain
    if whole < columns:
        yield whole, columns, columns - whole


def _choose_rotation(matrix: torch.Tensor, rms: torch.Tensor, spec: TrellisSpec, channels: int, sign: torch.Tensor,
                     backend: str | None) -> int:
    """Block of the rotation: as the spec wants it, or the largest that fits where a sample gains, or 0."""
    blocks = _blocks(spec, channels)
    if len(blocks) == 1:
        return blocks[0]
    errors = _sample_errors(matrix, rms, spec, blocks, sign, backend)
    return blocks[1] if errors[blocks[1]] < WORTH_ROTATING * errors[0] else 0


def _choose_feedback(matrix, rms, spec, channels, sign, backend, gram: Gram) -> tuple[int, Feedback]:
    """Block of the rotation and the feedback behind it: what a sample loses times what the gram makes of it is least.

    A rotation evens out the pivots, whose mean is what an error costs (design: 0.0379 without, 0.0242 with it).
    """
    blocks, size = _blocks(spec, channels), gram.blocks.shape[1]

    def feedback(block: int, damping: float | None = None) -> Feedback:
        if not block:
            return make_feedback(gram, None, damping)
        turn = sign[:size].cpu().double()
        return make_feedback(gram, lambda rows: rotate(rows, block, turn) / block**0.5, damping)

    if len(blocks) == 1:
        return blocks[0], feedback(blocks[0]).to(matrix.device)
    errors = _sample_errors(matrix, rms, spec, blocks, sign, backend)
    rotated = feedback(blocks[1])
    found = {0: feedback(0, rotated.damping), blocks[1]: rotated}
    costs = {block: errors[block] * float(found[block].pivots.double().sum()) for block in blocks}
    best = blocks[1] if costs[blocks[1]] < WORTH_ROTATING * costs[0] else 0
    return best, found[best].to(matrix.device)


def _blocks(spec: TrellisSpec, channels: int) -> tuple[int, ...]:
    """The rotation the spec asks for, or (0, the largest that fits)."""
    if spec.rotation > 0 and channels % spec.rotation:
        raise PlanError(f"expected a rotation block that divides the {channels} input channels, got {spec.rotation}; "
                        f"use 0 (none) or -1 (chosen)")
    block = next((b for b in ROTATION_BLOCKS if channels % b == 0), 0)
    return (0, block) if spec.rotation < 0 and block else (max(0, spec.rotation),)


def sample_errors(matrix: torch.Tensor, spec: TrellisSpec, *, channels: int, taps: int = 1, seed: int = 0,
                  window: int = SAMPLE_WINDOW, backend: str | None = None) -> dict[int, float]:
    """Block of rotation (0 = none) -> relative squared error of a sample of matrix float32 [out_features, cols].

    Coded data-free with a table of `window` bits, behind each block the spec leaves to choose from.
    """
    rms = root_mean_square(matrix[:, None], matrix.new_ones(1, matrix.shape[1]))[:, 0]        # [out_features]
    blocks, sign = _blocks(spec, channels), signs(seed % 2**32, channels, matrix.device).repeat(taps)
    rows, columns = _sample(matrix.shape, max(blocks) or 1)
    energy = float(matrix[rows][:, columns].double().square().sum())
    errors = _sample_errors(matrix, rms, spec, blocks, sign, backend, window)
    return {block: error / energy if energy else 0.0 for block, error in errors.items()}


def sample_rows(count: int) -> torch.Tensor:
    """Numbers of the rows out of so many that a sample looks at, int64 [at most SAMPLE_ROWS], evenly spread."""
    return torch.arange(min(count, SAMPLE_ROWS)) * count // min(count, SAMPLE_ROWS)


def coding_error(targets: torch.Tensor, spec: TrellisSpec, window: int, scale: float = 1.0) -> float:
    """Mean squared error of coding targets float32 [out_features, columns] as they are, with scales of `scale`."""
    code = _make_code(spec, window, None)
    columns, live = (targets / scale).t().contiguous(), torch.ones(len(targets), dtype=torch.bool)
    _, decoded = _code_columns(columns, live, code, chain_columns(*targets.shape, code))
    return float((columns - decoded).double().square().mean()) * scale**2


def _sample_errors(matrix, rms, spec, blocks, sign, backend, window: int = SAMPLE_WINDOW) -> dict[int, float]:
    """Squared error of a sample of the weights behind each block of rotation."""
    block = max(blocks) or 1
    code = _make_code(spec, window, backend)
    rows, columns = _sample(matrix.shape, block)
    rows, columns = rows.to(matrix.device), columns.to(matrix.device)
    some, scale = matrix[rows][:, columns], rms[rows]
    errors = {}
    for candidate in blocks:
        targets = _targets(some, scale, candidate, sign[columns])
        _, decoded = _code_columns(targets, scale > 0, code, chain_columns(*some.shape, code))
        errors[candidate] = float(((targets - decoded).square().sum(0) * scale.square()).sum())
    return errors


def _sample(shape: tuple[int, int], block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and whole blocks of columns, evenly spread, SAMPLE_WEIGHTS together at most (one block at least)."""
    rows = sample_rows(shape[0])
    blocks = shape[1] // block
    count = min(blocks, max(1, SAMPLE_WEIGHTS // (block * len(rows))))
    first = torch.arange(count) * blocks // count * block                                     # [count]
    return rows, (first[:, None] + torch.arange(block)).reshape(-1)
