"""Adapters on a diffusers UNet with coded layers, which get their scales before each call, by its samples' noise."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..arch import UNET_PREFIX, unet_names
from ..container import Reader
from ..errors import UnsupportedError
from ..keymap import PrefixTable
from ..layers import VQConv2d, VQLinear
from ..pipeline import load_parts
from .file import Adapter, load_adapter
from .noise_levels import NoiseTable
from .stack import Stack, check_fits


class Attached:
    """Adapters on a UNet. remove() takes them off; the UNet is as it was then."""

    def __init__(self, unet: nn.Module, stack: Stack, noise: NoiseTable, layers: Mapping[str, nn.Module]):
        self.unet, self.stack, self.noise, self.layers = unet, stack, noise, layers
        self._handle = unet.register_forward_pre_hook(self._choose, with_kwargs=True)

    def remove(self) -> None:
        """As before."""
        self._handle.remove()
        for layer in self.layers.values():
            layer.scales = None

    def _choose(self, _, args: tuple, named: dict) -> None:
        sample, time = (named.get(name, args[i] if len(args) > i else None)
                        for i, name in enumerate(("sample", "timestep")))
        scales = self.stack.scales(self.noise.sigmas(torch.as_tensor(time)), sample.device, sample.dtype)
        for key, layer in self.layers.items():
            layer.scales = scales.get(key)


def apply_adapters(unet: nn.Module, file: str | Path, *adapters: str | Path | tuple[str | Path, float],
                   configs: str | Path | None = None) -> Attached:
    """Put adapters on a UNet of load_unet(file, decode="per_call").

    file: the vqpack file the UNet came from. adapters: paths, or (path, strength). Raises FormatError where an adapter
    belongs to another file, UnsupportedError where the UNet's layers are not coded ones.
    """
    found = []
    with Reader(file, mapped=False) as reader:
        for given in adapters:
            path, strength = given if isinstance(given, tuple) else (given, 1.0)
            found.append((load_adapter(path), float(strength)))
            check_fits(found[-1][0], reader, Path(path))
        keys = [key for key in reader.keys() if key.startswith(UNET_PREFIX)]
    layers = _layers(unet, found, keys)
    scheduler = load_parts(file, ["scheduler"], configs=configs)["scheduler"]
    return Attached(unet, Stack(found), NoiseTable.of(scheduler, Path(file).name), layers)


def _layers(unet: nn.Module, adapters: list[tuple[Adapter, float]], keys: list[str]) -> dict[str, nn.Module]:
    names = PrefixTable(unet_names.pairs_from_ldm(key[len(UNET_PREFIX):] for key in keys))
    layers = {}
    for key in dict.fromkeys(key for adapter, _ in adapters for key in adapter.layers):
        layer = unet.get_submodule(names.apply(key[len(UNET_PREFIX):]).removesuffix(".weight"))
        if not isinstance(layer, VQLinear | VQConv2d):
            raise UnsupportedError(f"'{key}' is an ordinary {type(layer).__name__} here: load the UNet with "
                                   f"decode='per_call', adapters go around coded layers")
        layers[key] = layer
    return layers
