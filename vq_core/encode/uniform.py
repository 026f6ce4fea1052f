"""uniform: an integer grid with a scale and a zero point per row or group (Q-Diffusion's quantizer)."""
from __future__ import annotations

import torch

from ...kernels.packing import pack_codes
from ...kernels.parts import LutPart
from ..gram import Gram, inner
from ..progress import Progress
from ..spec import UniformSpec
from . import scales as sc
from .adaround import round_adaptively
from .feedback import code_columns, make_feedback, one_thread
from .palette import stored_scales

CHUNK = 2**17                              # weights searched at once: the passes stay in the second-level cache
COARSE, FINE, FINE_ROUNDS = 6, 2, 2        # 10 trials: within 0.4 % (8 bits: 0.9 %) of 18, and of Q-Diffusion's 80
SMALLEST_SHRINK = {1: 0.08, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6, 7: 0.7, 8: 0.8}
TOP_ZERO_POINT = 255


def encode_uniform(matrix: torch.Tensor, spec: UniformSpec, *, channels: int, taps: int, seed: int = 0, device=None,
                   progress: Progress | None = None, power: float = 2.0, gram: Gram | None = None) -> LutPart:
    """Code float32 [out_features, cols] as scale * (code - zero_point).

    power: what the search for the range minimizes, |error|^power; Q-Diffusion uses 2.4 (Li et al. 2023, 3.2).
    With power 2 the scale is refitted by least squares after coding. gram: of the layer's inputs; codes are then
    chosen again on the same grid as spec.rounding says (without a gram every rounding is to the nearest) and row scales
    refitted to the outputs. `seed` has no effect.
    """
    matrix = matrix.to(device or "cpu", torch.float32)
    mask = sc.group_mask(matrix.shape[1], spec.group_size, matrix.device)           # [groups, size]
    scales, zeros, codes = [], [], []
    for rows in matrix.split(max(1, CHUNK // max(1, matrix.shape[1]))):
        coded = _encode_rows(sc.split_groups(rows, spec.group_size), mask, spec.bits, power)
        scales.append(coded[0])
        zeros.append(coded[1])
        codes.append(pack_codes(coded[2].reshape(len(rows), -1)[:, : matrix.shape[1]].to(torch.int32), spec.bits).cpu())
        if progress is not None:
            progress.check()
    scales, zeros = torch.cat(scales), torch.cat(zeros)                             # [out_features, groups]
    if gram is not None and spec.rounding != "nearest":
        codes, scales = _code_with_gram(matrix, scales, zeros, spec, gram, progress)
        codes = [pack_codes(codes.to(torch.int32), spec.bits).cpu()]
    half, gain = sc.to_half(scales, 1.0)
    zero_points = zeros.to(torch.uint8).cpu()                                       # [out_features, groups]
    return LutPart(matrix.shape[0], channels, taps, spec.bits, torch.cat(codes), stored_scales(half, gain, spec),
                   zero_points=zero_points if spec.group_size else zero_points[:, 0].contiguous())


def _code_with_gram(matrix, scales, zeros, spec, gram, progress):
    """-> codes float32 [rows, cols] on the grid found, and its scales, refitted where a row has one."""
    with one_thread():
        feedback = make_feedback(gram).to(matrix.device)
        code = _adaround if spec.rounding in ("adaround", "block") else _gptq
        codes = code(matrix, scales, zeros, spec, feedback, progress)
        if spec.group_size:
            return codes, scales
        decoded = (codes - zeros) * scales
        energy = inner(decoded, decoded, feedback.gram)
        fit = torch.where(energy > 0, inner(matrix, decoded, feedback.gram) / energy.clamp(min=1e-300), 1)
        return codes, scales * fit[:, None].float()


def _adaround(matrix, scales, zeros, spec, feedback, progress):
    """Up or down for each weight, learned."""
    size = spec.group_size or matrix.shape[1]
    scales, zeros = (v.repeat_interleave(size, 1)[:, :matrix.shape[1]] for v in (scales, zeros))
    wanted = torch.where(scales == 0, 0.0, matrix / torch.where(scales == 0, 1.0, scales)) + zeros
    return round_adaptively(wanted, scales, 2**spec.bits - 1, feedback.gram, progress=progress)


def _gptq(matrix, scales, zeros, spec, feedback, progress):
    """Column by column with error feedback (GPTQ, arXiv 2210.17323)."""
    size, top = spec.group_size or matrix.shape[1], 2**spec.bits - 1
    codes = torch.zeros_like(matrix.t())                                            # [cols, rows]

    def code(column, wanted, _):
        if progress is not None:
            progress.check()
        scale, zero = scales[:, column // size], zeros[:, column // size]           # [rows]
        inverse = torch.where(scale == 0, 0.0, 1 / torch.where(scale == 0, 1.0, scale))
        codes[column] = (wanted * inverse + zero).round_().clamp_(0, top)
        return (codes[column] - zero) * scale

    code_columns(matrix, feedback, code)
    return codes.t().contiguous()


def _encode_rows(groups, mask, bits, power):
    """[rows, groups, size] -> scales, zero points [rows, groups], codes [rows, groups, size], all float32.

    Works on groups divided by their largest magnitude. Zero points are unsigned, so a group that lies above zero
    is coded with its sign turned and a negative scale.
    """
    peak = groups.abs().amax(-1)                                                    # [rows, groups]
    peak = torch.where(peak < sc.TINIEST_RMS, 0.0, peak)
    unit = sc.divide(groups, peak)                                                  # [rows, groups, size]
    low, high = _ends(unit, mask)
    sign = torch.where(low + high > 0, -1.0, 1.0)
    low, high = torch.where(sign < 0, -high, low), torch.where(sign < 0, -low, high)
    unit = unit * sign[..., None]
    step, zero = _search(unit, mask, low, high, bits, power)
    codes = _codes(unit, step, zero, bits)
    if power == 2:
        fitted = sc.refit(unit, (codes - zero[..., None]) * mask)
        step = torch.where(fitted > 0, fitted, step)
    return torch.where(peak == 0, 0.0, step * sign * peak), zero, codes


def _ends(unit, mask):
    """Smallest and largest weight of each group, padding left out."""
    hole = 1 - mask
    return (unit + 4 * hole).amin(-1), (unit - 4 * hole).amax(-1)


def _search(unit, mask, low, high, bits, power):
    """Scale and zero point of the best of several shrunken ranges, coarse steps first, then around the best."""
    shrink = torch.ones_like(low)
    step, zero = _grid(low, high, shrink, bits)
    best = _Best(step, zero, shrink, _error(unit, mask, step, zero, bits, power))
    width = (1 - SMALLEST_SHRINK[bits]) / COARSE
    for i in range(1, COARSE + 1):
        best.offer(unit, mask, low, high, (1 - width * i) * torch.ones_like(low), bits, power)
    for _ in range(FINE_ROUNDS):
        center, width = best.shrink.clone(), width / (FINE // 2 + 1)
        for i in range(1, FINE // 2 + 1):
            for side in (-1, 1):
                best.offer(unit, mask, low, high, center + side * i * width, bits, power)
    return best.step, best.zero


class _Best:
    """The best range of each group so far."""

    def __init__(self, step, zero, shrink, error):
        self.step, self.zero, self.shrink, self.error = step, zero, shrink, error

    def offer(self, unit, mask, low, high, shrink, bits, power):
        """Take the range shrunken by `shrink` [rows, groups] where it errs less."""
        step, zero = _grid(low, high, shrink, bits)
        error = _error(unit, mask, step, zero, bits, power)
        better = error < self.error
        self.step = torch.where(better, step, self.step)
        self.zero = torch.where(better, zero, self.zero)
        self.shrink = torch.where(better, shrink, self.shrink)
        self.error = torch.where(better, error, self.error)


def _grid(low, high, shrink, bits):
    """Scale and zero point that spread the codes over [low, high] * shrink; low <= 0 is the longer side."""
    step = torch.maximum((high - low) * shrink / (2**bits - 1), -low / TOP_ZERO_POINT)
    step = torch.where(step > 0, step, torch.ones_like(step))
    return step, (-low * shrink / step).round_().clamp_(0, TOP_ZERO_POINT)


def _codes(unit, step, zero, bits):
    return (unit * (1 / step)[..., None]).add_(zero[..., None]).round_().clamp_(0, 2**bits - 1)


def _error(unit, mask, step, zero, bits, power):
    """Sum of |error|^power of each group, [rows, groups]; padding holds zeros and is masked."""
    error = _codes(unit, step, zero, bits).sub_(zero[..., None]).mul_(step[..., None]).sub_(unit).mul_(mask)
    return error.square_().sum(-1) if power == 2 else error.abs_().pow_(power).sum(-1)
