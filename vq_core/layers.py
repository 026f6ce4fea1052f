"""Torch modules over coded weights: decode, then the ordinary linear or convolution."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..kernels.linear import coded_linear
from .adapters.scaling import CHANNELS_LAST, CHANNELS_SECOND, LayerScales
from .scratch_pool import decoded, may_lend
from .weight import CodedWeight


class _VQModule(nn.Module):
    """Holds one CodedWeight. The blob is a buffer, so it moves with the module and is saved as stored bytes."""

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None = None, decode_once: bool = False,
                 dtype: torch.dtype = torch.float32):
        super().__init__()
        self.coded = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = weight.shape[0], weight.shape[1]
        dense = weight.decode(dtype) if decode_once else None
        self.register_buffer("decoded", dense, persistent=False)    # logical shape, or None: decoded per call
        self.scales: LayerScales | None = None         # of adapters, for the call that runs (adapters/attach.py)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        device = fn(torch.empty(0)).device
        if self.coded.blob.device != device:
            self.coded = self.coded.to(device)
        return self

    @property
    def weight(self) -> torch.Tensor:
        """The decoded weight in its logical shape (float32 unless decoded once in another dtype)."""
        return self.decoded if self.decoded is not None else self.coded.decode(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The bias' dtype, else float32."""
        return self.bias.dtype if self.bias is not None else torch.float32

    @contextlib.contextmanager
    def _weight_as(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """The weight in x's dtype, on its device, in x's memory format; to be used within the block."""
        if self.decoded is not None:
            yield self.decoded.to(x.dtype)
            return
        channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        with decoded(self.coded.to(x.device), x.dtype, channels_last=channels_last) as weight:
            yield weight


class VQLinear(_VQModule):
    """y = x W^T + b with a coded W [out_features, in_features]."""

    product: Callable[[torch.Tensor, CodedWeight, torch.Tensor | None], torch.Tensor] | None = None  # instead of ours

    def forward(self, x: torch.Tensor, *args) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.scales is not None:
            return self.scales.around(x, bias, CHANNELS_LAST, self._multiply)
        return self._multiply(x, bias)

    def _multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.product is not None:
            return self.product(x, self.coded.to(x.device), bias)
        part = None if self.decoded is not None or not may_lend() else self.coded.part_to_fuse(x)
        if part is not None:
            return coded_linear(x, part, bias)
        with self._weight_as(x) as weight:
            return F.linear(x, weight, bias)


class VQConv2d(_VQModule):
    """A 2-D convolution with a coded weight [out_channels, in_channels, kh, kw]."""

    def __init__(self, weight: CodedWeight, bias=None, stride=1, padding=0, dilation=1, groups: int = 1, **options):
        super().__init__(weight, bias, **options)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.out_channels, self.in_channels = self.out_features, self.in_features

    def forward(self, x: torch.Tensor, *args) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.scales is not None:
            return self.scales.around(x, bias, CHANNELS_SECOND, self._multiply)
        return self._multiply(x, bias)

    def _multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        with self._weight_as(x) as weight:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class VQEmbedding(_VQModule):
    """Rows of a coded table [num_embeddings, embedding_dim]."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight)


def replace_layers(model: nn.Module, weights: dict[str, CodedWeight], decode_once: Container[str] = (),
                   dtype: torch.dtype = torch.float32) -> nn.Module:
    """Swap the named Linear, Conv2d and Embedding modules of `model` (in place) for coded ones.

    weights: module path -> CodedWeight. Biases are taken over. decode_once: the paths whose weights are decoded now and
    kept, in dtype. Raises KeyError for a path without such a module.
    """
    for path, weight in weights.items():
        options = {"decode_once": path in decode_once, "dtype": dtype}
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        old = getattr(parent, name)
        if isinstance(old, nn.Conv2d):
            new = VQConv2d(weight, old.bias, old.stride, old.padding, old.dilation, old.groups, **options)
        elif isinstance(old, nn.Embedding):
            new = VQEmbedding(weight, None, **options)
        elif isinstance(old, nn.Linear):
            new = VQLinear(weight, old.bias, **options)
        else:
            raise KeyError(f"expected a Linear, Conv2d or Embedding at '{path}', got {type(old).__name__}")
        setattr(parent, name, new)
    return model
