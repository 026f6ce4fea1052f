"""Linear, Conv2d and Embedding whose weight may be coded: decode, add LoRA, multiply, in each call.

Handed to ComfyUI as `model_options["custom_operations"]`; every other operation is its own `manual_cast`.
"""
from __future__ import annotations

import torch
from torch.nn import functional as F

from ..vq_core.activations.specs import TokenSpec
from ..vq_core.adapters.scaling import CHANNELS_LAST, CHANNELS_SECOND, LayerScales
from . import call, host
from .guards import Guarded
from .layout import decode, is_coded, plain, unwrap
from .stored import stored

_DECODED_ROWS = 512                        # more distinct ids than this, and decoding the whole table is cheaper


class Coded(Guarded):
    """What the three share. Parameters are born on `meta`: a full-size weight is never allocated before loading."""

    decode_at_load = False
    kept: torch.Tensor | None = None       # the decoded weight or its integers, where the model keeps it (kept.py)
    inputs: TokenSpec | None = None        # how the input is rounded for an int8 product (activations.py)
    scales: LayerScales | None = None      # of adapters, for the call that runs (scales.py)
    channels = CHANNELS_LAST               # where an input has them

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                              error_msgs):
        host.raise_if_interrupted()        # memory mode decoded: each layer is decoded here
        for name in ("weight", "bias"):
            old = self._parameters.get(name)
            if old is None:
                continue
            value = state_dict.get(prefix + name)
            if value is None:
                missing_keys.append(prefix + name)
                value = torch.zeros(old.shape, dtype=old.dtype)
            if value.shape != old.shape:
                error_msgs.append(f"expected shape {list(old.shape)} for '{prefix + name}', got {list(value.shape)}")
                continue
            self._assign(name, value, old)
        known = {prefix + name for name in ("weight", "bias") if self._parameters.get(name) is not None}
        unexpected_keys.extend(k for k in state_dict if k.startswith(prefix) and k not in known)

    def _assign(self, name: str, value: torch.Tensor, old: torch.Tensor) -> None:
        device = self.first_device if old.is_meta else old.device
        if is_coded(value) and self.decode_at_load:
            value = decode(unwrap(value).to(device), old.dtype)
        self._parameters[name] = torch.nn.Parameter(value.to(device=device, dtype=old.dtype), requires_grad=False)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # A coded tensor must never get out: safetensors would write memory that does not belong to it.
        for name, value in self._parameters.items():
            if value is not None:
                shown = stored(value._qdata) if is_coded(value) else value
                destination[prefix + name] = shown if keep_vars else shown.detach()

    def _apply(self, fn, recurse=True):
        # Hosts move models before they load them, and torch cannot move `meta`. Assigning, where torch would swap the
        # coded tensor in place, also works while something holds a weak reference to it.
        self.kept = None
        for name, value in self._parameters.items():
            if value is not None and not value.is_meta:
                self._parameters[name] = torch.nn.Parameter(fn(value), requires_grad=False)
        return self

    def convert_weight(self, weight, inplace=False, **kwargs):
        """What the host's patching computes on: the decoded weight. Without this a LoRA would be ignored."""
        return plain(weight)

    def forward(self, input, *args, **kwargs):
        """The host's cast and patch machinery only where there is something to cast or to patch."""
        weight, bias = self.weight, self.bias
        ready = (not is_coded(weight) and not self.weight_function and not self.bias_function and not args
                 and not hasattr(self, "_v")         # dynamic VRAM keeps such a module's weights elsewhere
                 and weight.dtype == input.dtype and weight.device == input.device
                 and (bias is None or (bias.dtype == input.dtype and bias.device == input.device)))
        if not ready:
            return super().forward(input, *args, **kwargs)
        host.run_every_op()
        return self.scaled(input, bias, lambda x, b: self.multiply(x, weight, b))

    def scaled(self, input, bias, multiply):
        """multiply(input, bias), an adapter's scales around it."""
        return multiply(input, bias) if self.scales is None else self.scales.around(input, bias, self.channels,
                                                                                    multiply)

    def forward_comfy_cast_weights(self, input):
        """One call where the weight has to be decoded, moved or patched; the host comes here as well."""
        return call.run(self, input)

    def _weight_and_bias(self, **options):
        """-> (weight, bias, what uncast_bias_weight needs); weight functions have run where there are any."""
        return host.cast_bias_weight(self, offloadable=True, **options)


def _first_device(device) -> torch.device:
    return torch.device("cpu") if device is None or torch.device(device).type == "meta" else torch.device(device)


class VQOps(host.BaseOps):
    """Coded layers stay coded."""

    class Linear(Coded, host.BaseOps.Linear):
        """y = x W^T + b."""

        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            super().__init__(in_features, out_features, bias, device="meta", dtype=dtype)
            self.first_device = _first_device(device)

        def multiply(self, input, weight, bias):
            """-> [..., out_features]"""
            return F.linear(input, weight, bias)

    class Conv2d(Coded, host.BaseOps.Conv2d):
        """2-D convolution."""

        channels = CHANNELS_SECOND

        def __init__(self, *args, device=None, **kwargs):
            super().__init__(*args, device="meta", **kwargs)
            self.first_device = _first_device(device)

        def multiply(self, input, weight, bias):
            """-> [batch, out_channels, height, width]"""
            return self._conv_forward(input, weight, bias)

    class Embedding(Coded, host.BaseOps.Embedding):
        """Rows of a table; only the rows asked for are decoded."""

        def __init__(self, *args, device=None, **kwargs):
            super().__init__(*args, device="meta", **kwargs)
            self.first_device, self.bias = _first_device(device), None

        def forward_comfy_cast_weights(self, input, out_dtype=None):
            wanted = out_dtype or self.weight.dtype
            # asked for in the stored dtype, so that a coded table comes back coded unless a LoRA changed it
            weight, bias, state = self._weight_and_bias(device=input.device, dtype=self.weight.dtype)
            out = (_coded_rows(weight, input, wanted) if is_coded(weight) else
                   F.embedding(input, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq,
                               self.sparse).to(wanted))
            host.uncast_bias_weight(self, weight, bias, state)
            return out

    @classmethod
    def conv_nd(cls, dims, *args, **kwargs):
        """The host's factory of convolutions by number of dimensions."""
        return cls.Conv2d(*args, **kwargs) if dims == 2 else super().conv_nd(dims, *args, **kwargs)


class VQOpsDecoded(VQOps):
    """Coded layers are decoded while they are loaded and stay dense: more memory, no decoding per call."""

    class Linear(VQOps.Linear):
        """Dense after loading."""

        decode_at_load = True

    class Conv2d(VQOps.Conv2d):
        """Dense after loading."""

        decode_at_load = True

    class Embedding(VQOps.Embedding):
        """Dense after loading."""

        decode_at_load = True


def _coded_rows(weight, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows `ids` [...] of a coded table -> [..., embedding_dim]"""
    coded = unwrap(weight)
    distinct, places = torch.unique(ids, return_inverse=True)
    if distinct.numel() > _DECODED_ROWS:
        return F.embedding(ids, decode(coded, dtype))
    rows = [decode(coded, dtype, row, row + 1) for row in distinct.tolist()]
    return torch.cat(rows)[places]                                                  # [..., embedding_dim]
