"""What keeps our layers right in the hands of code that knows nothing of them: foreign patchers, copies.

Some packs build the host's own ModelPatcher around our model. Its LoRA is then written into the layers as dense
weights: right, but as large as in the original, and left there for the next patcher. So a layer remembers what it held.
"""
from __future__ import annotations

import copy
import logging

import torch

from ..vq_core.errors import UnsupportedError
from .layout import is_coded

_LOG = logging.getLogger(__name__)
LOADED_MARK = "comfy_patched_weights"      # the host's, on layers that are on the device as a patcher wants them
_said: set[str] = set()


class Guarded:
    """Base of our layers."""

    def register_parameter(self, name, param):
        """Called by every assignment of a parameter: remembers the first, until it comes back."""
        self.kept = None                   # decoded from what is replaced now
        old, kept = self._parameters.get(name), self.__dict__.setdefault("originals", {})
        if old is not None and param is not None and not old.is_meta:
            if _same(kept.get(name, old), param):
                kept.pop(name, None)
            elif name not in kept:
                kept[name] = old
                if is_coded(old):
                    _say_once("another node built a model patcher of its own around a VQ model: its LoRA is written "
                              "into decoded weights, which takes the memory of the original checkpoint")
        super().register_parameter(name, param)

    def __delattr__(self, name):
        """The host takes its mark off a layer once a patcher put back what it replaced; the rest is put back now."""
        super().__delattr__(name)
        if name == LOADED_MARK:
            self.put_back()

    def put_back(self) -> None:
        """The parameters that were there first."""
        for name, original in list(self.__dict__.get("originals", {}).items()):
            setattr(self, name, original)

    @property
    def set_weight(self):
        """What the host's own patcher sets a patched weight with, where ours is coded."""
        if not is_coded(self._parameters.get("weight")):
            raise AttributeError("set_weight")
        return self._set_weight

    def _set_weight(self, weight, inplace_update=False, seed=None, return_weight=False):
        if return_weight:
            return weight
        if inplace_update:
            raise UnsupportedError("expected the patcher of the VQ loader, got one that another node built around its "
                                   "model, with a LoRA by hook: load that LoRA with a LoRA loader, before that node")
        self.weight = torch.nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)

    def __deepcopy__(self, memo):
        """A copy with blobs of its own; torch cannot copy a quantized tensor by itself."""
        for param in (*self._parameters.values(), *self.__dict__.get("originals", {}).values()):
            if param is not None and is_coded(param):
                memo[id(param)] = torch.nn.Parameter(param.detach().clone(), requires_grad=False)
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "kept"}, memo))
        return new


def restore(model: torch.nn.Module) -> None:
    """Put back what foreign patchers replaced and did not put back themselves."""
    for module in model.modules():
        if isinstance(module, Guarded):
            module.put_back()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two parameters are one weight: the same memory, or both coded (a weight is never coded again)."""
    return (is_coded(a) and is_coded(b)) or (not is_coded(a) and not is_coded(b) and a.data_ptr() == b.data_ptr())


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _LOG.warning("VQ: %s", text)
