"""Which coded layers see the same input, how large their grams are, and in how many sweeps they fit into memory."""
from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from .. import trajectory
from ..arch import UNET_PREFIX, make_layers, unet_names
from ..errors import PlanError, UnsupportedError
from ..keymap import PrefixTable

SETS = 2                                   # calibration and held out


@dataclass(frozen=True)
class CodedLayer:
    """One coded layer and the module that computes it."""

    key: str                               # LDM key of its weight
    shape: tuple[int, ...]
    module: str                            # path in diffusers' UNet


@dataclass(frozen=True)
class Group:
    """Layers with one input. blocks grams of size x size: 1 = the whole gram, taps = one a kernel tap."""

    layers: tuple[str, ...]                # LDM keys in forward order
    module: str                            # of the first one: where the input is taken
    blocks: int
    size: int
    text: bool = False                     # sees the text states, which are the same at every step

    @property
    def nbytes(self) -> int:
        """Memory of its sums, both sets in float32."""
        return SETS * 4 * self.blocks * self.size * self.size


def coded_layers(shapes: dict[str, tuple[int, ...]]) -> list[CodedLayer]:
    """The UNet's coded layers in forward order. shapes: LDM key -> shape of a whole checkpoint."""
    names = [key[len(UNET_PREFIX):] for key in shapes if key.startswith(UNET_PREFIX)]
    table = PrefixTable(unet_names.pairs_from_ldm(names))
    return [CodedLayer(layer.key, layer.shape, table.apply(layer.key[len(UNET_PREFIX):]).removesuffix(".weight"))
            for layer in make_layers(shapes) if layer.component == "unet" and not layer.dense]


def find_groups(pipe, layers: list[CodedLayer], guidance: float, full_columns: int) -> tuple[list[Group], list[str]]:
    """-> (groups in the order of their first layers, keys of layers that no input reached): groups_of on one step of
    the smallest picture.
    """
    side = 8 * pipe.vae_scale_factor
    return groups_of(pipe.unet, layers, full_columns, lambda: trajectory.sample(
        pipe, ["a"], [0], 1, guidance, (side, side), decode=False))


def groups_of(unet, layers: list[CodedLayer], full_columns: int, ask: Callable[[], object]
              ) -> tuple[list[Group], list[str]]:
    """find_groups for anything that ask() makes the UNet do: layers share a gram where they were handed the very same
    tensor.
    """
    seen: dict[str, tuple] = {}
    alive: dict[int, tuple[weakref.ref, int]] = {}
    text: list[weakref.ref] = []
    numbers = count()

    def identity(tensor: torch.Tensor) -> int:
        known = alive.get(id(tensor))
        if known is None or known[0]() is not tensor:
            known = alive[id(tensor)] = weakref.ref(tensor), next(numbers)
        return known[1]

    def listen(key: str):
        def hook(module: nn.Module, args: tuple) -> None:
            seen.setdefault(key, (identity(args[0]), _geometry(module), any(ref() is args[0] for ref in text)))
        return hook

    hooks = [unet.register_forward_pre_hook(
        lambda _, args, named: text.append(weakref.ref(named["encoder_hidden_states"])), with_kwargs=True)]
    hooks += [unet.get_submodule(layer.module).register_forward_pre_hook(listen(layer.key)) for layer in layers]
    try:
        ask()
    finally:
        for hook in hooks:
            hook.remove()
    return _grouped(layers, seen, full_columns), [layer.key for layer in layers if layer.key not in seen]


def _grouped(layers: list[CodedLayer], seen: dict[str, tuple], full_columns: int) -> list[Group]:
    together: dict[tuple, list[CodedLayer]] = {}
    for layer in layers:
        if layer.key in seen:
            together.setdefault(seen[layer.key], []).append(layer)
    groups = []
    for (_, _, text), members in together.items():
        first = members[0]
        taps = torch.Size(first.shape[2:]).numel()
        whole = taps == 1 or taps * first.shape[1] <= full_columns
        blocks, size = (1, taps * first.shape[1]) if whole else (taps, first.shape[1])
        groups.append(Group(tuple(layer.key for layer in members), first.module, blocks, size, text))
    return groups


def _geometry(module: nn.Module) -> tuple:
    """What besides the input decides the columns."""
    if isinstance(module, nn.Linear):
        return ("linear",)
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return ("conv", module.kernel_size, module.stride, module.padding, module.dilation)
    raise UnsupportedError(f"calibration looks at linear layers and plain convolutions, this model has a "
                           f"{type(module).__name__} among its coded layers")


def sweeps(groups: list[Group], memory: int) -> list[list[Group]]:
    """Groups in order, as many at a time as fit into `memory` bytes; PlanError where one alone does not."""
    found: list[list[Group]] = [[]]
    used = 0
    for group in groups:
        if group.nbytes > memory:
            raise PlanError(f"the gram of '{group.layers[0]}' takes {group.nbytes / 1e9:.2f} GB, more than --memory "
                            f"{memory / 1e9:.2f} GB: allow more memory")
        if used + group.nbytes > memory:
            found.append([])
            used = 0
        found[-1].append(group)
        used += group.nbytes
    return found
