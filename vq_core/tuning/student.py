"""The model that learns: diffusers' UNet of a vqpack file with its masters, their names, snapshots and steps."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..arch import UNET_PREFIX, unet_names
from ..container import Reader
from ..errors import UnsupportedError
from ..inspection import content_id
from ..keymap import PrefixTable
from ..layers import VQConv2d, VQLinear
from ..pipeline import load_unet
from ..table_record import table_key
from .assigned import Assigned
from .candidates import Candidates
from .coded import TunedLayer
from .groups import groups_changed
from .masters import PartMasters, Trained, TrellisTable

# What a parameter belongs to -> its learning rate is a share of a scale, or of the root mean square of a tensor.
KINDS = ("scales", "books", "tables", "latents", "shares", "branches", "biases", "norms", "dense")
SMALLEST_RMS = 1e-3                        # of a tensor of zeros: biases that start there must be able to move
_STORABLE = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Trainable:
    """One trained tensor."""

    parameter: nn.Parameter
    kind: str                              # of KINDS
    unit: float                            # what a change of 1 is to the optimizer
    stored: torch.dtype | None = None      # dense tensors: dtype in the file


class Student:
    """A vqpack file's UNet, float32, its coded layers trainable; codes change where that is asked for, and only there.

    layers: key -> coded layer; dense: key -> parameter of a tensor stored as it is; tables: id -> shared trellis table.
    """

    def __init__(self, path: str | Path, trained: Trained, device: str | torch.device = "cpu",
                 configs: str | Path | None = None):
        self.path, self.trained = Path(path), trained
        with Reader(path, mapped=False) as reader:
            coded = frozenset(reader.coded_keys())
            keys = [key for key in reader.keys() if key.startswith(UNET_PREFIX)]
            dtypes = {key: None if key in coded else reader.entry(key).torch_dtype for key in keys}
            self.content = content_id(reader)
            self.unet = load_unet(reader, torch.float32, device, "per_call", configs)
        if not any(key in coded for key in keys):
            raise UnsupportedError(f"'{self.path.name}' has no coded UNet layer: give a file of `vqpack quantize`")
        names = PrefixTable(unet_names.pairs_from_ldm(key[len(UNET_PREFIX):] for key in keys))
        modules = {key: names.apply(key[len(UNET_PREFIX):]) for key in keys}
        self.tables: dict[int, TrellisTable] = {}
        self.layers = {key: self._replace(modules[key]) for key in keys if key in coded}
        parameters = dict(self.unet.named_parameters())
        self.dense = {key: parameters[modules[key]] for key in keys if key not in coded}
        self._dtypes = dtypes
        self.prepare()

    def prepare(self) -> None:
        """Find what is trained; again after layers were given branches."""
        self.trainable = dict(self._find(self._dtypes))
        for found in self.trainable.values():
            found.parameter.requires_grad_(True)

    def _replace(self, name: str) -> TunedLayer:
        path, _, leaf = name.removesuffix(".weight").rpartition(".")
        parent = self.unet.get_submodule(path)
        old = getattr(parent, leaf)
        if not isinstance(old, VQLinear | VQConv2d):
            raise UnsupportedError(f"'{name}' of '{self.path.name}' is a coded {type(old).__name__}: tune trains "
                                   f"linear layers and convolutions")
        setattr(parent, leaf, TunedLayer(old, self.trained, self.tables))
        return getattr(parent, leaf)

    def _find(self, dtypes: Mapping[str, torch.dtype | None]) -> Iterator[tuple[str, Trainable]]:
        for key, layer in self.layers.items():
            for index, part in enumerate(layer.parts):
                for name in ("rows", "groups", "columns", "book"):
                    parameter, kind = getattr(part, name), "books" if name == "book" else "scales"
                    if parameter is not None:
                        yield f"{key}|{index}.{name}", Trainable(parameter, kind, 1.0)
                if part.assigned is not None and part.assigned.trained is not None:
                    kind = "latents" if isinstance(part.assigned, Assigned) else "shares"
                    yield f"{key}|{index}.{kind}", Trainable(part.assigned.trained, kind, 1.0)
                if part.table is not None and self.trained.tables == "layer":
                    yield f"{key}|{index}.table", Trainable(part.table.change, "tables", 1.0)
            if layer.branch is not None:
                yield f"{key}|down", Trainable(layer.branch.down, "branches", 1.0)
                yield f"{key}|up", Trainable(layer.branch.up, "branches", 1.0)
        for identity, table in self.tables.items():
            yield table_key(identity), Trainable(table.change, "tables", 1.0)
        wanted = {"biases": self.trained.biases, "norms": self.trained.norms, "dense": self.trained.dense}
        for key, parameter in self.dense.items():
            kind = "biases" if key.endswith(".bias") else "norms" if parameter.dim() == 1 else "dense"
            if wanted[kind] and dtypes[key] in _STORABLE:              # a step would vanish in an 8-bit float
                rms = float(parameter.detach().square().mean().sqrt())
                yield key, Trainable(parameter, kind, max(rms, SMALLEST_RMS), dtypes[key])

    def groups(self, rates: Mapping[str, float]) -> list[dict]:
        """Parameter groups for torch's optimizers; rates: kind -> relative learning rate.

        Units are rounded to powers of two, so that there are few groups.
        """
        found: dict[float, list[nn.Parameter]] = {}
        for item in self.trainable.values():
            rate = rates[item.kind] * 2.0 ** round(math.log2(item.unit))
            found.setdefault(rate, []).append(item.parameter)
        return [{"params": parameters, "lr": rate, "base": rate} for rate, parameters in sorted(found.items())]

    def keep_in_range(self) -> None:
        """After a step: hold every master where a file can store it."""
        for layer in self.layers.values():
            for part in layer.parts:
                part.keep_in_range()
                if part.table is not None:
                    part.table.keep_in_range()

    def values(self) -> dict[str, torch.Tensor]:
        """Copies of all trained tensors on the CPU, by name; of codes too, where they may change."""
        found = {name: item.parameter.detach().to("cpu", copy=True) for name, item in self.trainable.items()}
        return found | {name: part.part.codes.cpu() for name, part in self._changing()}

    def take(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set all trained tensors from `values`."""
        for name, item in self.trainable.items():
            item.parameter.data.copy_(values[name])
        for name, part in self._changing():
            part.part = replace(part.part, codes=values[name].to(part.part.codes.device))

    def _changing(self) -> Iterator[tuple[str, PartMasters]]:
        for key, layer in self.layers.items():
            for index, part in enumerate(layer.parts):
                if self.trained.codes or part.assigned is not None:
                    yield f"{key}|{index}.codes", part

    def reassign(self) -> dict[nn.Parameter, torch.Tensor]:
        """After a step: assign codes anew where they follow the books -> latents, masks of groups that changed."""
        return {latent: mask for layer in self.layers.values() for latent, mask in layer.reassign().items()}

    def sharpen(self, progress: float) -> None:
        """Before a step: mixtures of candidates come closer to a choice. progress: share of the run that is over."""
        for candidates in self._candidates():
            candidates.sharpen(progress)

    def _candidates(self) -> list[Candidates]:
        return [part.assigned for layer in self.layers.values() for part in layer.parts
                if isinstance(part.assigned, Candidates)]

    def changed(self) -> float:
        """Share of the groups, of the codes that may change, that are not those of the file."""
        stored = {id(masters): part for layer in self.layers.values()
                  for masters, (*_, part) in zip(layer.parts, layer.coded.parts, strict=True)}
        counts = [groups_changed(stored[id(masters)], masters.part) for _, masters in self._changing()]
        return sum(some for some, _ in counts) / max(1, sum(all_ for _, all_ in counts))

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Inside, all is as a file would hold it: dense tensors rounded, mixtures of candidates their largest share."""
        soft = [candidates for candidates in self._candidates() if not candidates.hard]
        kept = {name: item.parameter.detach().clone() for name, item in self.trainable.items()
                if item.stored not in (None, torch.float32)}
        try:
            for name, value in kept.items():
                item = self.trainable[name]
                item.parameter.data.copy_(value.to(item.stored))
            for candidates in soft:
                candidates.hard = True
            yield
        finally:
            for candidates in soft:
                candidates.hard = False
            for name, value in kept.items():
                self.trainable[name].parameter.data.copy_(value)

    def numbers(self) -> dict[str, int]:
        """Kind -> how many numbers of it are trained."""
        found: dict[str, int] = {}
        for item in self.trainable.values():
            found[item.kind] = found.get(item.kind, 0) + item.parameter.numel()
        return found
