"""What training needs to know of a part: which book or table entry each weight came from, and sums over entries.

Decoding is linear in the entries: integers[n, col] = entry of its code. So the gradient of an entry is the sum of the
gradients of the integers it made. Rotation is its own transpose but for the order of signs and sums (rotation.rotate).
"""
from __future__ import annotations

import torch

from .decode_torch import CPU_CHUNK, DEVICE_CHUNK, _word_pairs, row_chunks
from .packing import UNIT_STEPS, unpack_codes
from .parts import AdditivePart, LutPart, Part, TrellisPart
from .rotation import rotate, signs


def unrotated_gradient(gradient: torch.Tensor, part: Part) -> torch.Tensor:
    """Gradient of the rotated integers, float32 [rows, cols] -> that of the integers before rotation."""
    if not part.rotation:
        return gradient
    return rotate(gradient, part.rotation, signs(part.rotation_seed, part.channels, gradient.device), part.taps)


def entry_sums(gradient: torch.Tensor, part: Part) -> torch.Tensor:
    """Sums of a gradient of the (unrotated) integers, float32 [out_features, cols], over the entries they came from.

    -> float32, shaped like the part's table, values or codebooks. Uniform codes have no entries: ValueError.
    """
    if isinstance(part, TrellisPart):
        return _trellis_sums(gradient, part)
    if isinstance(part, AdditivePart):
        return _additive_sums(gradient, part)
    if part.values is None:
        raise ValueError("uniform codes have no entries whose gradient could be summed")
    return _lut_sums(gradient, part)


def trellis_states(part: TrellisPart, low: int, high: int) -> torch.Tensor:
    """Table entry of each step of the units low..high -> int64 [(high - low) * 32, cols]."""
    pairs = _word_pairs(part, low, high)                                    # int64 [units, B, cols]
    units, _, cols = pairs.shape
    states = torch.empty(units, UNIT_STEPS, cols, dtype=torch.int64, device=pairs.device)
    for step in range(UNIT_STEPS):
        end = (step + 1) * part.step_bits
        word = (end - 1) // 32
        torch.bitwise_right_shift(pairs[:, word], 32 * (word + 1) - end, out=states[:, step])
    return states.bitwise_and_(2**part.window - 1).view(units * UNIT_STEPS, cols)


def grouped(matrix: torch.Tensor, part: AdditivePart) -> torch.Tensor:
    """Columns in the order they are coded, cut into groups: [rows, cols] -> [rows, groups, group], zero padded."""
    rows, cols = matrix.shape
    groups = -(-cols // part.group)
    if part.order:                                          # codes run over (channel, tap)
        matrix = matrix.view(rows, part.taps, -1).transpose(1, 2).reshape(rows, cols)
    return torch.nn.functional.pad(matrix, (0, groups * part.group - cols)).view(rows, groups, part.group)


def ungrouped(vectors: torch.Tensor, part: AdditivePart) -> torch.Tensor:
    """Inverse of grouped: [rows, groups, group] -> [rows, cols]."""
    rows, cols = len(vectors), part.channels * part.taps
    matrix = vectors.reshape(rows, -1)[:, :cols]
    if part.order:
        matrix = matrix.view(rows, part.channels, part.taps).transpose(1, 2).reshape(rows, cols)
    return matrix.contiguous()


def book_of_groups(part: AdditivePart) -> torch.Tensor:
    """Block of books that each group of columns uses, int64 [groups]."""
    groups = -(-part.channels * part.taps // part.group)
    return torch.arange(groups, device=part.codes.device) * part.codebooks.shape[0] // groups


def book_ranges(part: AdditivePart) -> list[tuple[int, int, int, int]]:
    """(block of books, first group of columns, end, columns of each group), in order.

    A last group that is padded stands alone: only its real columns should count.
    """
    sizes = torch.bincount(book_of_groups(part), minlength=part.codebooks.shape[0]).tolist()
    cols, found, first = part.channels * part.taps, [], 0
    for block, size in enumerate(sizes):
        whole = min(first + size, cols // part.group)
        if whole > first:
            found.append((block, first, whole, part.group))
        if first + size > whole:
            found.append((block, whole, first + size, cols % part.group))
        first += size
    return found


def _trellis_sums(gradient: torch.Tensor, part: TrellisPart) -> torch.Tensor:
    rows, cols = gradient.shape
    unit = UNIT_STEPS * part.vector
    sums = gradient.new_zeros(part.vector, 2**part.window)                 # [vector, entries]
    for low, high in row_chunks(part, 0, rows):
        states = trellis_states(part, low // unit, -(-high // unit))
        some = gradient[low:high]
        missing = states.shape[0] * part.vector - some.shape[0]            # rows that decode to nothing
        if missing:
            some = torch.cat([some, some.new_zeros(missing, cols)])
        for lane in range(part.vector):
            sums[lane].index_add_(0, states.view(-1), some[lane::part.vector].reshape(-1))
    return sums.t().contiguous()                                           # [entries, vector]


def _lut_sums(gradient: torch.Tensor, part: LutPart) -> torch.Tensor:
    cols = part.channels * part.taps
    sums = gradient.new_zeros(2**part.bits)
    for low, high in _chunks(gradient):
        codes = unpack_codes(part.codes[low:high], part.bits, cols)        # int32 [rows, cols]
        sums.index_add_(0, codes.reshape(-1), gradient[low:high].reshape(-1))
    return sums


def _additive_sums(gradient: torch.Tensor, part: AdditivePart) -> torch.Tensor:
    blocks, num_codebooks, size, group = part.codebooks.shape
    gradient = grouped(gradient, part)                                                       # [rows, groups, g]
    groups = gradient.shape[1]
    book = book_of_groups(part)[:, None] * num_codebooks + torch.arange(num_codebooks, device=gradient.device)
    sums = gradient.new_zeros(blocks * num_codebooks * 2**part.bits, group)
    for low, high in _chunks(gradient):
        codes = unpack_codes(part.codes[low:high], part.bits, groups * num_codebooks).to(torch.int64)
        entries = codes.view(-1, groups, num_codebooks) + book * 2**part.bits                # [rows, groups, M]
        for m in range(num_codebooks):
            sums.index_add_(0, entries[:, :, m].reshape(-1), gradient[low:high].reshape(-1, group))
    return sums.view(blocks, num_codebooks, 2**part.bits, group)[:, :, :size].contiguous()


def _chunks(gradient: torch.Tensor):
    """Ranges of rows of about as many weights as decoding takes at once."""
    most = CPU_CHUNK if gradient.device.type == "cpu" else DEVICE_CHUNK
    step = max(1, most // max(1, gradient[0].numel()))
    return ((low, min(low + step, len(gradient))) for low in range(0, len(gradient), step))
