"""A model's state dict for code that computes with what it finds there: difference control nets, LoRA extraction."""
from __future__ import annotations

from collections.abc import ItemsView, ValuesView

import torch


class DenseView(dict):
    """key -> tensor. A coded weight is decoded, with its LoRA where the model is loaded with it, when it is looked up.

    Underneath stand the stored bytes, which no code that knows nothing of them could use.
    """

    def __init__(self, state_dict: dict[str, torch.Tensor], patcher):
        super().__init__(state_dict)
        self._patcher = patcher

    def __getitem__(self, key: str) -> torch.Tensor:
        stored = super().__getitem__(key)
        return self._patcher.loaded_weight(key) if self._patcher.coded_module(key) is not None else stored

    def get(self, key: str, default=None):
        """As a dict's."""
        return self[key] if key in self else default

    def items(self) -> ItemsView:
        """As a dict's; decodes one at a time."""
        return ItemsView(self)

    def values(self) -> ValuesView:
        """As a dict's; decodes one at a time."""
        return ValuesView(self)
