"""A model in memory as a source: nothing is read before it is asked for, one tensor at a time.

Whoever has the model (the ComfyUI nodes) gives for each tensor its shape, its dtype and a function that makes it.
"""
from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from .arch import UNET_PREFIX
from .errors import FormatError
from .progress import Progress
from .safetensors_io import Entry, dtype_name
from .source import Contents, Origin, Source
from .source_folder import VAE_PREFIX, clip_g_origins

CLIP_L_PREFIX = "conditioner.embedders.0."
POSITION_IDS = CLIP_L_PREFIX + "transformer.text_model.embeddings.position_ids"      # as in every published SDXL file


@dataclass(frozen=True)
class Made:
    """One tensor that is made when it is needed: `make()` -> [*shape] of dtype, on the CPU, in memory of its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]


class Tensors:
    """Stands in an Origin where a SafetensorsFile stands otherwise. One tensor is made at a time: workers wait."""

    def __init__(self, made: Mapping[str, Made]):
        self._made, self._lock = made, threading.Lock()

    def entry(self, name: str) -> Entry:
        """Shape and dtype, as the header of a file would tell them."""
        made = self._made[name]
        return Entry(name, dtype_name(made.dtype), tuple(made.shape), 0, prod(made.shape) * made.dtype.itemsize)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor itself; FormatError where it is not what was announced."""
        made = self._made[name]
        with self._lock:
            tensor = made.make()
        if tuple(tensor.shape) != tuple(made.shape) or tensor.dtype != made.dtype:
            raise FormatError(f"'{name:.120}' of the model changed while it was read: expected {made.dtype} "
                              f"{list(made.shape)}, got {tensor.dtype} {list(tensor.shape)}; run again")
        return tensor


@dataclass(frozen=True)
class Model:
    """A model's tensors by component, under the names inside it.

    unet and vae: LDM names; clip_l and clip_g: HF names as in "text_model.encoder.layers.0.mlp.fc1.weight".
    markers: whole tensors under their LDM keys (prediction markers); metadata: texts for the header.
    """

    unet: Mapping[str, Made]
    clip_l: Mapping[str, Made] = field(default_factory=dict)
    clip_g: Mapping[str, Made] = field(default_factory=dict)
    vae: Mapping[str, Made] = field(default_factory=dict)
    markers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


class ModelSource(Source):
    """A Source whose tensors stand in no file. `name` is what it is called, `folder` where results go by default."""

    def __init__(self, model: Model, name: str, folder: Path):
        super().__init__(Contents(Path(folder) / name, (), _origins(model), model.metadata, constants=model.markers))
        self.stem = name
        self.bytes = sum(prod(self.shape(key)) * self.dtype(key).itemsize for key in self.keys())

    def identity(self, progress: Progress | None = None) -> dict:
        """-> `vqpack.source` of the result; "kind" says that it is no file"""
        return {**super().identity(progress), "kind": "model"}

    def sha256(self, progress: Progress | None = None) -> str:
        """SHA-256 of the list of its tensors, sorted by key: key, dtype, shape and SHA-256 of each (docs/format.md)."""
        if progress is not None:
            progress.start("reading the model", self.bytes, self.name)
        lines = []
        for key in sorted(self.keys()):
            tensor = self.load(key).contiguous().reshape(-1)
            digest = hashlib.sha256(tensor.view(torch.uint8).numpy() if tensor.numel() else b"").hexdigest()
            shape = ",".join(map(str, self.shape(key)))
            lines.append(f"{key} {dtype_name(tensor.dtype)} [{shape}] {digest}")
            if progress is not None:
                progress.advance(tensor.nbytes, key)
        if progress is not None:
            progress.finish()
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _origins(model: Model) -> dict[str, Origin]:
    origins = _plain(model.unet, UNET_PREFIX)
    origins.update(_plain(model.clip_l, CLIP_L_PREFIX + "transformer."))
    if model.clip_l:
        ids = Made((1, 77), torch.int64, lambda: torch.arange(77).view(1, 77))
        origins[POSITION_IDS] = Origin(((Tensors({"ids": ids}), "ids"),), ids.shape, "I64")
    found = dict.fromkeys(model.clip_g, Tensors(model.clip_g))
    origins.update(clip_g_origins(found, 1 if model.clip_l else 0))
    origins.update(_plain(model.vae, VAE_PREFIX))
    return origins


def _plain(made: Mapping[str, Made], prefix: str) -> dict[str, Origin]:
    store = Tensors(made)
    return {prefix + name: Origin(((store, name),), tuple(one.shape), dtype_name(one.dtype))
            for name, one in made.items()}
