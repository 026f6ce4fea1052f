"""Which layers of a loaded model round their inputs and multiply in int8, and what the user is told about it."""
from __future__ import annotations

import collections
import logging

from ..vq_core.activations.int8 import linear_spec, why_emulated
from ..vq_core.activations.specs import Activations
from .layout import unwrap
from .ops import VQOps

_LOG = logging.getLogger(__name__)


def set_inputs(patcher, settings: Activations) -> None:
    """Make the coded Linear layers of a freshly loaded model follow settings; convolutions stay as they are."""
    rounded, emulated = 0, collections.Counter()
    for key, module in patcher.coded_modules():
        if not isinstance(module, VQOps.Linear):
            continue
        module.inputs = linear_spec(settings, f"model.{key}")
        if module.inputs is not None:
            rounded += 1
            emulated[why_emulated(unwrap(module.weight), module.weight.dtype, module.inputs.bits,
                                  module.inputs.rotated)] += 1
    if rounded:
        _LOG.info("VQ: %d linear layers multiply in int8", emulated.pop(None, 0))
    for reason, count in emulated.items():
        _LOG.warning("VQ: int8 is emulated in %d of %d linear layers, which is slower than without it: %s", count,
                     rounded, reason)
