"""What keeps a coded layer right in the hands of code that knows nothing of it: foreign patchers, copies.

Some packs build the host's own ModelPatcher around our model. Its LoRA is then written into the layer as a dense
weight: right, but as large as in the original. The coded weight is remembered, so that our patcher finds it again.
"""
from __future__ import annotations

import copy
import logging

import torch

from .layout import is_coded

_said: set[str] = set()


class Guarded:
    """Base of the coded layers."""

    replaced: torch.nn.Parameter | None = None             # the coded weight, while something else stands in its place

    def register_parameter(self, name, param):
        """Called by every assignment of a parameter; notices when a coded weight is replaced and when it comes back."""
        if name == "weight":
            old = self._parameters.get("weight")
            if is_coded(param):
                self.__dict__["replaced"] = None           # not by `self.`: torch would make a parameter of it
            elif param is not None and is_coded(old):
                self.__dict__["replaced"] = old
                _say_once("another node built a model patcher of its own around a VQ model: its LoRA is written into "
                          "decoded weights, which takes the memory of the original checkpoint until the model is "
                          "loaded anew")
        super().register_parameter(name, param)

    def __deepcopy__(self, memo):
        """A copy with blobs of its own; torch cannot copy a quantized tensor by itself."""
        for param in (*self._parameters.values(), self.replaced):
            if param is not None and is_coded(param):
                memo[id(param)] = torch.nn.Parameter(param.detach().clone(), requires_grad=False)
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


def restore(model: torch.nn.Module) -> None:
    """Put back every coded weight that a foreign patcher replaced."""
    for module in model.modules():
        if isinstance(module, Guarded) and module.replaced is not None:
            module.weight = module.replaced


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logging.getLogger(__name__).warning("vqpack: %s", text)
