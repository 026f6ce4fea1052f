"""Owns codes and books for a layer's gram: alternates least-squares books with beam search over codes (VQDM's recipe).

A layer is W ≈ s Q: s [rows] row scales, Q the sum of entries `codes` [rows, P, M] choose from `books`
[blocks, M, K, g]; position p of P uses block p * blocks // P (product codes; additive: one block). The loss is
tr(D G Dᵀ), D = W - s Q. VQDM: Egiazarian et al., arXiv 2409.00492, section 3; its parent AQLM, arXiv 2401.06118.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..gram import Gram, inner, output_error
from ..progress import Progress
from .beams import top
from .order import feedback_in_order
from .vectors import decode_rows

TOLERANCE = 0.01                           # a round that gains less is the last (VQDM's)
WINDOW = 256                               # columns searched with one set of beams; at their end the best beam stays
WORKING_SET = 2**19                        # floats of the beams of one chunk of rows: 2 MiB stay in the cache
SOLVER_STEPS = 12                          # conjugate-gradient steps of one refit of the books
SOLVED = 1e-9                              # of the first squared gradient: float32 gets no further
LEAST_MASS = 1e-6                          # added to the preconditioner: entries that nothing uses stay as they are


@dataclass(frozen=True)
class Coded:
    """One layer in the middle of coding."""

    matrix: torch.Tensor                   # float32 [rows, P * g], padded with zeros
    gram: torch.Tensor                     # float32 [n, size, size], n * size = P * g, damped
    scales: torch.Tensor                   # float32 [rows]
    books: torch.Tensor                    # float32 [blocks, M, K, g]
    codes: torch.Tensor                    # int64 [rows, P, M]

    def sums(self) -> torch.Tensor:
        """Q, [rows, P * g]"""
        return decode_rows(self.books, self.codes).flatten(1)

    def lost(self) -> torch.Tensor:
        """D = W - s Q, [rows, P * g]"""
        return self.matrix - self.scales[:, None] * self.sums()

    def loss(self) -> float:
        """tr(D G Dᵀ)"""
        return float(output_error(self.lost(), self.gram).sum())

    def block_of(self, position: int) -> int:
        """Which books a position uses."""
        return position * self.books.shape[0] // self.codes.shape[1]


def start(matrix: torch.Tensor, scales: torch.Tensor, books: torch.Tensor, gram: Gram, beam: int,
          order: torch.Tensor | None = None) -> Coded:
    """First codes for books [blocks, M, K, g] over row scales: groups left to right, each corrects the later ones.

    matrix: float32 [rows, cols]. The gram is damped as feedback.make_feedback chooses. order: where the matrix' columns
    stand in the gram, as order.by_channel gives it; None = in the same place.
    """
    rows, cols = matrix.shape
    group = books.shape[3]
    feedback = feedback_in_order(gram, order).to(matrix.device)
    blocks, forward, pivots = feedback.gram, feedback.forward, feedback.pivots
    if blocks.shape[1] % group:            # groups would reach across blocks, or beyond the last column
        positions = -(-cols // group)
        missing = positions * group - cols
        matrix = torch.nn.functional.pad(matrix, (0, missing))
        blocks, forward = (torch.nn.functional.pad(torch.block_diag(*b), (0, missing, 0, missing))[None]
                           for b in (blocks, forward))
        pivots = torch.nn.functional.pad(pivots.reshape(1, -1), (0, missing), value=1.0)
    roots = (forward + torch.eye(forward.shape[1], device=forward.device)) * pivots.sqrt()[:, None]
    codes = torch.zeros(rows, matrix.shape[1] // group, books.shape[1], dtype=torch.int64, device=matrix.device)
    coded = Coded(matrix, blocks, scales, books, codes)
    return replace(coded, codes=_left_to_right(coded, roots, beam))


def alternate(coded: Coded, rounds: int, beam: int, seed: int, progress: Progress | None = None) -> Coded:
    """Refit scales and books, search codes, until a round gains less than TOLERANCE; the loss never rises."""
    generator, best = torch.Generator().manual_seed(seed), coded.loss()
    for _ in range(rounds):
        coded = sweep(refit_books(refit_scales(coded)), beam, generator, progress)
        loss, previous = coded.loss(), best
        best = min(best, loss)
        if loss > (1 - TOLERANCE) * previous:
            break
    return refit_scales(refit_books(refit_scales(coded)))


def refit_scales(coded: Coded) -> Coded:
    """Row scales of least loss for the codes: <W, Q> / <Q, Q>; a row that decodes to nothing keeps its own."""
    sums = coded.sums()
    energy = inner(sums, sums, coded.gram)                                          # [rows]
    fitted = inner(coded.matrix, sums, coded.gram) / torch.where(energy > 0, energy, 1.0)
    return replace(coded, scales=torch.where((energy > 0) & (coded.scales > 0), fitted.float(), coded.scales))


def refit_books(coded: Coded, steps: int = SOLVER_STEPS) -> Coded:
    """Books of least loss for codes and scales, by preconditioned conjugate gradients from the books that are there.

    VQDM takes 100 steps of Adam here; the problem is quadratic, and only the gram is needed.
    """
    solver = _Books(coded)
    books = coded.books.clone()
    rest = solver.gather(coded.lost())                                              # minus half the gradient
    preconditioned = solver.precondition(rest)
    direction, energy = preconditioned, float((rest * preconditioned).sum(dtype=torch.float64))
    enough = SOLVED * energy
    for _ in range(steps):
        if energy <= enough:
            break
        curved = solver.gather(coded.scales[:, None] * decode_rows(direction, coded.codes).flatten(1))
        curvature = float((direction * curved).sum(dtype=torch.float64))
        if curvature <= 0:
            break
        books += energy / curvature * direction
        rest = rest - energy / curvature * curved
        preconditioned = solver.precondition(rest)
        energy, previous = float((rest * preconditioned).sum(dtype=torch.float64)), energy
        direction = preconditioned + energy / previous * direction
    found = replace(coded, books=books)
    return found if found.loss() <= coded.loss() else coded


class _Books:
    """The normal equations of the books: what an error of the layer says about each entry, and their block diagonal."""

    def __init__(self, coded: Coded):
        blocks, self.books, size, group = coded.books.shape
        rows, positions, _ = coded.codes.shape
        self.coded, self.shape = coded, coded.books.shape
        block = torch.arange(positions, device=coded.codes.device) * blocks // positions
        self._cells = [(coded.codes[:, :, m] + block * size).view(-1) for m in range(self.books)]
        heavy = coded.scales.square()[:, None].expand(rows, positions).reshape(-1).double()
        place = torch.arange(positions, device=coded.codes.device) * size
        diagonal = diagonal_blocks(coded.gram, group).flatten(1).double()           # [P, g * g]
        inverse = []
        for m in range(self.books):
            mass = torch.bincount((coded.codes[:, :, m] + place).view(-1), heavy, positions * size)
            mass = mass.view(positions, size, 1) * diagonal[:, None]                # [P, K, g * g]
            summed = mass.new_zeros(blocks, size, group * group).index_add_(0, block, mass)
            inverse.append(_inverse(summed.view(-1, group, group)))
        self._inverse = torch.stack(inverse).view(self.books, blocks, size, group, group).float()

    def gather(self, lost: torch.Tensor) -> torch.Tensor:
        """[rows, P * g] -> sums over the uses of each entry of s (lost gram): [blocks, M, K, g]"""
        seen = times_gram(lost, self.coded.gram).mul_(self.coded.scales[:, None])
        blocks, books, size, group = self.shape
        seen, found = seen.view(-1, group), []
        for cells in self._cells:
            found.append(seen.new_zeros(blocks * size, group).index_add_(0, cells, seen).view(blocks, size, group))
        return torch.stack(found, 1)

    def precondition(self, rest: torch.Tensor) -> torch.Tensor:
        """Each entry's own block of the normal equations, inverted, times [blocks, M, K, g]."""
        return (self._inverse.transpose(0, 1) @ rest[..., None])[..., 0]


def _inverse(blocks: torch.Tensor) -> torch.Tensor:
    """Of float64 [n, g, g], positive semidefinite; a small share of the mean is added."""
    mean = float(blocks.diagonal(dim1=1, dim2=2).mean()) or 1.0
    eye = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
    return torch.linalg.inv(blocks + LEAST_MASS * mean * eye)


def sweep(coded: Coded, beam: int, generator: torch.Generator, progress: Progress | None = None) -> Coded:
    """One beam search over all codes, groups and books in random order; starts from the codes that are there."""
    lost, codes = coded.lost(), coded.codes.clone()
    group, size = coded.books.shape[3], coded.gram.shape[1]
    for first in range(0, coded.matrix.shape[1], size):
        order = torch.randperm(size // group, generator=generator).to(codes.device) + first // group
        for window in order.split(max(1, WINDOW // group)):
            books = torch.rand(len(window), codes.shape[2], generator=generator).argsort(1).tolist()
            _search(coded, lost, codes, window, books, beam)
            if progress is not None:
                progress.check()
    return replace(coded, codes=codes)


def _search(coded: Coded, lost: torch.Tensor, codes: torch.Tensor, window: torch.Tensor, order: list[list[int]],
            beam: int) -> None:
    """Search the codes of the positions `window` given all others; `lost` and `codes` are brought up to date."""
    group, size = coded.books.shape[3], coded.gram.shape[1]
    block, columns = int(window[0]) * group // size, _columns(window, group)
    inside = columns - block * size
    gram = coded.gram[block][:, inside]                                             # [size, w * g]
    chunk = max(1, WORKING_SET // (beam * max(len(columns), coded.books.shape[2])))
    for rows in torch.arange(len(codes)).split(chunk):
        rows = slice(int(rows[0]), int(rows[-1]) + 1)
        seen = lost[rows, block * size:(block + 1) * size] @ gram                   # [r, w * g]
        beams = _Beams(seen, codes[rows][:, window], coded.scales[rows])
        for i, position in enumerate(window.tolist()):
            here = gram[inside[i * group:(i + 1) * group]]                          # [g, w * g]
            for m in order[i]:
                beams.step(i, m, coded.books[coded.block_of(position), m], here, beam)
        codes[rows, window] = beams.codes[:, 0]
    blocks = coded.books.shape[0]
    for position in window.tolist():
        books = coded.books[position * blocks // codes.shape[1]]
        found = sum(books[m][codes[:, position, m]] for m in range(codes.shape[2]))
        here = slice(position * group, (position + 1) * group)
        lost[:, here] = coded.matrix[:, here] - coded.scales[:, None] * found


class _Beams:
    """The best partial searches of each row: what is lost so far seen through the gram, codes, loss (best first)."""

    def __init__(self, seen: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor):
        self.seen, self.codes = seen[:, None], codes[:, None]                       # [r, b, w * g], [r, b, w, M]
        self.scales, self.gain = scales[:, None, None], seen.new_zeros(len(seen), 1, 1)

    def step(self, i: int, m: int, book: torch.Tensor, gram: torch.Tensor, beam: int) -> None:
        """Choose again the entry of `book` [K, g] that the i-th group uses; gram: its rows, [g, w * g]."""
        rows, width, _ = self.seen.shape
        size, group = book.shape
        here = slice(i * group, (i + 1) * group)
        own, s = gram[:, here], self.scales
        old = book[self.codes[:, :, i, m]]                                          # [r, b, g]
        through = s * (old @ own)
        without = self.seen[..., here] + through                                    # as if the old entry were taken out
        spared = self.gain - s * (old * (without + self.seen[..., here])).sum(-1, keepdim=True)
        head = torch.cat([2 * s * without, -(s * s).expand(rows, width, 1), spared], 2)
        energy = ((book @ own) * book).sum(1, keepdim=True)
        tail = torch.cat([book, energy, torch.ones_like(energy)], 1)                # [K, g + 2]
        scores = (head.view(rows * width, group + 2) @ tail.t()).view(rows, width * size)
        best = top(scores.clone(), min(beam, width * size))                         # [r, b]
        parent, code = best // size, best % size
        self.gain = scores.gather(1, best)[..., None]
        self.seen, self.codes = _of(self.seen, parent), _of(self.codes, parent)
        change = book[code] - _of(old, parent)                                      # [r, b, g]
        self.seen = self.seen - s * (change @ gram)
        self.codes[:, :, i, m] = code


def _of(values: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """values [r, b, ...] of the beams `parent` [r, b'] of each row."""
    if values.shape[1] == 1:
        return values.expand(-1, parent.shape[1], *values.shape[2:]).clone()
    return values[torch.arange(len(values), device=values.device)[:, None], parent]


def _left_to_right(coded: Coded, roots: torch.Tensor, beam: int) -> torch.Tensor:
    """Codes [rows, P, M]; roots [n, size, size] upper triangular, roots rootsᵀ = gram."""
    from .additive import beam_search

    group, size = coded.books.shape[3], roots.shape[1]
    codes, safe = coded.codes.clone(), torch.where(coded.scales > 0, coded.scales, 1.0)[:, None]
    for block, root in enumerate(roots):
        matrix = coded.matrix[:, block * size:(block + 1) * size]
        seen = torch.zeros_like(matrix)    # errors so far, times roots
        for start in range(0, size, group):
            here, position = slice(start, start + group), (block * size + start) // group
            own = root[here, here]                                                  # [g, g]
            wanted = (matrix[:, here] @ own + seen[:, here]) / safe                 # [rows, g], seen through own
            books = coded.books[coded.block_of(position)]                           # [M, K, g]
            found = beam_search(wanted, books @ own, beam)                          # [rows, M]
            codes[:, position] = found
            value = sum(books[m][found[:, m]] for m in range(len(books)))
            lost = matrix[:, here] - coded.scales[:, None] * value
            seen[:, start + group:] += lost @ root[here, start + group:]
    return codes


def diagonal_blocks(gram: torch.Tensor, group: int) -> torch.Tensor:
    """[n, size, size] -> the gram of each group of columns, [n * size / group, group, group]"""
    n, size, _ = gram.shape
    cut = gram.view(n, size // group, group, size // group, group)
    return cut.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, group, group)


def times_gram(values: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """[rows, n * size] times a block-diagonal gram [n, size, size]"""
    n, size, _ = gram.shape
    out = values.view(-1, n, size).transpose(0, 1) @ gram                           # [n, rows, size]
    return out.transpose(0, 1).reshape(len(values), n * size)


def _columns(positions: torch.Tensor, group: int) -> torch.Tensor:
    return (positions[:, None] * group + torch.arange(group, device=positions.device)).flatten()
