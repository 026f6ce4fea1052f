"""Owns coding vectors anew for given books: the nearest entry, or a small beam search where several are summed."""
from __future__ import annotations

import torch

from .additive import improved
from .beams import beam_search
from .kmeans import SCORE_BUDGET, nearest

BEAM = 4                                   # as additive codes of normal effort


def assign(vectors: torch.Tensor, books: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Codes int64 [n, M] of vectors [n, g] for books [M, K, g].

    One book: the nearest entry, the first of equals. Several: what a beam finds, or `old` [n, M] where that is as good.
    """
    if len(books) == 1:
        return nearest(vectors[None], books)[0][:, None]
    padded = torch.nn.functional.pad(books, (0, 0, 0, 1))              # a code without an entry decodes to zero
    return improved(vectors, padded, old.clamp(max=books.shape[1]), beam_search(vectors, books, BEAM))


def nearest_entries(vectors: torch.Tensor, book: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each vector [n, g] the nearest `count` entries of one book [K, g] -> int64 and distances, [n, count]."""
    chunks = vectors.split(max(1, SCORE_BUDGET // len(book)))
    found = [torch.cdist(some, book, compute_mode="donot_use_mm_for_euclid_dist").topk(count, 1, largest=False)
             for some in chunks]
    return torch.cat([some.indices for some in found]), torch.cat([some.values for some in found])
