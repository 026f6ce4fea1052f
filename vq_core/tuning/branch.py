"""The first low-rank branches: what coding lost, as far as a product of small matrices can give it back.

E = W - decoded. Outputs see E through the gram G of the inputs, so |(E - up @ down) G^(1/2)| is made small: with the
singular values of E G^(1/2) = P S Q, up = P S^(1/2) and down = S^(1/2) Q G^(-1/2), of the largest `rank` of them
(Eckart and Young 1936; LQER, arXiv 2402.02446, for the weighted form).
"""
from __future__ import annotations

import torch

from ..calibration.file import Calibration
from ..decompress import decode_tensor
from ..encode import to_matrix
from ..gram import Gram
from ..progress import Progress
from .masters import Branch
from .student import Student

# Of the mean diagonal of a gram, added to it: directions that few inputs had must not blow up G^(-1/2).
DAMPING = 0.01


def add_branches(student: Student, original, rank: int, calibration: Calibration | None, progress: Progress) -> None:
    """Give every coded layer that has none a branch of `rank` (or as much as its shape allows).

    original: opened reader of its weights; calibration: grams of the layers' inputs, None = all directions alike.
    """
    progress.start("low-rank branches", sum(layer.coded.numel for layer in student.layers.values()))
    for key, layer in student.layers.items():
        if layer.branch is None:
            weight = layer.coded
            lost = decode_tensor(original, key).float() - weight.decode(torch.float32, device="cpu")
            gram = None if calibration is None else calibration.gram(key)
            matrix = to_matrix(lost, 0, lost.shape[1]).to(weight.device)
            layer.branch = Branch(*low_rank(matrix, min(rank, *matrix.shape), gram))
        progress.advance(layer.coded.numel, key)
    student.prepare()
    progress.finish()


def low_rank(error: torch.Tensor, rank: int, gram: Gram | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [out, cols] -> down [rank, cols] and up [out, rank], the best for inputs with this gram."""
    root, inverse = (None, None) if gram is None else _roots(gram, error)
    seen = error if root is None else _times(error, root)
    left, values, right = torch.linalg.svd(seen.double(), full_matrices=False)
    half = values[:rank].sqrt()
    up, down = left[:, :rank] * half, half[:, None] * right[:rank]
    down = down.float() if inverse is None else _times(down.float(), inverse)
    return down, up.float()


def _roots(gram: Gram, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Square roots of the (damped) gram and of its inverse, [blocks, size, size]."""
    blocks = gram.all_inputs().to(like.device)
    mean = blocks.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-30)
    values, vectors = torch.linalg.eigh(blocks + DAMPING * mean * torch.eye(blocks.shape[1], device=like.device))
    values = values.clamp(min=float(DAMPING * mean) / 10)[:, None].sqrt()
    return (vectors * values @ vectors.mT).float(), (vectors / values @ vectors.mT).float()


def _times(matrix: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """[rows, n * size] times a block-diagonal matrix [n, size, size]."""
    n, size, _ = blocks.shape
    return (matrix.view(-1, n, size).transpose(0, 1) @ blocks).transpose(0, 1).reshape(len(matrix), -1)
