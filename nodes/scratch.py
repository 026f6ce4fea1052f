"""The memory one call needs to decode a weight, in the host's estimate of what a sampling takes.

The host asks the model itself, not its patcher; it counts activations only. Without this a large picture on a small
card runs out of memory in the first layer that is large.
"""
from __future__ import annotations

import functools

from ..vq_core import cost_model
from .layout import is_coded
from .ops import Coded


def decode_scratch(model) -> int:
    """Bytes for the largest weight, as `vqpack doctor FILE` prints them; 0 where no weight is coded."""
    weights = (m.weight for m in model.modules() if isinstance(m, Coded) and is_coded(m.weight))
    return max((cost_model.decode_scratch(weight.numel(), weight.dtype.itemsize) for weight in weights), default=0)


def count_scratch(model) -> None:
    """Make `model.memory_required` count it, whoever asks; doing it twice changes nothing."""
    scratch = decode_scratch(model)
    if scratch and not hasattr(model, "vq_scratch"):
        model.vq_scratch = scratch
        model.__class__ = _counting(type(model))


@functools.cache
def _counting(kind: type) -> type:
    """A model class that differs from `kind` in its estimate alone."""
    def memory_required(self, *args, **kwargs):
        return kind.memory_required(self, *args, **kwargs) + self.vq_scratch
    return type(kind.__name__, (kind,), {"memory_required": memory_required, "__module__": kind.__module__})
