"""A coded Linear layer with int8 activations: an int8 product where codes are int8, emulated where they are not.

Both round the same values to the same grid (grids.symmetric); they differ by the rounding of sums, and of a value that
lies on the edge between two integers.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ...kernels import int8_linear
from ...kernels.dispatch import BackendError
from ..errors import PlanError
from ..inspection import json_field
from ..layers import VQLinear
from ..scratch_pool import POOL, decoded, may_lend
from ..weight import CodedWeight
from .grids import symmetric
from .points import find_points
from .rotated import coded_range
from .specs import Activations, KeepSpec, TokenSpec, activations_from_json, make_activations

FROM_FILE = "file"                         # what the file's plan says


def chosen(choice: str | None, metadata: Mapping[str, str]) -> Activations | None:
    """What a loader is asked for: a preset's name, "none" or None, or FROM_FILE with a file's metadata -> settings.

    PlanError for names that are not known, and for settings that a loaded model cannot follow.
    """
    if choice == FROM_FILE:
        plan = json_field(metadata, "vqpack.plan", {})
        data = plan.get("activations") if isinstance(plan, dict) else None
        settings = None if data is None else activations_from_json(data)
    else:
        settings = make_activations(choice or "none")
    if settings is not None and not _in_each_call(settings):
        raise PlanError("these activations need statistics of the model or change attention, which loading does not "
                        "do: expected int8, int6 or none; vq_core.activations emulates all others")
    return settings


def linear_spec(settings: Activations | None, key: str) -> TokenSpec | None:
    """What becomes of the input of the Linear layer whose weight has this LDM key; None: it is kept."""
    spec = KeepSpec() if settings is None else settings.spec_for(key)
    return spec if isinstance(spec, TokenSpec) else None


def _in_each_call(settings: Activations) -> bool:
    kinds = [settings.inputs, *(spec for _, spec in (*settings.rules, *settings.layers))]
    kept = isinstance(settings.attention, KeepSpec) and settings.scores.method == "keep"
    return kept and all(isinstance(spec, KeepSpec | TokenSpec) for spec in kinds)


def multiply_in_int8(unet: nn.Module, settings: Activations, keep: bool = False) -> int:
    """Give the coded Linear layers of diffusers' UNet an Int8Product where settings round their input -> how many."""
    count = 0
    for point in find_points(unet):
        module, spec = unet.get_submodule(point.module), linear_spec(settings, point.key)
        if point.side == "input" and isinstance(module, VQLinear) and spec is not None:
            module.product, count = Int8Product(spec, keep), count + 1
    return count


class Int8Product:
    """Takes the place of a coded Linear layer's product: its input rounded by token.

    keep: the decoded integers stay with it, a byte a weight, once the first call has decoded them.
    """

    def __init__(self, spec: TokenSpec, keep: bool = False):
        self.spec, self.keep, self.integers = spec, keep, None

    def __call__(self, x: torch.Tensor, coded: CodedWeight, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> [..., out] in x's dtype."""
        held = self.integers
        if self.keep and (held is None or held.device != coded.device):
            exact = why_emulated(coded, x.dtype, self.spec.bits, self.spec.rotated) is None
            held = self.integers = decode_integers(coded) if exact else None
        return int8_product(x, coded, bias, self.spec, held)


def why_emulated(coded: CodedWeight, dtype: torch.dtype, bits: int = 8, rotated: bool = True) -> str | None:
    """Why there is no int8 product with this weight here; None where there is one."""
    if len(coded.shape) != 2:
        return "it is no Linear layer"
    for _, _, _, part in coded.parts:
        if not rotated and (part.rotation or part.scales.col is not None):
            return "its codes are rotated or have column scales, and the activations are not to be"
        try:
            int8_linear.choose(part, dtype, bits)
        except BackendError as error:
            return str(error)
    return None


def int8_product(x: torch.Tensor, coded: CodedWeight, bias: torch.Tensor | None, spec: TokenSpec,
                 integers: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in] with its tokens rounded as spec says, times a coded Linear weight -> [..., out] in x's dtype.

    integers: what decode_integers gave, None decodes them in this call. A low-rank branch sees x as it is.
    """
    if why_emulated(coded, x.dtype, spec.bits, spec.rotated) is not None:
        return emulated_product(x, coded, bias, spec)
    if integers is not None:
        y = _summed(x, coded, bias, spec.bits, integers)
    elif not may_lend():
        y = _summed(x, coded, bias, spec.bits, decode_integers(coded))
    else:
        with POOL.lend(coded.numel, torch.int8, coded.device) as memory:
            y = _summed(x, coded, bias, spec.bits, decode_integers(coded, memory))
    return y if coded.branch is None else _add_branch(y, x, coded)


def emulated_product(x: torch.Tensor, coded: CodedWeight, bias: torch.Tensor | None, spec: TokenSpec) -> torch.Tensor:
    """The same in floating point: the rounded x times the decoded weight. A low-rank branch sees x as it is."""
    rounded = rounded_input(x, coded, spec)
    with decoded(coded, x.dtype) as weight:
        y = F.linear(rounded, weight, None if bias is None else bias.to(x.dtype))
    if coded.branch is not None:           # the decoded weight has it, and was given the rounded x
        y = _add_branch(y, x - rounded, coded)
    return y


def rounded_input(x: torch.Tensor, coded: CodedWeight, spec: TokenSpec) -> torch.Tensor:
    """x [..., in] on the grid of each token and column range, in x's dtype."""
    pieces = []
    for start, stop, _, part in coded.parts:
        into, piece = coded_range(start, stop, part), x[..., start:stop].float()
        if not spec.rotated:
            pieces.append(symmetric(piece, spec.bits, (-1,)))
            continue
        pieces.append(into.back(symmetric(into.into(piece), spec.bits, (-1,))))
    return torch.cat(pieces, -1).to(x.dtype)


def decode_integers(coded: CodedWeight, memory: torch.Tensor | None = None) -> torch.Tensor:
    """A Linear weight's codes as int8 [out, in], into memory [out * in] where it is given."""
    if memory is None:
        memory = torch.empty(coded.numel, dtype=torch.int8, device=coded.device)
    matrix = memory.view(coded.shape)                                               # [out, in]
    coded.decode_into(matrix[:, None, :])
    return matrix


def _summed(x, coded: CodedWeight, bias, bits: int, integers: torch.Tensor) -> torch.Tensor:
    """One product for each column range; the first brings the bias."""
    y = None
    for start, stop, _, part in coded.parts:
        term = int8_linear.int8_linear(x[..., start:stop], part, bias if y is None else None, bits,
                                       integers[:, start:stop])
        y = term if y is None else y.add_(term)
    return y


def _add_branch(y: torch.Tensor, x: torch.Tensor, coded: CodedWeight) -> torch.Tensor:
    down, up = coded.branch                                                         # [rank, in], [out, rank]
    return y + (x @ down.to(x).t()) @ up.to(x).t()
