"""Adapters of every kind from random tensors, in the names that their trainers write. Imports torch only."""
from __future__ import annotations

from collections.abc import Callable

import torch

RANK = 4
# In the UNet's own names; with these the tiny checkpoint's coded layers of every family are met, and two dense layers.
LINEAR = ("input_blocks.3.1.transformer_blocks.0.attn1.to_q", "input_blocks.5.1.transformer_blocks.0.ff.net.0.proj",
          "input_blocks.5.1.transformer_blocks.0.attn2.to_k", "input_blocks.3.1.proj_in",
          "input_blocks.5.1.transformer_blocks.3.attn1.to_out.0")
CONV = ("input_blocks.3.0.in_layers.2", "input_blocks.4.0.op", "output_blocks.1.1.conv",
        "output_blocks.1.0.skip_connection")
DENSE_LAYERS = ("time_embed.0", "input_blocks.0.0")
# The same layers as diffusers calls them, where it has a name for them.
DIFFUSERS = {LINEAR[0]: "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
             LINEAR[3]: "down_blocks.1.attentions.0.proj_in", CONV[0]: "down_blocks.1.resnets.0.conv1",
             CONV[1]: "down_blocks.1.downsamplers.0.conv"}

Maker = Callable[[torch.Tensor, torch.Generator], dict[str, torch.Tensor]]


def make(kind: str, weights: dict[str, torch.Tensor], prefix: str = "lora_unet_", seed: int = 7) -> dict:
    """weights: layer -> its weight -> an adapter file's contents, in kohya's names"""
    generator, out = torch.Generator().manual_seed(seed), {}
    for layer, weight in weights.items():
        for name, tensor in KINDS[kind](weight, generator).items():
            out[f"{prefix}{layer.replace('.', '_')}.{name}"] = tensor
    return out


def renamed(lora: dict, names: dict[str, str], suffixes: dict[str, str]) -> dict:
    """The same tensors of a LoRA in other layer names and endings; what has no new name is left out."""
    out = {}
    for key, tensor in lora.items():
        layer, _, ending = key.partition(".")
        if layer in names and ending in suffixes:
            out[names[layer] + suffixes[ending]] = tensor
    return out


def _random(generator, *shape: int, size: float = 0.05) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * size


def _lora(weight, generator) -> dict:
    ones = [1] * (weight.dim() - 2)
    return {"lora_up.weight": _random(generator, len(weight), RANK, *ones),
            "lora_down.weight": _random(generator, RANK, *weight.shape[1:]), "alpha": torch.tensor(2.0 * RANK)}


def _lora_cp(weight, generator) -> dict:
    if weight.dim() == 2:
        return _lora(weight, generator)
    rows, columns, *kernel = weight.shape
    return {"lora_up.weight": _random(generator, rows, RANK, 1, 1, size=0.2),
            "lora_mid.weight": _random(generator, RANK, RANK, *kernel, size=0.2),
            "lora_down.weight": _random(generator, RANK, columns, 1, 1, size=0.2), "alpha": torch.tensor(1.0 * RANK)}


def _lokr(weight, generator) -> dict:
    rows, columns, *kernel = weight.shape
    return {"lokr_w1": _random(generator, 4, 4, size=0.3), "alpha": torch.tensor(1.0 * RANK),
            "lokr_w2_a": _random(generator, rows // 4, RANK, size=0.1),
            "lokr_w2_b": _random(generator, RANK, columns // 4 * _product(kernel), size=0.1)}


def _lokr_cp(weight, generator) -> dict:
    rows, columns, *kernel = weight.shape
    if not kernel:
        return {"lokr_w1_a": _random(generator, 4, 2, size=0.3), "lokr_w1_b": _random(generator, 2, 4, size=0.3),
                "lokr_w2": _random(generator, rows // 4, columns // 4), "alpha": torch.tensor(2.0)}
    return {"lokr_w1": _random(generator, 4, 4, size=0.3), "alpha": torch.tensor(1.0 * RANK),
            "lokr_t2": _random(generator, RANK, RANK, *kernel, size=0.3),
            "lokr_w2_a": _random(generator, RANK, rows // 4, size=0.3),
            "lokr_w2_b": _random(generator, RANK, columns // 4, size=0.3)}


def _loha(weight, generator) -> dict:
    rows, columns = len(weight), weight[0].numel()
    return {"hada_w1_a": _random(generator, rows, RANK, size=0.3), "alpha": torch.tensor(1.0 * RANK),
            "hada_w1_b": _random(generator, RANK, columns, size=0.2),
            "hada_w2_a": _random(generator, rows, RANK, size=0.3),
            "hada_w2_b": _random(generator, RANK, columns, size=0.2)}


def _loha_cp(weight, generator) -> dict:
    if weight.dim() == 2:
        return _loha(weight, generator)
    rows, columns, *kernel = weight.shape
    halves = {f"hada_{name}": _random(generator, *shape, size=0.3) for number in (1, 2) for name, shape in (
        (f"t{number}", (RANK, RANK, *kernel)), (f"w{number}_a", (RANK, rows)), (f"w{number}_b", (RANK, columns)))}
    return {**halves, "alpha": torch.tensor(2.0 * RANK)}


def _glora(weight, generator) -> dict:
    rows, columns = len(weight), weight.shape[1]
    return {"a1.weight": _random(generator, columns, RANK, size=0.1), "a2.weight": _random(generator, RANK, columns),
            "b1.weight": _random(generator, rows, RANK), "b2.weight": _random(generator, RANK, weight[0].numel()),
            "alpha": torch.tensor(2.0 * RANK)}


def _oft(weight, generator) -> dict:
    blocks = _random(generator, len(weight) // 8, 8, 8, size=0.1)
    return {"oft_blocks": blocks, "alpha": torch.tensor(2.0)}


def _boft(weight, generator) -> dict:
    blocks = _random(generator, 2, len(weight) // 8, 8, 8, size=0.1)
    rescale = 1 + _random(generator, len(weight), *[1] * (weight.dim() - 1))
    return {"oft_blocks": blocks, "rescale": rescale, "alpha": torch.tensor(2.0)}


def _dora(weight, generator) -> dict:
    """The scale stands for rows, as kohya's trainer writes it."""
    norms = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    return {**_lora(weight, generator), "dora_scale": norms * (1 + _random(generator, *norms.shape, size=0.2))}


def _dora_columns(weight, generator) -> dict:
    """The scale stands for columns, as older LyCORIS files have it."""
    norms = weight.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.dim() - 2))
    return {**_lora(weight, generator), "dora_scale": norms * (1 + _random(generator, *norms.shape, size=0.2))}


def _diff(weight, generator) -> dict:
    return {"diff": _random(generator, *weight.shape, size=0.02)}


def _diff_bias(weight, generator) -> dict:
    return {"diff_b": _random(generator, len(weight), size=0.5)}


def _set(weight, generator) -> dict:
    return {"set_weight": weight + _random(generator, *weight.shape, size=0.02)}


def _product(sizes) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


# kind -> (its name in the matrix, what makes it)
NAMED: dict[str, tuple[str, Maker]] = {
    "lora": ("LoRA (convolution: LoCon)", _lora), "lora_cp": ("LoCon with a middle (CP)", _lora_cp),
    "lokr": ("LoKr", _lokr), "lokr_cp": ("LoKr, second form (CP)", _lokr_cp), "loha": ("LoHa", _loha),
    "loha_cp": ("LoHa (CP)", _loha_cp), "glora": ("GLoRA", _glora), "oft": ("OFT", _oft), "boft": ("BOFT", _boft),
    "dora": ("DoRA", _dora), "dora_columns": ("DoRA, scale over columns", _dora_columns),
    "diff": ("full difference (diff)", _diff), "diff_b": ("bias difference (diff_b)", _diff_bias),
    "set": ("replaced weight (set)", _set)}
KINDS: dict[str, Maker] = {kind: maker for kind, (_, maker) in NAMED.items()}
