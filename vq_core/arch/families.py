"""The UNet families vqpack knows, as data: what tells one from another. Fine-tunes share their base's shapes."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One published architecture. Depths count transformer blocks behind each resnet, in forward order."""

    name: str
    model_channels: int
    channel_mult: tuple[int, ...]
    depth_in: tuple[int, ...]              # per resnet of input_blocks
    depth_out: tuple[int, ...]             # per resnet of output_blocks
    depth_middle: int | None               # None: no middle block; -1: one resnet; n: resnet, n transformers, resnet
    context_dim: int = 2048
    adm_in_channels: int = 2816
    in_channels: int = 4


SDXL = {"model_channels": 320, "channel_mult": (1, 2, 4), "depth_in": (0, 0, 2, 2, 10, 10),
        "depth_out": (10, 10, 10, 2, 2, 2, 0, 0, 0), "depth_middle": 10}

# Turbo, Lightning, Hyper, LCM, Playground, Pony, Illustrious, NoobAI ... are "sdxl".
FAMILIES = (
    Family("sdxl", **SDXL),
    Family("sdxl-inpaint", **SDXL, in_channels=9),
    Family("sdxl-ip2p", **SDXL, in_channels=8),
    Family("sdxl-refiner", 384, (1, 2, 4, 4), (0, 0, 4, 4, 4, 4, 0, 0), (0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0), 4,
           context_dim=1280, adm_in_channels=2560),
    Family("ssd-1b", 320, (1, 2, 4), (0, 0, 2, 2, 4, 4), (4, 4, 10, 2, 1, 1, 0, 0, 0), -1),
    Family("segmind-vega", 320, (1, 2, 4), (0, 0, 1, 1, 2, 2), (2, 2, 2, 1, 1, 1, 0, 0, 0), -1),
    Family("koala-700m", 320, (1, 2, 4), (0, 2, 5), (5, 5, 2, 2, 0, 0), None),
    Family("koala-1b", 320, (1, 2, 4), (0, 2, 6), (6, 6, 2, 2, 0, 0), 6),
)

# Same construction (linear projections, label embedding), other numbers: pruned, distilled and test models.
FALLBACK = "sdxl-like"
