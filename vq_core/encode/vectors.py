"""Rows of a matrix as weighted vectors for additive and product codes, and the last steps both share."""
from __future__ import annotations

import torch

from ...kernels.packing import pack_codes
from ...kernels.parts import AdditivePart, Scales
from ..gram import inner
from . import scales as sc
from .kmeans import spread_sample

WEIGHTS_AT_ONCE = 2**19                    # 2 MiB of float32


def row_chunks(rows: int, cols: int):
    """Ranges of rows of about WEIGHTS_AT_ONCE weights."""
    size = max(1, WEIGHTS_AT_ONCE // max(1, cols))
    return [slice(i, min(rows, i + size)) for i in range(0, rows, size)]


def row_scales(matrix: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row: float32 [out_features], exactly 0 for rows of zeros."""
    mask = sc.group_mask(matrix.shape[1], 0, matrix.device)
    return torch.cat([sc.root_mean_square(sc.split_groups(matrix[rows], 0), mask)[:, 0]
                      for rows in row_chunks(*matrix.shape)])


def normalized(rows: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """Rows [n, cols] over their scales [n] -> vectors [n, P, group], zero padded."""
    return sc.split_groups(sc.divide(rows[:, None], scales[:, None])[:, 0], group)


def shares(scales: torch.Tensor) -> torch.Tensor:
    """What a unit of normalized squared error in each row costs: its scale squared, the largest being 1."""
    top = scales.max()
    return (scales / top).square() if top > 0 else torch.zeros_like(scales)


def sample_vectors(matrix: torch.Tensor, scales: torch.Tensor, group: int, limit: int):
    """At most `limit` vectors spread evenly over the matrix -> vectors [n, group] and their weights [n]."""
    rows, cols = matrix.shape
    per_row = -(-cols // group)
    chosen = spread_sample(rows * per_row, limit).to(matrix.device)
    row, col = chosen // per_row, (chosen % per_row)[:, None] * group + torch.arange(group, device=matrix.device)
    values = torch.where(col < cols, matrix[row[:, None], col.clamp(max=cols - 1)], 0.0)    # [n, group]
    return sc.divide(values[:, None], scales[row][:, None])[:, 0], shares(scales)[row]


def decode_rows(books: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Sum of entries: books [blocks, M, K, group], codes [n, P, M] -> [n, P, group]."""
    blocks, num_codebooks, size, group = books.shape
    n, positions, _ = codes.shape
    block = torch.arange(positions, device=codes.device) * blocks // positions      # [P]
    total = torch.zeros(n * positions, group, dtype=books.dtype, device=books.device)
    for m in range(num_codebooks):
        cells = (codes[:, :, m].long() + block * size).view(-1)
        total += books[:, m].reshape(blocks * size, group).index_select(0, cells)
    return total.view(n, positions, group)


def stored_part(matrix: torch.Tensor, alive: torch.Tensor, books: torch.Tensor, codes: torch.Tensor, channels: int,
                taps: int, bits: int, gram: torch.Tensor | None = None) -> AdditivePart:
    """Round the books to int16, fit row scales to the rounded books, pack the codes.

    alive: bool [out_features], False for rows that must decode to zero. codes: uint8 [out_features, P, M].
    gram: float32 [n, size, size] the scales are fitted with, maybe padded with zeros; None = the identity.
    """
    out_features, cols = matrix.shape
    gram = gram[:, :cols, :cols] if gram is not None else None
    integers, _ = sc.to_integers(books)
    exact = integers.to(matrix.device, torch.float32)
    scales, packed = [], []
    for rows in row_chunks(out_features, cols):
        decoded = decode_rows(exact, codes[rows]).flatten(1)[:, :cols]
        scales.append(_fitted(matrix[rows], decoded, gram))
        packed.append(pack_codes(codes[rows].flatten(1).to(torch.int32), bits).cpu())
    half, gain = sc.to_half(torch.where(alive, torch.cat(scales), 0.0), 1.0)
    return AdditivePart(out_features, channels, taps, bits, books.shape[3], torch.cat(packed), integers,
                        Scales(gain, row=half))


def _fitted(targets, decoded, gram):
    """Least-squares factor of each row, the error seen through a gram if there is one."""
    if gram is None:
        return sc.refit(targets, decoded)
    energy = inner(decoded, decoded, gram)
    return (inner(targets, decoded, gram) / torch.where(energy > 0, energy, 1.0)).float()
