"""One tensor as quantize codes it, and the layers of a block whose roundings are learned together."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from .calibration.reconstruct import reconstruct
from .calibration.recorded import Block
from .encode import EncodedWeight, with_codes
from .gram import Gram
from .inspection import spec_of
from .progress import Progress
from .quantize_result import LayerResult


@dataclass(frozen=True)
class CodedItem:
    """What the file stores and, where it is coded, the code and what it was made from."""

    stored: torch.Tensor
    code: EncodedWeight | None = None
    weight: torch.Tensor | None = None     # float32, in its own shape
    gram: Gram | None = None
    target: torch.Tensor | None = None     # coded in place of the weight
    block: str | None = None               # as in LayerResult
    block_error: float | None = None

    def note(self, key: str) -> dict | None:
        """What the spool keeps beside it: its row of the report, ids of shared tables; None where not coded."""
        if self.code is None:
            return None
        weight = self.code.weight
        layer = LayerResult(key, list(weight.shape), spec_of(weight), round(weight.bits, 4), weight.nbytes,
                            self.code.relative_error, self.code.output_error, self.block, self.block_error)
        return {"layer": layer.to_json(), "tables": list(self.code.tables)}


def round_together(block: Block, items: dict[str, CodedItem], keys: Collection[str], seed: int, progress: Progress
                   ) -> dict[str, CodedItem]:
    """All items of a block, coded layer by layer -> the same with the roundings of `keys` learned together."""
    layers = {key: (items[key].code.weight, items[key].weight if items[key].target is None else items[key].target)
              for key in keys}
    fixed = {key: one.code.weight for key, one in items.items() if one.code is not None and key not in layers}
    learned = reconstruct(block, layers, fixed, seed, progress)
    found = dict(items)
    for key in keys:
        one = replace(items[key], block=block.name, block_error=round(learned.error, 6))
        if key in learned.codes:
            code = with_codes(one.code.weight, learned.codes[key], one.weight, key=key, gram=one.gram,
                              target=one.target)
            one = replace(one, stored=code.weight.blob, code=code)
        found[key] = one
    return found
