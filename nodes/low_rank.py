"""Which of the host's patches are side products of a Linear layer: plain LoRA and LoKr, and nothing in doubt."""
from __future__ import annotations

import torch

from ..vq_core.low_rank import Kron, LowRank, Term
from . import host


def terms_of(patches: list, shape: tuple[int, ...]) -> tuple[Term, ...] | None:
    """Patches of the host's form for a weight of this shape as side products, in order; None where one is none.

    Refused, for the decoded weight alone has what they need: DoRA (norms of the weight), a middle or reshaped weight, a
    part of a weight (offset), functions on what is added, weights scaled by a merge, shapes that do not fit (which the
    host logs), every other kind.
    """
    terms = [_term(*patch[:5]) for patch in patches]
    if len(shape) != 2 or any(term is None or not term.fits or term.shape != tuple(shape) for term in terms):
        return None
    return tuple(terms)


def _term(strength, value, strength_model, offset, function) -> Term | None:
    if strength_model != 1.0 or offset is not None or function is not None:
        return None
    make = {host.LoRAAdapter: _lora, host.LoKrAdapter: _lokr}.get(type(value))
    return None if make is None else make(strength, value.weights)


def _lora(strength, weights) -> LowRank | None:
    up, down, alpha, middle, dora_scale, reshape = weights
    if not _all_none(middle, dora_scale, reshape) or not _plain(up, down):
        return None
    up, down = up.flatten(1), down.flatten(1)                                       # [out, rank], [rank, in]
    return LowRank(up, down, float(strength * (1.0 if alpha is None else alpha / down.shape[0])))


def _lokr(strength, weights) -> Kron | None:
    first, second, alpha, first_a, first_b, second_a, second_b, middle, dora_scale = weights
    if not _all_none(middle, dora_scale):
        return None
    seconds, rank = ((second_a, second_b), None) if second is None else ((second,), None)
    if first is None:
        if not _plain(first_a, first_b) or first_a.shape[1] != first_b.shape[0]:
            return None
        first, rank = first_a.float() @ first_b.float(), first_b.shape[0]           # [a, b]
    if not _plain(first, *seconds):
        return None
    rank = seconds[1].shape[0] if len(seconds) == 2 else rank
    scale = alpha / rank if alpha is not None and rank is not None else 1.0
    return Kron(first, seconds, float(strength * scale))


def _all_none(*values) -> bool:
    return all(value is None for value in values)


def _plain(*tensors) -> bool:
    """Whether all are ordinary matrices (a LoRA in a convolution's form is one if its kernel is 1x1)."""
    return all(isinstance(t, torch.Tensor) and not isinstance(t, host.QuantizedTensor) and t.is_floating_point()
               and t.dim() >= 2 and t[0].numel() == t.shape[1] for t in tensors)
