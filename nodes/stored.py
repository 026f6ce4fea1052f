"""What a coded layer puts into its state dict: its bytes, which count and move as such but cannot be saved as a weight.

ComfyUI 0.8 and other savers write a state dict as it is. A blob in the place of a weight would make a checkpoint that
nothing can open, so the first thing every saver asks of a tensor, whether it is contiguous, is answered by a sentence.
"""
from __future__ import annotations

import torch

from ..vq_core.errors import UnsupportedError

# What savers do to a tensor first: safetensors and the host's CheckpointSave ask the first two, its conversion of
# CLIP-G concatenates, copies and transposes.
_REFUSED = frozenset((torch.Tensor.is_contiguous, torch.Tensor.contiguous, torch.Tensor.__setitem__, torch.cat,
                      torch.Tensor.transpose, torch.Tensor.t))


class StoredWeight(torch.Tensor):
    """The blob of a coded weight, uint8 [bytes], in a state dict."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in _REFUSED:
            raise UnsupportedError("this way of saving cannot write a VQ model: use Save Checkpoint (VQ), or Quantize "
                                   "Model (VQ) to make a small file of a merge")
        return super().__torch_function__(func, types, args, kwargs or {})


def stored(blob: torch.Tensor) -> StoredWeight:
    """The same memory, as a state dict may show it."""
    return blob.as_subclass(StoredWeight)
