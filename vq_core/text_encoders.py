"""Which tensors a file stores for a source: CLIP-G's fused q/k/v are coded apart, everything else one to one.

CLIP-L stands under HF names in SDXL files already. CLIP-G stands under OpenCLIP names; it is stored under the HF names
that ComfyUI's converter (clip_text_transformers_convert) would give it, which that converter then passes unchanged.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from .arch import Layer, clip_names, coding_order, make_layer
from .keymap import KeyMap, PrefixTable
from .plan import PARTS

# Where an OpenCLIP encoder can stand: embedders.1 in SDXL, embedders.0 in the refiner.
OPENCLIP_PREFIXES = ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.")
HF_INSIDE = "transformer."                 # the stored key is prefix + this + HF's name


@dataclass(frozen=True)
class Item:
    """One tensor a file stores and where it comes from: some rows of a source tensor, perhaps transposed."""

    layer: Layer                           # under its stored key, with its stored shape
    source_key: str
    rows: tuple[int, int] | None = None    # None = all
    transpose: bool = False

    def load(self, source) -> torch.Tensor:
        """The tensor in the source's dtype -> [*layer.shape]"""
        return self._cut(source.load(self.source_key))

    def load_float(self, source) -> torch.Tensor:
        """The tensor in float32, checked for NaN and infinity -> [*layer.shape]"""
        return self._cut(source.load_float(self.source_key))

    def _cut(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.rows is not None:
            tensor = tensor[self.rows[0]:self.rows[1]]
        return tensor.t().contiguous() if self.transpose else tensor.contiguous()


def stored_items(source, layers: list[Layer]) -> list[Item]:
    """What is stored for `layers` (from arch.layers(source)), in coding order."""
    items, names = [], {}
    for prefix, keys in _openclip_encoders(layers).items():
        names.update(dict.fromkeys(keys, _hf_names(prefix, keys)))
    for layer in layers:
        table = names.get(layer.key)
        items += [Item(layer, layer.key)] if table is None else _converted(layer, table)
    return sorted(items, key=lambda item: coding_order(item.layer))


def is_kept(item: Item, parts) -> bool:
    """Whether a file with these of plan.PARTS stores it; what belongs to none of them always is."""
    part = "te" if item.layer.component in ("te1", "te2") else item.layer.component
    return part in parts or part not in PARTS


def stored_keymap(source) -> KeyMap:
    """The key map of the file made from `source`: its own naming (UNet-only files) and CLIP-G's."""
    keymap = source.keymap
    for prefix, keys in _openclip_encoders(source.keys()).items():
        keymap = keymap + _openclip_keymap(prefix, keys, source.shape)
    return keymap


@dataclass(frozen=True)
class _Names:
    """One OpenCLIP encoder's names."""

    prefix: str
    table: PrefixTable

    def hf(self, key: str) -> str:
        return self.prefix + HF_INSIDE + self.table.apply(key[len(self.prefix):])


def _openclip_encoders(entries) -> dict[str, list[str]]:
    """prefix -> keys of each encoder that stands under OpenCLIP names."""
    keys = [getattr(entry, "key", entry) for entry in entries]
    found = {prefix: [key for key in keys if key.startswith(prefix)] for prefix in OPENCLIP_PREFIXES}
    return {prefix: own for prefix, own in found.items() if clip_names.is_openclip(k[len(prefix):] for k in own)}


def _hf_names(prefix: str, keys: list[str]) -> _Names:
    return _Names(prefix, PrefixTable(clip_names.pairs(key[len(prefix):] for key in keys)))


def _converted(layer: Layer, names: _Names) -> list[Item]:
    """The stored items of one tensor of an OpenCLIP encoder."""
    short, (rows, *_) = layer.key[len(names.prefix):], (*layer.shape, 0)
    parts = clip_names.split_names(short)
    if parts is not None and rows and rows % 3 == 0:
        third, shape = rows // 3, (rows // 3, *layer.shape[1:])
        return [Item(make_layer(names.prefix + HF_INSIDE + part, shape), layer.key, (i * third, (i + 1) * third))
                for i, part in enumerate(parts)]
    if short == clip_names.PROJECTION[0] and len(layer.shape) == 2:
        key = names.prefix + HF_INSIDE + clip_names.PROJECTION[1]
        return [Item(make_layer(key, layer.shape[::-1]), layer.key, None, True)]
    if names.table.apply(short) == short:
        return [Item(layer, layer.key)]
    return [Item(make_layer(names.hf(layer.key), layer.shape), layer.key)]


def _openclip_keymap(prefix: str, keys: list[str], shape) -> KeyMap:
    inside = prefix + HF_INSIDE
    pairs = clip_names.pairs(key[len(prefix):] for key in keys)
    concat, transpose = {}, {}
    for key in keys:
        parts = clip_names.split_names(key[len(prefix):])
        if parts is not None and shape(key)[0] and shape(key)[0] % 3 == 0:
            concat[key] = tuple(inside + part for part in parts)
        elif key == prefix + clip_names.PROJECTION[0] and len(shape(key)) == 2:
            transpose[key] = inside + clip_names.PROJECTION[1]
    return KeyMap(tuple((inside + hf, prefix + openclip) for openclip, hf in pairs), concat, transpose)
