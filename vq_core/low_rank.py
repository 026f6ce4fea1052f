"""LoRA and LoKr as side products of a Linear layer: y += s (x down^T) up^T, the weight itself is not touched.

Exact where the weight would have been changed by W += s up down: the same sum in another order, without the rounding of
W + s up down to the weight's dtype. Products accumulate in float32, as in every matmul of the layer.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import cost_model
from .cost_model import Cost


@dataclass(frozen=True, eq=False)
class LowRank:
    """scale * up @ down. Tensors of any device and floating dtype; moved to x's where they are not there."""

    up: torch.Tensor                       # [out, rank]
    down: torch.Tensor                     # [rank, in]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight it adds to."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def fits(self) -> bool:
        """Whether the two have one rank."""
        return self.up.shape[1] == self.down.shape[0]

    def add_(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """y [tokens, out] += x [tokens, in] times this."""
        hidden = x @ self.down.to(x).t()                                            # [tokens, rank]
        y.addmm_(hidden, self.up.to(x).t(), alpha=self.scale)

    def beside(self, tokens: int, itemsize: int) -> Cost:
        """Cost of add_."""
        return cost_model.lora_beside(tokens, *self.shape, self.down.shape[0], itemsize)

    def onto(self, itemsize: int) -> Cost:
        """Cost of adding it to a decoded weight instead."""
        return cost_model.lora_onto(*self.shape, self.down.shape[0], itemsize)


@dataclass(frozen=True, eq=False)
class Kron:
    """scale * kron(first, second), second a product of two where LoKr has factored it."""

    first: torch.Tensor                    # [a, b]
    second: tuple[torch.Tensor, ...]       # ([c, d],) or ([c, rank], [rank, d])
    scale: float

    @property
    def _second_shape(self) -> tuple[int, int]:
        return self.second[0].shape[0], self.second[-1].shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight it adds to."""
        (a, b), (c, d) = self.first.shape, self._second_shape
        return a * c, b * d

    @property
    def fits(self) -> bool:
        """Whether the factors have one rank."""
        return len(self.second) == 1 or self.second[0].shape[1] == self.second[1].shape[0]

    def add_(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """y [tokens, a c] += x [tokens, b d] times this: (A kron B) vec = A (vec as [b, d]) B^T."""
        hidden = x.reshape(len(x), self.first.shape[1], -1)                         # [tokens, b, d]
        for factor in reversed(self.second):
            hidden = hidden @ factor.to(x).t()                                      # [tokens, b, c]
        y.add_((self.first.to(x) @ hidden).flatten(1), alpha=self.scale)

    def beside(self, tokens: int, itemsize: int) -> Cost:
        """Cost of add_."""
        cost = cost_model.kron_beside(tokens, tuple(self.first.shape), self._second_shape, itemsize)
        if len(self.second) == 1:
            return cost
        rank = self.second[1].shape[0]     # through the rank instead of the whole of B
        rows, (c, d) = tokens * self.first.shape[1], self._second_shape
        whole = cost_model.matmul(rows, d, c, itemsize)
        parts = cost_model.matmul(rows, d, rank, itemsize) + cost_model.matmul(rows, rank, c, itemsize)
        return Cost(cost.operations - whole.operations + parts.operations, cost.traffic - whole.traffic + parts.traffic)

    def onto(self, itemsize: int) -> Cost:
        """Cost of adding it to a decoded weight instead."""
        return cost_model.kron_onto(tuple(self.first.shape), self._second_shape, itemsize)


Term = LowRank | Kron


def beside_is_cheaper(terms: Sequence[Term], tokens: int, dtype: torch.dtype, device_type: str) -> bool:
    """Whether side products on so many tokens cost less than adding all terms to a decoded weight."""
    beside = sum(term.beside(tokens, dtype.itemsize).on(device_type) for term in terms)
    return beside < sum(term.onto(dtype.itemsize).on(device_type) for term in terms)


def add_beside_(y: torch.Tensor, x: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor:
    """y [..., out], contiguous, plus the side products of x [..., in], in place -> y."""
    rows, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    for term in terms:
        term.add_(rows, inputs)
    return y
