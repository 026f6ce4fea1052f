"""Owns beam search over the entries of several books: the best partial sums survive each book."""
from __future__ import annotations

import torch

from .kmeans import SCORE_BUDGET, argmax


def beam_search(vectors: torch.Tensor, books: torch.Tensor, beam: int) -> torch.Tensor:
    """Codes int64 [n, M] of vectors [n, g]; the `beam` best partial sums survive each book [M, K, g]."""
    chunk = max(1, SCORE_BUDGET // (beam * books.shape[1]))
    return torch.cat([_beam_chunk(part, books, beam) for part in vectors.split(chunk)])


def _beam_chunk(vectors, books, beam):
    n, g = vectors.shape
    rest = vectors[:, None]                                                         # [n, beam, g]
    codes = torch.zeros(n, 1, 0, dtype=torch.int64, device=vectors.device)          # [n, beam, m]
    for m, book in enumerate(books):
        width, size = rest.shape[1], len(book)
        head = torch.cat([rest, rest.square().sum(-1, keepdim=True).mul_(-0.5), rest.new_ones(n, width, 1)], 2)
        tail = torch.cat([book, book.new_ones(size, 1), book.square().sum(1, keepdim=True).mul_(-0.5)], 1)
        scores = (head.view(n * width, g + 2) @ tail.T).view(n, width * size)       # -|rest - entry|^2 / 2
        best = top(scores, min(beam, width * size) if m + 1 < len(books) else 1)   # [n, beam]
        parent, code = best // size, best % size
        codes = torch.cat([codes.gather(1, parent[..., None].expand(-1, -1, m)), code[..., None]], 2)
        rest = rest.gather(1, parent[..., None].expand(-1, -1, g)) - book[code]
    return codes[:, 0]


def top(scores, count):
    """Positions of the `count` largest in each row of [n, k]; overwrites scores (8 argmax passes beat topk 5 times)."""
    if scores.device.type != "cpu":
        return scores.topk(count, 1).indices
    picks = [argmax(scores)[:, None]]
    while len(picks) < count:
        scores.scatter_(1, picks[-1], -torch.inf)
        picks.append(argmax(scores)[:, None])
    return torch.cat(picks, 1)
