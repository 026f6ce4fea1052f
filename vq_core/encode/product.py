"""product: the book is chosen by position (DPQ 2.2); blocks of positions share books, so that books stay cheap."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...kernels.parts import AdditivePart
from ..gram import Gram
from ..progress import Progress
from ..spec import ProductSpec
from .alternate import alternate, start
from .feedback import one_thread
from .kmeans import cluster_sums, fit, nearest, spread_sample
from .merging import merge
from .vectors import normalized, row_chunks, row_scales, shares, stored_part

ENTRY_BITS = 16                            # of one number in a stored book
ITERATIONS = 6                             # of k-means; 10: error 2 % lower at 2 and 3 bits, two thirds of the speed
SAMPLES_PER_ENTRY = 128                    # vectors per book entry in training
BEAM, SWEEPS = 4, 2                        # with a gram: of the search over codes


@dataclass(frozen=True)
class Layout:
    """How positions share books: position p of P uses block p * blocks // P."""

    blocks: int
    bits: int                              # of one code
    group: int
    positions: int

    @property
    def codebook_size(self) -> int:
        """Entries of one book."""
        return 2**self.bits

    def members(self, device=None) -> tuple[torch.Tensor, torch.Tensor]:
        """-> positions of each block [blocks, most], short blocks filled with their last; bool, True where real."""
        first = torch.tensor([-(-b * self.positions // self.blocks) for b in range(self.blocks + 1)], device=device)
        offset = torch.arange(int((first[1:] - first[:-1]).max()), device=device)   # [most]
        real = offset < (first[1:] - first[:-1])[:, None]
        return torch.minimum(first[:-1, None] + offset, first[1:, None] - 1), real


def plan_layout(out_features: int, cols: int, spec: ProductSpec) -> Layout:
    """As many blocks as spec.max_codebook_bits pays for; if not even one, narrower codes until one fits (1 bit least).

    A book costs codebook_size * group * 16 bits; the limit counts bits per weight of the layer.
    """
    positions = -(-cols // spec.group)
    budget = spec.max_codebook_bits * out_features * cols
    bits = spec.codebook_size.bit_length() - 1
    while bits > 1 and 2**bits * spec.group * ENTRY_BITS > budget:
        bits -= 1
    blocks = int(budget // (2**bits * spec.group * ENTRY_BITS))
    return Layout(max(1, min(positions, blocks)), bits, spec.group, positions)


def encode_product(matrix: torch.Tensor, spec: ProductSpec, *, channels: int, taps: int, seed: int = 0, device=None,
                   progress: Progress | None = None, gram: Gram | None = None) -> AdditivePart:
    """Code float32 [out_features, cols]: k-means of the sub-vectors of each block of positions, over row scales.

    Codes all vectors, moves the books to the means of all their vectors, refits row scales. gram: of the layer's
    inputs; from the trained books on codes, books and scales are then chosen by the outputs (alternate.py).
    spec.merging "usage" or "ward": books of single positions, merged until those of a block fit one book, instead of
    k-means of the whole block. Deterministic for a seed.
    """
    matrix = matrix.to(device or "cpu", torch.float32)
    layout = plan_layout(*matrix.shape, spec)
    scales = row_scales(matrix)                                                     # [out_features]
    books = train(matrix, scales, layout, seed) if spec.merging == "none" else \
        merged_books(matrix, scales, layout, seed, spec.merging)                    # [blocks, K, group]
    if gram is not None:
        return _with_gram(matrix, scales, books, gram, layout.bits, seed, progress, channels, taps)
    codes, books = _code_all(matrix, scales, books, layout, progress)
    return stored_part(matrix, scales > 0, books[:, None], codes, channels, taps, layout.bits)


def _with_gram(matrix, scales, books, gram, bits, seed, progress, channels, taps):
    with one_thread():
        coded = start(matrix, scales, books[:, None], gram, BEAM)
        coded = alternate(coded, SWEEPS, BEAM, seed, progress)
        return stored_part(matrix, scales > 0, coded.books, coded.codes.to(torch.uint8), channels, taps, bits,
                           coded.gram)


def train(matrix: torch.Tensor, scales: torch.Tensor, layout: Layout, seed: int) -> torch.Tensor:
    """Books [blocks, K, group] from evenly spread rows."""
    members, real = layout.members(matrix.device)
    limit = max(1, SAMPLES_PER_ENTRY * layout.codebook_size // members.shape[1])
    rows = spread_sample(matrix.shape[0], limit).to(matrix.device)
    points, weights = _block_points(matrix[rows], scales[rows], shares(scales)[rows], layout, members, real)
    return fit(points, weights, layout.codebook_size, ITERATIONS, seed)


def merged_books(matrix: torch.Tensor, scales: torch.Tensor, layout: Layout, seed: int, merging: str) -> torch.Tensor:
    """Books [blocks, K, group]: k-means of every position by itself, then a block's entries merged down to one book."""
    alone, books = replace(layout, blocks=layout.positions), []
    entries = train(matrix, scales, alone, seed)                                    # [P, K, group]
    points = normalized(matrix, scales, layout.group).transpose(0, 1)               # [P, out_features, group]
    weights = shares(scales)[None].expand(layout.positions, -1)
    _, counts = cluster_sums(points, weights, nearest(points, entries), layout.codebook_size)
    members, real = layout.members(matrix.device)
    for chosen, there in zip(members, real, strict=True):
        mine = chosen[there]
        books.append(merge(entries[mine].flatten(0, 1), counts[mine].flatten(), layout.codebook_size, merging))
    return torch.stack(books)


def _code_all(matrix, scales, books, layout, progress):
    """-> codes uint8 [out_features, P, 1] and the books as means of everything coded with them."""
    members, real = layout.members(matrix.device)
    totals, mass, coded = torch.zeros_like(books), torch.zeros_like(books[..., 0]), []
    for rows in row_chunks(*matrix.shape):
        points, weights = _block_points(matrix[rows], scales[rows], shares(scales)[rows], layout, members, real)
        codes = nearest(points, books)                                              # [blocks, n * most]
        added, heavier = cluster_sums(points, weights, codes, layout.codebook_size)
        totals, mass = totals + added, mass + heavier
        by_row = codes.view(layout.blocks, -1, members.shape[1]).transpose(0, 1)    # [n, blocks, most]
        coded.append(by_row[:, real].to(torch.uint8)[..., None])                    # positions are in order
        if progress is not None:
            progress.check()
    used = (mass > 0)[..., None]
    return torch.cat(coded), torch.where(used, totals / torch.where(used, mass[..., None], 1.0), books)


def _block_points(rows, scales, share, layout, members, real):
    """Rows [n, cols] -> points [blocks, n * most, group] and weights [blocks, n * most], 0 for fillers."""
    vectors = normalized(rows, scales, layout.group)[:, members]                    # [n, blocks, most, group]
    points = vectors.permute(1, 0, 2, 3).reshape(layout.blocks, -1, layout.group)
    weights = (real[:, None] * share[None, :, None]).reshape(layout.blocks, -1)     # [blocks, n * most]
    return points, weights
