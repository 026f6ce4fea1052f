"""The loss: squared difference of noise predictions, over the teacher's own mean square, weighed by noise level."""
from __future__ import annotations

from dataclasses import dataclass

import torch

INTERVALS = 10                             # of the levels 0 to 1000, for weights


@dataclass(frozen=True)
class Loss:
    """mean over a batch of weight(level) * |student - teacher|^2 / power.

    kind: "halves" both guidance halves alike; "guided" u + g (c - u) of the halves u (without prompt) and c; "both" the
    mean of the two, the guided one divided by the factor that independent errors of the halves get, (1 - g)^2 + g^2.
    """

    kind: str
    guidance: float
    power: float
    weights: torch.Tensor                  # [INTERVALS]

    def each(self, said: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Unweighted, of every call: said and answers [n, halves, 4, h, w] -> float32 [n]."""
        error = said.float() - answers.to(said.device)
        halves = error.square().flatten(1).mean(1) / self.power
        if self.kind == "halves" or error.shape[1] != 2:
            return halves
        g = self.guidance
        guided = ((1 - g) * error[:, 0] + g * error[:, 1]).square().flatten(1).mean(1)
        guided = guided / (self.power * ((1 - g) ** 2 + g**2))
        return guided if self.kind == "guided" else (halves + guided) / 2

    def of_levels(self, levels: torch.Tensor) -> torch.Tensor:
        """Weights of calls at these levels, [n]."""
        return self.weights[interval(levels)]


def interval(levels: torch.Tensor) -> torch.Tensor:
    """Index of each level's interval, int64 [n]."""
    return (levels * INTERVALS / 1000).long().clamp(0, INTERVALS - 1)


def relative_weights(losses: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Weights [INTERVALS] that make every interval count the same: one over its mean loss, 1 on average over the calls.

    An interval that was not seen gets the weight of the nearest one that was.
    """
    index = interval(levels)
    seen = sorted(set(index.tolist()))
    means = {i: max(float(losses[index == i].mean()), 1e-12) for i in seen}
    weights = torch.tensor([1 / means[min(seen, key=lambda i, at=at: abs(i - at))] for at in range(INTERVALS)])
    return weights / weights[index].mean()
