"""One call of a coded layer: its decoded weight, kept or in lent memory; LoRA onto it or beside it; the product; an
adapter's scales around all of that.

With int8 activations the integers take the decoded weight's place, and LoRA goes beside them in floating point.

Whatever is in doubt goes the long way: the host casts, a tensor of its own holds the decoded weight, every weight
function is applied to it in order.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..kernels.linear import coded_linear
from ..kernels.parts import Part
from ..vq_core.activations.int8 import int8_product
from ..vq_core.low_rank import Term, add_beside_, beside_is_cheaper
from ..vq_core.scratch_pool import decoded, may_lend
from . import host
from .layout import int8_operation, is_coded, plain, rounded_to, unwrap
from .patches import Patches


def run(layer, input: torch.Tensor) -> torch.Tensor:
    """What the layer gives for an input, its weight moved, decoded and patched as it has to be."""
    functions = layer.weight_function
    if not _short(layer, input, functions):
        weight, bias, state = layer._weight_and_bias(input=input)
        rounds = layer.inputs is not None and is_coded(weight) and not torch.is_grad_enabled()
        multiply = _in_one_node if rounds else _plainly
        out = layer.scaled(input, bias, lambda x, b: multiply(layer, x, weight, b))
    else:
        with _without_functions(layer):
            weight, bias, state = layer._weight_and_bias(input=input)
        out = layer.scaled(input, bias, lambda x, b: _multiply(layer, x, weight, b, functions))
    host.uncast_bias_weight(layer, weight, bias, state)
    return out


def _in_one_node(layer, x, weight, bias) -> torch.Tensor:
    """The int8 product, one operation of a compiled graph."""
    return int8_operation(x, weight, bias, layer.inputs, _integers(layer, x))


def _plainly(layer, x, weight, bias) -> torch.Tensor:
    return layer.multiply(x, plain(weight), bias)


def _short(layer, input: torch.Tensor, functions: list) -> bool:
    """Whether nothing but this file sees the decoded weight, and nothing keeps it."""
    return (is_coded(layer.weight) and may_lend() and all(isinstance(f, Patches) for f in functions)
            and not isinstance(input, host.QuantizedTensor) and not torch.is_autocast_enabled(input.device.type))


@contextlib.contextmanager
def _without_functions(layer) -> Iterator[None]:
    """The host decodes what it has to apply functions to; ours are applied here."""
    functions, layer.weight_function = layer.weight_function, []
    try:
        yield
    finally:
        layer.weight_function = functions


def _multiply(layer, input, weight, bias, functions: list) -> torch.Tensor:
    """weight: coded, or a tensor of its own where the host had to decode it."""
    if layer.inputs is not None and is_coded(weight):
        terms = _terms(functions, weight.shape)
        if terms is not None:              # others change the weight, which then is no matrix of integers
            return add_beside_(_rounded(layer, input, weight, bias), input, terms)
    part = _part_to_fuse(layer, weight, input)
    if not functions:
        return _product(layer, input, weight, bias, part)
    terms = _terms(functions, weight.shape)
    if terms is None or (part is None and not beside_is_cheaper(terms, input[..., 0].numel(), input.dtype,
                                                                input.device.type)):
        kept = _kept(layer, weight, input)
        dense = plain(weight) if kept is None else kept.clone()      # functions write into it and may keep it
        for function in functions:
            dense = function(dense)
        return layer.multiply(input, dense, bias)
    return add_beside_(_product(layer, input, weight, bias, part), input, terms)


def _part_to_fuse(layer, weight, input: torch.Tensor) -> Part | None:
    """What a kernel multiplies by without decoding it first; None for every other weight."""
    if layer.kept is not None or not is_coded(weight) or weight.dtype != input.dtype:
        return None
    return unwrap(weight).part_to_fuse(input)


def _product(layer, input, weight, bias, part: Part | None) -> torch.Tensor:
    """Without patches."""
    if part is not None:
        return coded_linear(input, part, bias)
    with _dense(layer, weight, input) as dense:
        return layer.multiply(input, dense, bias)


def _rounded(layer, input, weight, bias) -> torch.Tensor:
    """The int8 product, without patches."""
    return int8_product(input, unwrap(weight), bias, layer.inputs, _integers(layer, input))


def _integers(layer, input: torch.Tensor) -> torch.Tensor | None:
    kept = layer.kept
    return kept if kept is not None and kept.dtype == torch.int8 and kept.device == input.device else None


def _terms(functions: list, shape) -> tuple[Term, ...] | None:
    """All patches as side products; None where one of them has to change the weight."""
    found = [function.terms(tuple(shape)) for function in functions]
    return None if any(terms is None for terms in found) else tuple(term for terms in found for term in terms)


@contextlib.contextmanager
def _dense(layer, weight, input: torch.Tensor) -> Iterator[torch.Tensor]:
    """The decoded weight without patches, to be read within the block only."""
    kept = _kept(layer, weight, input)
    if kept is not None or not is_coded(weight):
        yield weight if kept is None else kept
        return
    coded = unwrap(weight)
    with decoded(coded, weight.dtype, rounded_to(coded), _is_channels_last(input)) as dense:
        yield dense


def _kept(layer, weight, input: torch.Tensor) -> torch.Tensor | None:
    kept = layer.kept
    usable = kept is not None and kept.device == input.device and kept.dtype == weight.dtype == input.dtype
    return kept if usable else None


def _is_channels_last(input: torch.Tensor) -> bool:
    """The weight follows its input: torch makes an output channels_last where one of the two is."""
    return (input.dim() == 4 and not input.is_contiguous()
            and input.is_contiguous(memory_format=torch.channels_last))
