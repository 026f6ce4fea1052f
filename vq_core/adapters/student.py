"""A vqpack file's UNet that learns scales and nothing else: what tuning's loop asks of a student."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..container import Reader
from ..errors import UnsupportedError
from ..layers import VQConv2d, VQLinear
from ..pipeline import load_parts
from ..tuning.student import Student, Trainable
from .file import MOST_LOG, Adapter, base_id
from .layer import FROZEN, Route, ScaledLayer
from .noise_levels import NoiseTable, experts_of
from .settings import Scaling


class AdapterStudent(Student):
    """Student with trained logarithms instead of masters; the file's own numbers never change."""

    def __init__(self, path: str | Path, scaling: Scaling, device: str | torch.device = "cpu",
                 configs: str | Path | None = None):
        self.scaling, self.route = scaling, Route()
        super().__init__(path, FROZEN, device, configs)
        with Reader(path, mapped=False) as reader:
            self.base = base_id(reader)
        scheduler = load_parts(path, ["scheduler"], configs=configs)["scheduler"]
        self.noise = NoiseTable.of(scheduler, self.path.name)
        self.boundaries = self.noise.boundaries(scaling.experts)
        self.unet.register_forward_pre_hook(self._choose, with_kwargs=True)

    def _choose(self, _, args: tuple, named: dict) -> None:
        """Before each call of the UNet: the experts of its samples."""
        samples, times = (named.get(name, args[i] if len(args) > i else None)
                          for i, name in enumerate(("sample", "timestep")))
        rows = experts_of(self.noise.sigmas(torch.as_tensor(times)), self.boundaries)
        self.route.rows = rows * len(samples) if len(rows) == 1 else rows

    def _replace(self, name: str) -> ScaledLayer:
        path, _, leaf = name.removesuffix(".weight").rpartition(".")
        parent = self.unet.get_submodule(path)
        old = getattr(parent, leaf)
        if not isinstance(old, VQLinear | VQConv2d):
            raise UnsupportedError(f"'{name}' of '{self.path.name}' is a coded {type(old).__name__}: adapters scale "
                                   f"linear layers and convolutions")
        setattr(parent, leaf, ScaledLayer(old, self.route, self.scaling.experts, self.scaling.sides == "both"))
        return getattr(parent, leaf)

    def _find(self, dtypes: Mapping[str, torch.dtype | None]) -> Iterator[tuple[str, Trainable]]:
        for key, layer in self.layers.items():
            for side, logs in (("out", layer.out_logs), ("in", layer.in_logs)):
                for expert, parameter in enumerate(logs):
                    yield f"{key}|{side}.{expert}", Trainable(parameter, "scales", 1.0, torch.float16)

    def keep_in_range(self) -> None:
        """After a step: no scale beyond what a file may hold."""
        for item in self.trainable.values():
            item.parameter.data.clamp_(-MOST_LOG, MOST_LOG)

    def adapter(self, facts: Mapping) -> Adapter:
        """As it is now, float16."""
        layers = {}
        for key, layer in self.layers.items():
            out, into = (torch.stack(list(logs)).detach().half().cpu() if len(logs) else None
                         for logs in (layer.out_logs, layer.in_logs))
            layers[key] = out, into
        return Adapter(self.base, self.boundaries, layers, {**facts, "base_name": self.path.name})
