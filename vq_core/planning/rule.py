"""How much a layer's errors matter where nothing was measured: a guess from what the layer does and where it stands.

Fitted on the testbed's sensitivities (docs/plan.md): the logarithm of what losing a layer wholly would add to the
noise, over its own power, as a sum of a term by role and one by block leaves a standard deviation of 0.56. One small
model is no proof for another, so the result is called a guess wherever it is shown.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..arch import UNET_PREFIX, Layer, read_unet

ROLES = {"conv1": -11.2, "conv2": -10.7, "shortcut": -8.8, "downsample": -7.8, "upsample": -9.1, "proj_in": -9.7,
         "proj_out": -9.4, "self_q": -13.3, "self_k": -13.5, "self_v": -11.9, "self_out": -11.8, "cross_q": -12.9,
         "cross_k": -13.3, "cross_v": -11.8, "cross_out": -11.3, "ff_in": -10.6, "ff_out": -11.9}
# From full to lowest resolution. The testbed's own terms are 5.8, 3.4 and -4.3, and 1.2 for the output side: its lowest
# resolution is 4 x 4 latents, SDXL's 32 x 32 with five sixths of its weights, so three tenths of them are taken.
RESOLUTIONS = (1.7, 1.0, -1.3)
OUTPUT_SIDE = 0.4


def guess(shapes: Mapping[str, tuple[int, ...]], noise_power: float = 1.0) -> Callable[[Layer, float], float]:
    """-> factor(layer, sum of its squared weights), as in sensitivity.py. shapes: LDM key -> shape of a checkpoint.

    The blocks of one transformer share its influence: each counts by 1 / their number.
    """
    places = _places(shapes)

    def factor(layer: Layer, squares: float) -> float:
        term, depth = places.get(_block(layer.key), (0.0, 1))
        share = 1 / depth if ".transformer_blocks." in layer.key else 1.0
        return noise_power * share * math.exp(ROLES.get(layer.role, -11.0) + term) / squares if squares else 0.0

    return factor


def _block(key: str) -> str:
    """`input_blocks.4.` of a layer's key, `middle_block.` in the middle."""
    parts = key[len(UNET_PREFIX):].split(".")
    return "middle_block." if parts[0] == "middle_block" else f"{parts[0]}.{parts[1]}."


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[float, int]]:
    """Block -> (term of its place, transformer blocks in it)."""
    unet, places, level = read_unet(shapes), {}, 0
    if unet is None:
        return {}
    lowest = sum(block.kind == "downsample" for block in unet.inputs)
    for block in unet.inputs:
        places[block.prefix] = _term(level, lowest), max(1, block.depth)
        level += block.kind == "downsample"
    places["middle_block."] = _term(level, lowest), max(1, unet.middle or 1)
    for block in unet.outputs:
        places[block.prefix] = _term(level, lowest) + OUTPUT_SIDE, max(1, block.depth)
        level -= block.upsample is not None
    return places


def _term(level: int, lowest: int) -> float:
    """RESOLUTIONS at a level from 0 (full) to the lowest, straight between."""
    place = (len(RESOLUTIONS) - 1) * min(1.0, max(0.0, level / lowest if lowest else 0.0))
    low = min(int(place), len(RESOLUTIONS) - 2)
    return RESOLUTIONS[low] + (place - low) * (RESOLUTIONS[low + 1] - RESOLUTIONS[low])
