"""Adapters at work: y = s_out * (W (s_in * x)) + b, so codes, kernels and LoRA stay as they are.

Scales are diagonal, so those of several adapters multiply, in any order. What W is - decoded, kept, fused, with LoRA -
does not matter: the scales go around all of it, a LoRA is inside them.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..container import Reader
from ..errors import FormatError
from .file import Adapter, base_id, check_base
from .noise_levels import experts_of
from .scaling import LayerScales


class Stack:
    """Adapters with their strengths; what they are for the samples of a call, by their noise.

    strength: of the logarithms, so that -1 undoes 1; an adapter with 0 is left out.
    """

    def __init__(self, adapters: Sequence[tuple[Adapter, float]]):
        self.adapters = tuple((adapter, strength) for adapter, strength in adapters if strength)
        self._made: dict = {}              # experts of each adapter, device, dtype -> layer -> its scales

    def scales(self, sigmas: torch.Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, LayerScales]:
        """Key of a weight -> its scales for samples with this noise [n], where and in what they are computed with."""
        if not self.adapters:
            return {}
        each = list(zip(*(experts_of(sigmas, adapter.boundaries) for adapter, _ in self.adapters), strict=True))
        lines = sorted(set(each))
        if len(lines) == 1:
            return self._line(lines[0], device, dtype)
        rows = torch.tensor([lines.index(one) for one in each], device=device)
        made = (tuple(lines), device, dtype)
        if made not in self._made:
            self._made[made] = _joined([self._line(line, device, dtype) for line in lines])
        return {key: LayerScales(found.out, found.into, rows) for key, found in self._made[made].items()}

    def _line(self, experts: tuple[int, ...], device, dtype) -> dict[str, LayerScales]:
        made = (experts, device, dtype)
        if made not in self._made:
            keys = dict.fromkeys(key for adapter, _ in self.adapters for key in adapter.layers)
            self._made[made] = {key: LayerScales(_multiplied(self.adapters, experts, key, 0, device, dtype),
                                                 _multiplied(self.adapters, experts, key, 1, device, dtype), None)
                                for key in keys}
        return self._made[made]


def _multiplied(adapters, experts: tuple[int, ...], key: str, side: int, device, dtype) -> torch.Tensor | None:
    """Of all adapters that scale this side of a layer [1, channels]; None where none of them does."""
    logs = [strength * adapter.layers[key][side][expert:expert + 1].float()
            for (adapter, strength), expert in zip(adapters, experts, strict=True)
            if key in adapter.layers and adapter.layers[key][side] is not None]
    return sum(logs).exp().to(device, dtype) if logs else None


def _joined(lines: Sequence[dict[str, LayerScales]]) -> dict[str, LayerScales]:
    """Scales of several lines -> of all of them together [lines, channels]"""
    def join(sides) -> torch.Tensor | None:
        return None if sides[0] is None else torch.cat(sides)
    return {key: LayerScales(join([line[key].out for line in lines]), join([line[key].into for line in lines]), None)
            for key in lines[0]}


def check_fits(adapter: Adapter, reader: Reader, path: Path) -> None:
    """FormatError where an adapter's file `path` belongs to another base, or its shapes are not the base's."""
    check_base(adapter, base_id(reader), path.name, reader.path.name)
    coded = frozenset(reader.coded_keys())
    for key, (out, into) in adapter.layers.items():
        shape = reader.layout(key).shape if key in coded else None
        if shape is None or out.shape[1] != shape[0] or (into is not None and into.shape[1] != shape[1]):
            raise FormatError(f"the adapter '{path.name}' has scales for '{key:.120}', and the coded weight of "
                              f"'{reader.path.name}' is {'absent' if shape is None else list(shape)}: use another copy "
                              f"of the adapter")
