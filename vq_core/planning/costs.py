"""What each spec of each layer would do to the predicted noise, from a sample of its weights and its gram.

Coding every layer at every rate would take ten times as long as coding them once. With error feedback, column k of row
o is coded with a squared error rms_o^2 e_k, which the gram then shapes (encode/feedback.py), so that the damage is

    sum_o s_o * E[D_o G D_o^T]  =  sum_o s_o rms_o^2 * sum_k e_k (T G T^T)_kk,      T = (I + A)^-1.

e_k follows from the relative error of the code, measured on a sample of the layer's own weights, and from how far the
corrections enlarge column k (response.py). Without a gram errors stay as they are: sum_o v_o |D_o|^2,
v_o = s_o tr G / columns. How near this comes: docs/plan.md.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...kernels.dispatch import decode_part
from ...kernels.rotation import rotate, signs
from ..arch import Layer
from ..calibration.file import Calibration
from ..encode import encoder_for, to_matrix
from ..encode.feedback import make_feedback, one_thread, rule_of_damping
from ..encode.trellis import WORTH_ROTATING, sample_errors
from ..gram import Gram
from ..spec import Spec, TrellisSpec
from .response import Response, response

SAMPLE_WEIGHTS = 1 << 15                   # whole rows, for scalar codes
LEAST_ROWS = 8
LAZY, ROUNDS = 64, 12
# Real over predicted damage of calibrated codes of few bits: geometric mean of nine testbed layers (docs/plan.md).
UNDERRATED = {1: 1.27, 1.5: 1.16, 2: 1.07}
MOST_CHOSEN = 768                          # columns up to which damping is chosen as the encoder does, by 9 factorings
KEPT_SHAPES = 4                            # factored grams in memory: layers with one input come one after the other


@dataclass(frozen=True)
class LayerCosts:
    """One layer: costs of its specs, in squared noise, and how its errors count there (sensitivity.py)."""

    costs: tuple[float, ...]
    factor: float


class Costs:
    """Predicts the damage of specs, layer by layer.

    calibration: grams and, unless `factors` are given, sensitivities. factors: layer key -> factor. Where neither says
    anything of a layer, `guess(layer, squares)` gives its factor; squares: sum of its squared weights.
    """

    def __init__(self, specs: Sequence[Spec], guess: Callable[[Layer, float], float],
                 calibration: Calibration | None = None, factors: Mapping[str, float] | None = None, seed: int = 0):
        self.specs, self.guess, self.calibration, self.factors, self.seed = specs, guess, calibration, factors, seed
        self._grams: OrderedDict[int, Seen | None] = OrderedDict()
        self._shapes: OrderedDict[tuple, Shape] = OrderedDict()

    def of(self, layer: Layer, weight: torch.Tensor) -> LayerCosts:
        """Costs of one layer. weight: float32 [out, in] or [out, in, kh, kw]."""
        with one_thread():
            seen, costs, start = self._gram(layer.key), np.zeros(len(self.specs)), 0
            values = self._row_values(layer, weight, seen)
            for channels in layer.splits or (weight.shape[1],):
                costs += self._part(layer, weight, (start, start + channels), values, seen)
                start += channels
        squares = weight.double().square().flatten(1).sum(1)
        total = float(squares.sum())
        return LayerCosts(tuple(costs.tolist()), float((values * squares).sum()) / total if total else 0.0)

    def _gram(self, key: str) -> Seen | None:
        entry = self.calibration.layers.get(key) if self.calibration is not None else None
        if entry is None or entry.group is None:
            return None
        return _recent(self._grams, entry.group, lambda: _seen(self.calibration.gram(key), entry.group), 2)

    def _row_values(self, layer: Layer, weight: torch.Tensor, seen: Seen | None) -> torch.Tensor:
        """v_o: what a squared error of 1, spread evenly over row o, costs; float64 [out]."""
        rows = weight.shape[0]
        if self.factors is not None:
            return torch.full((rows,), float(self.factors[layer.key]), dtype=torch.float64)
        known = self.calibration.sensitivity(layer.key) if seen is not None else None
        if known is not None:
            return known.double() * seen.mean
        guessed = self.guess(layer, float(weight.double().square().sum()))
        return torch.full((rows,), guessed, dtype=torch.float64)

    def _part(self, layer: Layer, weight: torch.Tensor, edge: tuple[int, int], values: torch.Tensor,
              seen: Seen | None) -> np.ndarray:
        """Costs of some input channels -> float64 [specs]"""
        matrix, costs = to_matrix(weight, *edge), []
        worth = float((values * matrix.double().square().sum(1)).sum())             # of losing everything
        squares = _ColumnSquares(matrix, layer.taps, self.seed)
        for spec in self.specs:
            if spec.kind == "dense" or worth == 0:
                costs.append(0.0)
                continue
            errors = self._sample(matrix, spec, layer.taps)
            if seen is not None:
                scale = UNDERRATED.get(spec.bits, 1.0) / seen.mean
                errors = {block: scale * self._shape(layer, edge, block, seen).error(squares[block], error,
                                                                                     response(spec))
                          for block, error in errors.items()}
            costs.append(worth * errors[_chosen(errors)])
        return np.asarray(costs)

    def _sample(self, matrix: torch.Tensor, spec: Spec, taps: int) -> dict[int, float]:
        """Rotation -> relative squared error of a sample, as if coded like the whole."""
        if not isinstance(spec, TrellisSpec):
            return {0: _scalar_error(matrix, spec)}
        gain = response(spec).gain
        found = sample_errors(matrix, spec, channels=matrix.shape[1] // taps, taps=taps, seed=self.seed)
        return {block: gain * error for block, error in found.items()}

    def _shape(self, layer: Layer, edge: tuple[int, int], block: int, seen: Seen) -> Shape:
        key = (seen.group, edge, layer.taps, block)
        return _recent(self._shapes, key, lambda: make_shape(seen.gram.split(*edge, layer.shape[1]), block,
                                                             edge[1] - edge[0], self.seed), KEPT_SHAPES)


@dataclass(frozen=True)
class Seen:
    """A layer's inputs. group: number of the gram in its file; mean: of its diagonal."""

    gram: Gram
    group: int
    mean: float


@dataclass(frozen=True)
class Shape:
    """What feedback makes of errors: spread float32 [n, size, size], T_kj^2 (k < j); weight float64 [n, size]."""

    spread: np.ndarray
    weight: np.ndarray                     # (T G T^T)_kk: what an error put on column k costs

    def error(self, squares: np.ndarray, error: float, answers: Response) -> float:
        """Mean over columns of what a code with this relative error costs, in the unit of the gram's diagonal.

        squares: mean squared weight of each column over that of all, float64 [n * size]. Column j is coded at
        w_j + sum over k < j of what earlier errors ask of it, so its variance is squares_j + sum e_k T_kj^2.
        """
        n, size = self.weight.shape
        total = 0.0
        for block, wanted in enumerate(squares.reshape(n, size)):
            variance, spread = wanted.copy(), self.spread[block]
            for start in range(0, size, LAZY):
                stop = min(size, start + LAZY)
                made = np.zeros(stop - start)
                for _ in range(ROUNDS):    # a fixed point within the chunk: errors feed forward only
                    inside = variance[start:stop] + made @ np.triu(spread[start:stop, start:stop], 1)
                    made = error * answers.relative(inside)
                total += float((made * self.weight[block, start:stop]).sum())
                variance[stop:] += made @ spread[start:stop, stop:]
        return total / (n * size)


def make_shape(gram: Gram, block: int, channels: int, seed: int) -> Shape:
    """Factor a gram as the encoder does, behind a rotation (0 = none)."""
    size = gram.blocks.shape[1]
    turn = signs(seed % 2**32, channels).repeat(-(-size // channels))[:size].double()

    def turned(rows: torch.Tensor) -> torch.Tensor:
        return rotate(rows, block, turn) / block**0.5

    damping = None if size <= MOST_CHOSEN else rule_of_damping(gram)
    made = make_feedback(gram, turned if block else None, damping)
    blocks = gram.all_inputs()
    if block:
        blocks = torch.stack([turned(turned(b).t().contiguous()) for b in blocks])
    forward = made.forward.double()
    eye = torch.eye(size, dtype=torch.float64).expand_as(forward)
    solved = torch.linalg.solve_triangular(forward + eye, eye, upper=True, unitriangular=True)
    weight = ((solved @ blocks) * solved).sum(2)
    return Shape(solved.square().float().numpy(), weight.clamp(min=0).numpy())


class _ColumnSquares(dict):
    """Block of rotation -> mean square of each column of the row-normalized matrix behind it; their mean is 1."""

    def __init__(self, matrix: torch.Tensor, taps: int, seed: int):
        super().__init__()
        self._matrix, self._taps, self._seed = matrix, taps, seed

    def __missing__(self, block: int) -> np.ndarray:
        rms = self._matrix.double().square().mean(1).sqrt()
        scaled = self._matrix / torch.where(rms > 0, rms, 1.0)[:, None].float()
        if block:
            turn = signs(self._seed % 2**32, scaled.shape[1] // self._taps).repeat(self._taps)
            scaled = rotate(scaled, block, turn) / block**0.5
        squares = scaled.double().square().mean(0)
        self[block] = (squares / squares.mean()).numpy()
        return self[block]


def _recent(kept: OrderedDict, key, make: Callable, most: int):
    """A value made once and kept as long as it is among the last used."""
    if key not in kept:
        while len(kept) >= most:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]


def _seen(gram: Gram | None, group: int) -> Seen | None:
    mean = 0.0 if gram is None else float(gram.all_inputs().diagonal(dim1=1, dim2=2).mean())
    return Seen(gram, group, mean) if mean > 0 else None


def sampled_error(rows: torch.Tensor, spec: Spec, splits: Sequence[int] = (), seed: int = 0) -> float:
    """Relative squared error of a weight coded data-free, from a sample; splits: as in encode_weight.

    rows: float32 [out, in] or [out, in, kh, kw], the weight or those rows of it that encode.trellis.sample_rows names.
    Costs trusts window 8 and a Gaussian's gain, for it asks of every layer at every rate; this takes the spec's window.
    """
    lost, total, start, taps = 0.0, 0.0, 0, rows[0, 0].numel()
    for channels in splits or (rows.shape[1],):
        matrix = to_matrix(rows, start, start + channels)
        energy = float(matrix.double().square().sum())
        if energy:
            lost += energy * _sampled(matrix, spec, channels, taps, seed)
        total, start = total + energy, start + channels
    return lost / total if total else 0.0


def _sampled(matrix: torch.Tensor, spec: Spec, channels: int, taps: int, seed: int) -> float:
    if not isinstance(spec, TrellisSpec):
        return _scalar_error(matrix, spec)
    errors = sample_errors(matrix, spec, channels=channels, taps=taps, seed=seed)
    block = _chosen(errors)
    fixed = replace(spec, rotation=block)
    return sample_errors(matrix, fixed, channels=channels, taps=taps, seed=seed, window=spec.window)[block]


def _chosen(errors: Mapping[int, float]) -> int:
    """The block of rotation that the encoder would choose."""
    rotated = next((block for block in errors if block), None)
    if 0 not in errors or rotated is None:
        return next(iter(errors))
    return rotated if errors[rotated] < WORTH_ROTATING * errors[0] else 0


def _scalar_error(matrix: torch.Tensor, spec: Spec) -> float:
    """Relative squared error of a palette or uniform code, from evenly spread whole rows."""
    count = min(len(matrix), max(LEAST_ROWS, SAMPLE_WEIGHTS // matrix.shape[1]))
    rows = matrix[torch.arange(count) * len(matrix) // count].contiguous()          # [count, cols]
    energy = float(rows.double().square().sum())
    if not energy:
        return 0.0
    part = encoder_for(spec.kind)(rows, spec, channels=matrix.shape[1], taps=1)
    return float((rows - decode_part(part)).double().square().sum()) / energy
