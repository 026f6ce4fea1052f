"""diffusers' attention with its scores in few bits, written out, so that they exist between softmax and values."""
from __future__ import annotations

import torch
from torch import nn

from ..errors import UnsupportedError
from .scores import quantize_scores
from .specs import ScoreSpec

PLAIN = ("AttnProcessor", "AttnProcessor2_0")
EXTRAS = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")


class ScoreProcessor:
    """Takes the place of diffusers' AttnProcessor2_0 in a UNet's transformer blocks.

    Holds all scores of a call, [n, heads, queries, keys] in float32: this is for measuring, not for speed.
    """

    def __init__(self, spec: ScoreSpec):
        self.spec = spec

    def __call__(self, attn, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
                 attention_mask: torch.Tensor | None = None, temb=None, **_) -> torch.Tensor:
        """[n, queries, width], text [n, keys, text width] or None for self-attention -> [n, queries, width]"""
        cross = encoder_hidden_states is not None
        states = encoder_hidden_states if cross else hidden_states
        query, key, value = (_heads(made, attn.heads) for made in (
            attn.to_q(hidden_states), attn.to_k(states), attn.to_v(states)))        # [n, heads, tokens, head]
        logits = ((attn.scale * query) @ key.transpose(2, 3)).float()               # [n, heads, queries, keys]
        if attention_mask is not None:
            n, heads = logits.shape[:2]
            mask = attn.prepare_attention_mask(attention_mask, key.shape[2], n)
            logits = logits + mask.view(n, heads, -1, mask.shape[-1])
        scores = quantize_scores(logits.softmax(-1), self.spec, cross)
        mixed = (scores.to(value.dtype) @ value).transpose(1, 2).flatten(2)         # [n, queries, width]
        return attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor


def attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """Path -> diffusers Attention whose scores can be quantized; UnsupportedError for one of another kind."""
    found = {name: module for name, module in unet.named_modules() if hasattr(module, "processor")
             and hasattr(module, "to_q")}
    for name, module in found.items():
        kind = type(module.processor).__name__
        extras = [extra for extra in EXTRAS if getattr(module, extra, None)]
        if module.residual_connection:
            extras.append("residual_connection")
        if kind not in PLAIN or extras:
            what = f"a processor of kind {kind}" if kind not in PLAIN else f"'{extras[0]}'"
            raise UnsupportedError(f"the scores of '{name}' cannot be quantized, it has {what}: choose activations "
                                   f"that keep scores, or take the other processor off first")
    return found


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[n, tokens, width] -> [n, heads, tokens, head]"""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
