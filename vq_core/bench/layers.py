"""One layer each way: dense, ours by each backend, LoRA beside and onto the weight, torch-op dequantization."""
from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from ...kernels import dispatch, int8_linear
from ...kernels.linear import coded_linear
from ..activations.int8 import decode_integers
from ..low_rank import LowRank, add_beside_
from ..scratch_pool import POOL
from ..spec import TrellisSpec
from ..weight import CodedWeight, shaped
from .baseline import random_blocks
from .decode_rates import backends
from .parts import random_weight
from .timing import Timing, copies_for, measure
from .workload import BATCH, RANK, ConvShape, LinearShape

SPEC = TrellisSpec(3, rotation=128)        # the default code with its rotation


def linear_rows(shape: LinearShape, settings, lora: bool = True) -> Iterator[dict]:
    """A row for each way, "dense" first; "over_dense" is its time over that one's."""
    x = torch.randn(shape.tokens, shape.in_features, device=settings.device, dtype=settings.dtype)
    term = _random_lora(shape, settings) if lora else None
    yield from _rows(shape, settings, x, F.linear, term)


def conv_rows(shape: ConvShape, settings) -> Iterator[dict]:
    """As linear_rows, with maps and weights in torch's own order and, again, in the order of channels."""
    x = torch.randn(BATCH, shape.in_channels, shape.side, shape.side, device=settings.device, dtype=settings.dtype)
    yield from _rows(shape, settings, x, _conv, None)
    yield from _rows(shape, settings, x.to(memory_format=torch.channels_last), _conv, None, "channels_last ")


def group_rows(shape: LinearShape, settings) -> Iterator[dict]:
    """q, k and v of one input: three products or one of three times the width, decoded one by one or in one launch."""
    x = torch.randn(shape.tokens, shape.in_features, device=settings.device, dtype=settings.dtype)
    weights = [random_weight(shape.shape, SPEC, seed, settings.device) for seed in range(3)]
    dense = [weight.decode(settings.dtype) for weight in weights]
    joined = torch.cat(dense)                                                       # [3 out, in]
    three = LinearShape(f"q, k, v: {shape.name}", shape.tokens, 3 * shape.out_features, shape.in_features, 0)
    ways = {"dense, three products": lambda x: [F.linear(x, weight) for weight in dense],
            "dense, one product": lambda x: F.linear(x, joined),
            "ours, three products": lambda x: [_decode_and(F.linear, x, weight, None, False) for weight in weights],
            "ours, one launch, one product": lambda x: _decode_together(x, weights)}
    base = None
    for way, call in ways.items():
        took = measure(call, [x], settings.device, settings.seconds)
        base = base or took
        yield _row(three, way, took, base)


def _decode_together(x: torch.Tensor, weights: list[CodedWeight]) -> torch.Tensor:
    with POOL.lend(sum(weight.numel for weight in weights), x.dtype, x.device) as memory:
        joined = memory.view(-1, x.shape[-1])                                       # [3 out, in]
        outs = joined.chunk(len(weights))
        dispatch.decode_group([weight.parts[0][3] for weight in weights], list(outs))
        return F.linear(x, joined)


def _conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=1)


def _rows(shape, settings, x, multiply: Callable, term: LowRank | None, prefix: str = "") -> Iterator[dict]:
    copies = copies_for(x.nbytes + 2 * x.shape[0] * shape.shape[0], settings.device)
    xs = [x, *(x.clone(memory_format=torch.preserve_format) for _ in range(copies - 1))]
    weight = random_weight(shape.shape, SPEC, 0, settings.device)
    memory = torch.channels_last if prefix else torch.contiguous_format
    dense = weight.decode(settings.dtype, memory_format=memory)
    base = None
    for way, call in _ways(x, weight, dense, multiply, term, bool(prefix)):
        took = measure(call, xs, settings.device, settings.seconds)
        base = base or took
        yield _row(shape, prefix + way, took, base)


def _ways(x, weight: CodedWeight, dense, multiply, term, channels_last: bool) -> Iterator[tuple[str, Callable]]:
    ready = backends(weight, x.dtype)
    yield "dense", lambda x: multiply(x, dense)
    for backend in ready:
        yield f"ours, {backend}", lambda x, backend=backend: _decode_and(multiply, x, weight, backend, channels_last)
    if term is not None:
        yield "dense, LoRA beside", lambda x: add_beside_(multiply(x, dense), x, [term])
        yield f"ours, {ready[0]}, LoRA beside", lambda x: add_beside_(
            _decode_and(multiply, x, weight, ready[0], channels_last), x, [term])
        yield f"ours, {ready[0]}, LoRA onto", lambda x: multiply(
            x, _onto(weight.decode(x.dtype, backend=ready[0]), term))
    part = weight.part_to_fuse(x)
    if part is not None:
        yield "ours, fused", lambda x: coded_linear(x, part)
    if part is not None and term is not None:
        yield "ours, fused, LoRA beside", lambda x: add_beside_(coded_linear(x, part), x, [term])
    if len(weight.shape) == 2:
        yield from _int8_ways(weight, x.dtype)
    if not channels_last:
        blocks = random_blocks(tuple(weight.shape), str(x.device))
        yield "4-bit blocks by torch operations", lambda x: multiply(x, blocks.decode(x.dtype))


def _int8_ways(weight: CodedWeight, dtype: torch.dtype) -> Iterator[tuple[str, Callable]]:
    """x rounded by token: integers decoded in each call, and kept, a byte a weight; by every backend that is ready."""
    part, kept = weight.parts[0][3], decode_integers(weight)
    for known in int8_linear.BACKENDS:
        if known.requirements.refusal(part, dtype, known.module) is None:
            yield f"ours, int8, {known.name}", lambda x, name=known.name: _integers_and(x, weight, name)
            yield f"ours, int8, {known.name}, integers kept", lambda x, name=known.name: int8_linear.int8_linear(
                x, part, integers=kept, backend=name)


def _integers_and(x: torch.Tensor, weight: CodedWeight, backend: str) -> torch.Tensor:
    with POOL.lend(weight.numel, torch.int8, weight.device) as memory:
        return int8_linear.int8_linear(x, weight.parts[0][3], integers=decode_integers(weight, memory), backend=backend)


def _decode_and(multiply, x, weight: CodedWeight, backend: str | None, channels_last: bool) -> torch.Tensor:
    """Decode into lent memory, multiply."""
    with POOL.lend(weight.numel, x.dtype, weight.device) as memory:
        matrix = weight.decode_matrix(x.dtype, backend=backend, out=memory.view(weight.shape[0], -1))
        view = shaped(matrix, weight.shape)
        return multiply(x, view if channels_last else view.contiguous())


def _onto(weight: torch.Tensor, term: LowRank) -> torch.Tensor:
    """LoRA added to the decoded weight as ComfyUI does it."""
    weight += (term.scale * (term.up @ term.down)).type(weight.dtype)
    return weight


def _random_lora(shape: LinearShape, settings) -> LowRank:
    options = {"device": settings.device, "dtype": settings.dtype}
    return LowRank(torch.randn(shape.out_features, RANK, **options) / RANK,
                   torch.randn(RANK, shape.in_features, **options) / shape.in_features**0.5, 0.7)


def _row(shape, way: str, took: Timing, base: Timing) -> dict:
    return {"shape": shape.name, "tokens": getattr(shape, "tokens", None), "weight": list(shape.shape),
            "count": shape.count, "way": way, **took.as_row(),
            "teraflops": round(shape.operations / took.median / 1e12, 3),
            "over_dense": round(took.median / base.median, 3)}
