"""What quantizing will give, before anything is coded: from a checkpoint's header and a plan; no weight is read."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from .arch import Layer
from .bits import Stored, count_bits
from .coding_time import coding_seconds
from .cost_model import SamplingMemory, activation_bytes, decode_scratch
from .expected_error import expected_error
from .plan import PARTS, Plan
from .planning.budget import file_bytes, stored_bytes, table_sizes
from .sampling_memory import HALF
from .source import Source, open_source
from .spec import Spec
from .text_encoders import Item, is_kept, stored_items

CALIBRATED = {"fingerprint": "0" * 64, "pictures": 10000}       # as long as what quantize writes into the header


@dataclass(frozen=True)
class Outline:
    """A checkpoint's header and what a file of it stores; the file is closed."""

    source: Source
    items: tuple[Item, ...]

    @cached_property
    def coded_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the UNet's layers that are coded unless a plan says otherwise; what sensitivities are measured of."""
        return {layer.key: layer.shape for layer in self.source.layers if layer.component == "unet" and not layer.dense}

    def kept(self, parts: Sequence[str]) -> list[Item]:
        """What a file with these of "unet", "te", "vae" stores, as quantize does."""
        return [item for item in self.items if is_kept(item, parts)]


@dataclass(frozen=True)
class Prediction:
    """What a plan makes of a checkpoint. Bytes unless the name says otherwise."""

    file_bytes: int                        # at most; at least all but 6 % of the report and 192
    source_bytes: int
    unet_bits: float                       # stored bits a weight, everything counted
    memory: SamplingMemory                 # of the UNet, fp16
    error: float | None                    # expected: expected_error.py

    def seconds(self, outline: Outline, plan: Plan, speed: float, parts: Sequence[str], calibrated: bool) -> float:
        """Expected time; speed: coding_time.speed_of."""
        return coding_seconds(outline.kept(parts), plan, speed, calibrated)


def read_outline(path: str | Path) -> Outline:
    """A checkpoint's outline; VQError says why it cannot be quantized. Known again while path, time and size stay."""
    path = Path(path)
    status = path.stat()
    return _outline(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _outline(path: Path, _time: int, _size: int) -> Outline:
    with open_source(path) as source:
        return Outline(source, tuple(stored_items(source, list(source.layers))))


def predict(outline: Outline, plan: Plan, parts: Sequence[str] = PARTS, pixels: int = 1024, batch: int = 2,
            calibrated: bool = False) -> Prediction:
    """What quantize would make of a checkpoint with a plan. VQError where the plan does not fit it.

    pixels, batch: square pictures and both halves of guidance, for the memory while sampling.
    """
    items, source = outline.kept(parts), outline.source
    plan.check([item.layer for item in items])
    specs = {item.layer.key: plan.spec_for(item.layer) for item in items}
    sizes = {item.layer.key: stored_bytes(item.layer, specs[item.layer.key], source.dtype(item.source_key).itemsize)
             for item in items}
    tables = sum(table_sizes(set(specs.values())).values())
    settings = {"parts": sorted(parts), "seed": 0, **({"calibration": CALIBRATED} if calibrated else {})}
    total = file_bytes(source, items, plan, settings, sizes)
    unet = [item.layer for item in items if item.layer.component == "unet"]
    return Prediction(total, source.bytes, _unet_bits(unet, specs, sizes, tables, total),
                      _memory(unet, specs, sizes, tables, pixels, batch),
                      expected_error((layer, specs[layer.key]) for layer in unet if specs[layer.key].kind != "dense"))


def _unet_bits(unet: list[Layer], specs: dict[str, Spec], sizes: dict[str, int], tables: int, total: int) -> float:
    stored = [Stored(la.key, "unet", la.numel, sizes[la.key], specs[la.key].kind != "dense") for la in unet]
    return count_bits([*stored, Stored("", "table", 0, tables, False)], total)["unet"]


def _memory(unet: list[Layer], specs: dict[str, Spec], sizes: dict[str, int], tables: int, pixels: int, batch: int
            ) -> SamplingMemory:
    """As sampling_memory.sampling_memory says of the finished file, nothing kept decoded."""
    largest = max((layer.numel for layer in unet if specs[layer.key].kind != "dense"), default=0)
    return SamplingMemory(sum(sizes[layer.key] for layer in unet) + tables, decode_scratch(largest, HALF), 0,
                          activation_bytes(pixels, batch, HALF))
