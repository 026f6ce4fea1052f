"""What gpu_protocol.py measures, part by part; each yields rows of plain values.

ceilings, decode, linears, groups, convs, tokens: vqpack bench's. unet_512, unet_1024: one call of SDXL's UNet in fp16,
dense, ours, ours with int8 activations (integers decoded in each call, and kept), ours with a LoRA of rank 32 on a
third of the linear layers, ours with 1 GB of decoded weights kept; peak memory beside the formula that
`vqpack doctor` prints; the first picture of four steps against the second. unet_compiled: the dense one compiled.
text_share: the part of a call that goes into keys and values of the text, which are the same in every step. viterbi:
weights coded a second.
"""
from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn
from vqpack.vq_core import cost_model
from vqpack.vq_core.activations.int8 import multiply_in_int8
from vqpack.vq_core.activations.specs import make_activations
from vqpack.vq_core.bench import run as bench
from vqpack.vq_core.bench.timing import measure
from vqpack.vq_core.bench.unet import inputs, make_coded, random_unet
from vqpack.vq_core.layers import VQConv2d, VQLinear
from vqpack.vq_core.low_rank import LowRank, add_beside_, beside_is_cheaper
from vqpack.vq_core.spec import TrellisSpec

SPEC, RANK, KEPT, STEPS = TrellisSpec(3, rotation=128), 32, 1 << 30, 4
TINY_SPEC = TrellisSpec(3, rotation=16)


def rows(part: str, device: str, tiny: bool) -> Iterator[dict]:
    """The rows of one part."""
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    if part in bench.PARTS:
        settings = bench.Settings(device, dtype, 16 if tiny else 1, 0.02 if tiny else 0.1, (part,))
        yield from bench.run(settings)[part]
        return
    picture = {"unet_512": (512, 1), "text_share": (1024, 2), "unet_1024": (1024, 2), "unet_compiled": (1024, 2)}
    pixels, batch = (64, 1) if tiny else picture.get(part, (1024, 2))
    with torch.inference_mode():
        if part == "viterbi":
            yield from viterbi(device, tiny)
        elif part == "text_share":
            yield text_share(device, dtype, pixels, batch, tiny)
        elif part == "unet_compiled":
            yield compiled(device, dtype, pixels, batch, tiny)
        else:
            yield from unets(device, dtype, pixels, batch, tiny)


def unets(device: str, dtype: torch.dtype, pixels: int, batch: int, tiny: bool) -> Iterator[dict]:
    """Dense, then ours in its three ways; each guarded, for the dense one may not fit."""
    arguments = inputs(pixels, batch, device, dtype, tiny)
    ways = {"dense": lambda: random_unet(device, dtype, tiny), "ours": lambda: ours(device, dtype, tiny),
            "ours, int8": lambda: in_int8(ours(device, dtype, tiny)),
            "ours, int8, integers kept": lambda: in_int8(ours(device, dtype, tiny), keep=True),
            "ours, LoRA": lambda: with_lora(ours(device, dtype, tiny), dtype),
            "ours, 1 GB kept": lambda: ours(device, dtype, tiny, KEPT)}
    for way, make in ways.items():
        yield from bench.guarded(lambda way=way, make=make: [one_unet(way, make(), arguments, pixels, batch, tiny)])


def one_unet(way: str, unet: nn.Module, arguments: dict, pixels: int, batch: int, tiny: bool) -> dict:
    """Milliseconds of a call, peak bytes beside the formula, first picture and second."""
    device = arguments["sample"].device.type
    _start_of_peak(device)
    pictures = []
    for _ in range(2):
        started = time.perf_counter()
        for _ in range(1 if tiny else STEPS):
            out = unet(**arguments).sample
        out.sum().item()                   # waits
        pictures.append(round(time.perf_counter() - started, 4))
    took = measure(lambda x: unet(**x), [arguments], device, 0.01 if tiny else 2.0, 50)
    formula = memory(unet, pixels, batch, out.dtype.itemsize)
    return {"way": way, "pixels": pixels, "batch": batch, "ms": round(took.median * 1e3, 3),
            "ms_low": round(took.low * 1e3, 3), "ms_high": round(took.high * 1e3, 3), "pictures_seconds": pictures,
            "finite": bool(out.isfinite().all()), "peak_bytes": _peak(device), "formula_bytes": formula.peak,
            "formula": vars(formula)}


def compiled(device: str, dtype: torch.dtype, pixels: int, batch: int, tiny: bool) -> dict:
    """The dense UNet compiled: the baseline of those who compile."""
    arguments = inputs(pixels, batch, device, dtype, tiny)
    unet = torch.compile(random_unet(device, dtype, tiny), backend="eager" if tiny else "inductor")
    started = time.perf_counter()
    unet(**arguments)
    seconds = time.perf_counter() - started
    took = measure(lambda x: unet(**x), [arguments], device, 2.0, 50)
    return {"way": "dense, compiled", "pixels": pixels, "batch": batch, "ms": round(took.median * 1e3, 3),
            "compile_seconds": round(seconds, 1)}


def text_share(device: str, dtype: torch.dtype, pixels: int, batch: int, tiny: bool) -> dict:
    """Time of all attn2.to_k and to_v over that of a call: what a cache of them could save at most."""
    arguments, unet = inputs(pixels, batch, device, dtype, tiny), ours(device, dtype, tiny)
    layers = [m for name, m in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]

    def keys_and_values(context):
        for layer in layers:
            layer(context)

    long = 0.01 if tiny else 1.0
    alone = measure(keys_and_values, [arguments["encoder_hidden_states"]], device, long, 50)
    whole = measure(lambda x: unet(**x), [arguments], device, 2 * long, 50)
    return {"layers": len(layers), "ms": round(alone.median * 1e3, 3), "call_ms": round(whole.median * 1e3, 3),
            "share": round(alone.median / whole.median, 4)}


def viterbi(device: str, tiny: bool) -> Iterator[dict]:
    """Weights coded a second, data-free, 3 bits, on the shape with most of them; the first call compiles."""
    from vqpack.vq_core.encode import encode_weight

    rows_, cols = (64, 64) if tiny else (10240, 1280)
    weight = torch.randn(rows_, cols, generator=torch.Generator().manual_seed(0))
    for spec in (TINY_SPEC,) if tiny else (SPEC, TrellisSpec(2, rotation=128)):
        for number in range(2):
            started = time.perf_counter()
            coded = encode_weight(weight, spec, key="random", device=device)
            seconds = time.perf_counter() - started
            yield {"bits": spec.bits, "call": number, "seconds": round(seconds, 3), "weights": weight.numel(),
                   "relative_error": round(float(coded.relative_error), 5),
                   "sdxl_seconds": round(seconds * 2_567_000_000 / weight.numel(), 1)}


def ours(device: str, dtype: torch.dtype, tiny: bool, keep_bytes: int = 0) -> nn.Module:
    """Random codes in every layer a file codes."""
    return make_coded(random_unet(device, dtype, tiny), TINY_SPEC if tiny else SPEC, device, dtype, keep_bytes)


def in_int8(unet: nn.Module, keep: bool = False) -> nn.Module:
    """Its linear layers multiply in int8 (preset int8); keep: their integers stay, 2.2 GB of SDXL."""
    multiply_in_int8(unet, make_activations("int8"), keep)
    return unet


def with_lora(unet: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Rank 32 on every third linear layer, beside it or onto its weight as the formula has it."""
    linears = [module for module in unet.modules() if isinstance(module, VQLinear)]
    for layer in linears[::3]:
        options = {"device": layer.coded.device, "dtype": dtype}
        layer.register_forward_hook(_Lora(LowRank(
            torch.randn(layer.out_features, RANK, **options) / RANK,
            torch.randn(RANK, layer.in_features, **options) / layer.in_features**0.5, 0.7)))
    return unet


class _Lora:
    """A forward hook."""

    def __init__(self, term: LowRank):
        self.term = term

    def __call__(self, layer, inputs_, output):
        x = inputs_[0]
        if beside_is_cheaper([self.term], x[..., 0].numel(), x.dtype, x.device.type):
            return add_beside_(output, x, [self.term])
        weight = layer.coded.decode(x.dtype)
        weight += (self.term.scale * (self.term.up @ self.term.down)).type(x.dtype)
        return nn.functional.linear(x, weight, layer.bias)


def memory(unet: nn.Module, pixels: int, batch: int, itemsize: int) -> cost_model.SamplingMemory:
    """The formula of vq_core/sampling_memory.py on a model in memory."""
    coded = [m for m in unet.modules() if isinstance(m, VQConv2d | VQLinear)]
    codes = sum(m.coded.nbytes for m in coded)
    dense = sum(p.nbytes for p in unet.parameters())
    kept = sum(m.decoded.nbytes for m in coded if m.decoded is not None)
    kept += sum(m.coded.numel for m in coded if getattr(getattr(m, "product", None), "keep", False))
    largest = max((m.coded.numel for m in coded if m.decoded is None), default=0)
    scratch = cost_model.decode_scratch(largest, itemsize)
    return cost_model.SamplingMemory(codes + dense, scratch, kept, cost_model.activation_bytes(pixels, batch, itemsize))


def _start_of_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None

