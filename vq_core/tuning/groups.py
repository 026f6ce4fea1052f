"""Groups of codes of any family: who codes them again, how many changed, what the codes alone decode to."""
from __future__ import annotations

from dataclasses import replace

import torch

from ...kernels.dispatch import decode_part
from ...kernels.parts import Part, Scales, TrellisPart
from . import regroup, rewindow


def coder(part: Part):
    """The module that codes single groups of such a part: rewindow or regroup, with the same functions."""
    return rewindow if isinstance(part, TrellisPart) else regroup


def integers_of(part: Part) -> torch.Tensor:
    """Decoded without scales and rotation, float32 [out, cols]."""
    return decode_part(replace(part, rotation=0, scales=Scales(1.0, group_size=part.scales.group_size)))


def groups_changed(old: Part, new: Part) -> tuple[int, int]:
    """-> (groups whose codes differ, all groups)"""
    return coder(old).changed(old, new), coder(old).count(old)
