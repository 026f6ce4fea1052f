"""additive: groups of 8 weights as sums of M entries of 256 (VQDM 1.2, AQLM): k-means, beam search, refits."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...kernels.parts import AdditivePart
from ..errors import PlanError
from ..gram import Gram
from ..progress import Progress
from ..spec import AdditiveSpec
from .alternate import alternate, start
from .beams import beam_search
from .feedback import one_thread
from .kmeans import fit, nearest
from .order import by_channel
from .vectors import decode_rows, normalized, row_chunks, row_scales, sample_vectors, shares, stored_part

RIDGE = 1e-3                               # pull towards the old books, in average entries: keeps unused entries


@dataclass(frozen=True)
class Effort:
    """How long to search. Rounds alternate beam search and least-squares books on the sample."""

    sample: int                            # vectors the books are trained on
    iterations: int                        # of k-means, per book
    rounds: int
    beam: int                              # 1 = greedy
    passes: int = 1                        # over all vectors, each followed by least-squares books
    sweeps: int = 3                        # with a gram: most beam searches over the whole layer


# Gaussian 1280 x 1280, error over 4^-bits at 2 / 3 bits, weights/s of one busy CPU thread at 3 bits:
# fast 1.68 / 2.28, 1.2 M; normal 1.54 / 1.86, 0.5 M; beam 2 with half the sample 1.62 / 2.07, 1.0 M; twice the rounds
# 1.53 / 1.83, 0.36 M; beam 8 1.50 / 1.74, 0.2 M. Plain residual k-means in sample: 1.66 / 2.22.
EFFORTS = {"fast": Effort(2**15, 8, 0, 1, sweeps=1), "normal": Effort(2**15, 5, 2, 4),
           "best": Effort(2**18, 12, 12, 8, sweeps=1000)}


def encode_additive(matrix: torch.Tensor, spec: AdditiveSpec, *, channels: int, taps: int, seed: int = 0, device=None,
                    progress: Progress | None = None, effort: str | Effort = "normal",
                    gram: Gram | None = None) -> AdditivePart:
    """Code float32 [out_features, cols]; columns are padded to whole groups with zeros.

    spec.conv_group "kernel": of convolutions the taps of one channel are a group, columns are coded channel by channel.
    Books are trained on an even sample of vectors over row scales, all vectors are coded, then books and row scales
    are refitted by least squares to everything. effort: "fast", "normal", "best" or an Effort. gram: of the layer's
    inputs; from the trained books on codes, books and scales are then chosen by the outputs (alternate.py).
    Deterministic for a seed. Raises PlanError for an unknown effort.
    """
    effort = _effort(effort)
    if spec.num_codebooks == 1:            # cheap to search, so learn longer: Gaussian 1.306 -> 1.285
        effort = replace(effort, sample=4 * effort.sample, iterations=6 * effort.iterations, passes=effort.passes + 1)
    matrix, order, group = matrix.to(device or "cpu", torch.float32), None, spec.group
    if spec.by_channel(taps):
        order, group = by_channel(channels, taps), taps
        matrix = matrix[:, order.to(matrix.device)]
    scales = row_scales(matrix)                                                     # [out_features]
    vectors, weights = sample_vectors(matrix, scales, group, effort.sample)
    books = train(vectors, weights, spec, effort, seed)                             # [M, 256, group]
    if gram is not None:
        found = _with_gram(matrix, scales, books, gram, effort, seed, progress, channels, taps, order)
    else:
        for _ in range(effort.passes):
            codes, books = _code_all(matrix, scales, books, effort.beam, progress)
        found = stored_part(matrix, scales > 0, books[None], codes, channels, taps, 8)
    return found if order is None else replace(found, order=1)


def _with_gram(matrix, scales, books, gram, effort, seed, progress, channels, taps, order):
    with one_thread():
        coded = start(matrix, scales, books[None], gram, effort.beam, order)
        coded = alternate(coded, effort.sweeps, effort.beam, seed, progress)
        return stored_part(matrix, scales > 0, coded.books, coded.codes.to(torch.uint8), channels, taps, 8, coded.gram)


def train(vectors: torch.Tensor, weights: torch.Tensor, spec: AdditiveSpec, effort: Effort, seed: int) -> torch.Tensor:
    """Books [M, 256, g] for vectors [n, g] of weights [n]; no round makes the weighted error larger."""
    books = residual_books(vectors, weights, spec, effort.iterations, seed)
    if effort.rounds == 0:
        return books
    codes = beam_search(vectors, books, effort.beam)
    for _ in range(effort.rounds):
        books = refit_books(vectors, weights, codes, books)
        codes = improved(vectors, books, codes, beam_search(vectors, books, effort.beam))
    return refit_books(vectors, weights, codes, books)


def residual_books(vectors: torch.Tensor, weights: torch.Tensor, spec: AdditiveSpec, iterations: int,
                   seed: int) -> torch.Tensor:
    """Greedy start: each book is k-means of what the books before it leave -> [M, 256, g]."""
    rest, books = vectors[None], []                                                 # [1, n, 8]
    for m in range(spec.num_codebooks):
        book = fit(rest, weights[None], spec.codebook_size, iterations, seed + m)   # [1, 256, 8]
        rest = rest - book[0][nearest(rest, book)]
        books.append(book[0])
    return torch.stack(books)


def improved(vectors: torch.Tensor, books: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The better of two codes [n, M] for each vector: a beam may lose the path it took last time."""
    error = [(vectors - decode_rows(books[None], codes[:, None])[:, 0]).square_().sum(1) for codes in (old, new)]
    return torch.where((error[1] < error[0])[:, None], new, old)


class NormalEquations:
    """Least-squares books for given codes, gathered chunk by chunk on the CPU in float64 (M * K unknowns)."""

    def __init__(self, num_codebooks: int, size: int, group: int):
        self.shape = (num_codebooks, size, group)
        self.pairs = torch.zeros(num_codebooks, num_codebooks, size * size, dtype=torch.float64)
        self.right = torch.zeros(num_codebooks * size, group, dtype=torch.float64)

    def add(self, vectors: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor) -> None:
        """vectors [n, g], weights [n], codes [n, M]"""
        num_codebooks, size, _ = self.shape
        weights, codes = weights.cpu().double(), codes.cpu().long()
        weighted = vectors.cpu().double() * weights[:, None]
        for i in range(num_codebooks):
            self.right.index_add_(0, codes[:, i] + i * size, weighted)
            for j in range(i, num_codebooks):
                self.pairs[i, j] += torch.bincount(codes[:, i] * size + codes[:, j], weights, size * size)

    def solve(self, books: torch.Tensor) -> torch.Tensor:
        """-> [M, K, g]; entries that no vector uses stay as they are in `books`."""
        num_codebooks, size, group = self.shape
        blocks = self.pairs.view(num_codebooks, num_codebooks, size, size)
        normal = blocks.permute(0, 2, 1, 3).reshape(num_codebooks * size, num_codebooks * size).triu()
        normal = normal + normal.triu(1).T
        ridge = RIDGE * float(normal.diagonal().mean()) or 1.0
        normal.diagonal().add_(ridge)
        old = books.cpu().double().view(num_codebooks * size, group)
        solved = torch.cholesky_solve(self.right + ridge * old, torch.linalg.cholesky(normal))
        return solved.to(books.device, torch.float32).view(self.shape)


def refit_books(vectors: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """Least-squares books [M, K, g] for codes [n, M] of vectors [n, g]."""
    equations = NormalEquations(*books.shape)
    equations.add(vectors, weights, codes)
    return equations.solve(books)


def _code_all(matrix, scales, books, beam, progress):
    """-> codes uint8 [out_features, P, M] and the books refitted to all of them."""
    equations, coded, weights = NormalEquations(*books.shape), [], shares(scales)
    for rows in row_chunks(*matrix.shape):
        vectors = normalized(matrix[rows], scales[rows], books.shape[2])            # [n, P, 8]
        flat = vectors.flatten(0, 1)
        codes = beam_search(flat, books, beam)
        equations.add(flat, weights[rows].repeat_interleave(vectors.shape[1]), codes)
        coded.append(codes.to(torch.uint8).view(len(vectors), -1, len(books)))
        if progress is not None:
            progress.check()
    return torch.cat(coded), equations.solve(books)


def _effort(effort: str | Effort) -> Effort:
    if isinstance(effort, Effort):
        return effort
    if effort not in EFFORTS:
        raise PlanError(f"effort must be one of {', '.join(EFFORTS)}, got '{effort}'")
    return EFFORTS[effort]
