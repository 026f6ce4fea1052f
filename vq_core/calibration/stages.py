"""In which order sequential coding takes the layers of the UNet, and which of them are learned together."""
from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .groups import Group

# Q-Diffusion's blocks (section 3.2): a residual block; a transformer block's attentions and feed-forward.
_UNIT = re.compile(r"^.*?\.(?:resnets|transformer_blocks)\.\d+(?=\.)")


@dataclass(frozen=True)
class Stage:
    """Layers that are coded for the same student. unit: path of the block they are in, where it is reconstructed."""

    keys: tuple[str, ...]                  # in forward order
    groups: tuple[Group, ...]              # those to be captured
    unit: str | None = None


def unit_of(module: str) -> str | None:
    """Path of the residual or transformer block that a module of the UNet is in; None: it stands for itself."""
    found = _UNIT.match(module)
    return found and found.group()


def by_block(groups: list[Group]) -> list[list[Group]]:
    """Groups of the UNet's blocks in forward order: down_blocks.0, ..., mid_block, up_blocks.0, ... (SDXL: 7)"""
    found: dict[str, list[Group]] = {}
    for group in groups:
        path = group.module.split(".")
        found.setdefault(path[0] if path[0] == "mid_block" else ".".join(path[:2]), []).append(group)
    return list(found.values())


def plain_stages(groups: list[Group]) -> list[Stage]:
    """Block by block, without the first one and what sees the text: these get the same whatever was coded before."""
    kept = [[group for group in block if not group.text] for block in by_block(groups)[1:]]
    return [Stage(tuple(key for group in block for key in group.layers), tuple(block)) for block in kept]


def unit_stages(groups: list[Group], modules: Mapping[str, str], coded: Collection[str], together: Collection[str]
                ) -> list[Stage]:
    """Residual and transformer blocks, and every other layer by itself. What sees the text is part of a block that is
    reconstructed, and else not among them.

    modules: key -> path in the UNet, in forward order. coded, together: keys of layers that are going to be coded, and
    of those whose block is reconstructed.
    """
    group_of = {key: group for group in groups for key in group.layers}
    learned = {unit_of(modules[key]) for key in together} - {None}
    found: dict[str, list[str]] = {}
    for key, module in modules.items():
        name = unit_of(module) or module
        if key in group_of and (name in learned or not group_of[key].text):
            found.setdefault(name, []).append(key)
    return [Stage(tuple(keys), _captured(map(group_of.get, keys)), name if name in learned else None)
            for name, keys in found.items() if not coded.isdisjoint(keys)]


def _captured(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Each once, without what sees the text: it gets what the calibration says."""
    return tuple({group.layers: group for group in groups if not group.text}.values())
