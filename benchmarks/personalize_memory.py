"""SDXL's adapters in bytes, and the peak memory of one training step beside full fine-tuning and LoRA.

    python benchmarks/personalize.py --memory

One step on torch's meta device, one picture of 1024 x 1024, SDXL's shapes: every tensor an operation makes is counted
while something refers to it (activation_memory.py), gradients included. Added to that: weights as they are stored, and
12 bytes for each trained number (master and two moments). Computed in float16, blocks computed again in the backward
pass, attention keeps its inputs and result. LoRA: rank 16 beside every attention projection, frozen weights in float16.
Writes personalize_memory.csv.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from activation_memory import LiveBytes
from alias import load_vqpack, machine
from make_checkpoint import read_shapes
from sdxl_size import unet_size
from testbed_bench import write_csv
from torch import nn

load_vqpack()
from vqpack.vq_core.adapters.layer import Route, ScaledLayer  # noqa: E402
from vqpack.vq_core.arch import make_layers  # noqa: E402
from vqpack.vq_core.bench.unet import coded_names, inputs, random_unet  # noqa: E402
from vqpack.vq_core.layers import CHANNELS_LAST, CHANNELS_SECOND  # noqa: E402
from vqpack.vq_core.spec import make_spec  # noqa: E402

PIXELS, RANK, EXPERTS, BITS = 1024, 16, (1, 2, 4), 3
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
STATE = 12                                 # bytes of a trained number: master, two moments


def tell(out: Path) -> int:
    """Print and write."""
    shapes = read_shapes("base")
    coded = [layer for layer in make_layers(shapes) if layer.component == "unet" and not layer.dense]
    numbers = sum(layer.shape[0] + layer.shape[1] for layer in coded)
    for experts in EXPERTS:
        print(f"SDXL, {len(coded)} coded layers, {experts} experts: {2 * experts * numbers / 1e6:.1f} MB "
              f"({experts * numbers} float16 numbers)", flush=True)
    rows, here = [], machine()
    stored = {"full": 2 * sum(map(_numel, _unet(shapes))), "lora": 2 * sum(map(_numel, _unet(shapes))),
              "adapter": unet_size(shapes, make_spec("trellis", BITS))["bytes"]}
    for name, prepare in (("full", full), ("lora", lora), ("adapter", adapter)):
        trained, peak = step(prepare)
        total = stored[name] + STATE * trained + peak
        rows.append({"trained": name, "numbers": trained, "stored_bytes": stored[name], "state_bytes": STATE * trained,
                     "step_bytes": peak, "total_bytes": total, "machine": here["cpu"], "commit": here["commit"]})
        print(f"{name}: {trained / 1e6:.1f} M numbers trained, {total / 1e9:.2f} GB: weights {stored[name] / 1e9:.2f}, "
              f"masters and moments {STATE * trained / 1e9:.2f}, the step {peak / 1e9:.2f}", flush=True)
    write_csv(out / "personalize_memory.csv", rows)
    return 0


def step(prepare: Callable[[nn.Module], None]) -> tuple[int, int]:
    """-> (trained numbers, peak bytes of what one forward and backward pass make)"""
    unet = random_unet("meta", torch.float16).train()
    prepare(unet)
    unet.enable_gradient_checkpointing()
    trained = [p for p in unet.parameters() if p.requires_grad]
    with (mock.patch("torch.nn.functional.scaled_dot_product_attention", attention),
          LiveBytes([*unet.parameters(), *unet.buffers()]) as live):
        arguments = inputs(PIXELS, 1, "meta", torch.float16)
        unet(**arguments, return_dict=False)[0].sum().backward()
    missing = [p for p in trained if p.grad is None]
    assert not missing, f"{len(missing)} trained tensors got no gradient"
    return sum(p.numel() for p in trained), live.peak


def full(unet: nn.Module) -> None:
    """Everything."""
    unet.requires_grad_(True)


def lora(unet: nn.Module) -> None:
    """Rank RANK beside every attention projection."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(ATTENTION):
            parent, _, leaf = name.rpartition(".")
            setattr(unet.get_submodule(parent), leaf, Lora(module))


class Lora(nn.Module):
    """y = W x + up (down x)"""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        with torch.device("meta"):
            self.down = nn.Parameter(torch.empty(RANK, base.in_features, dtype=torch.float16))
            self.up = nn.Parameter(torch.empty(base.out_features, RANK, dtype=torch.float16))

    def forward(self, x: torch.Tensor, *args) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def adapter(unet: nn.Module) -> None:
    """One expert's scales of both sides: a step trains no other's."""
    route = Route()
    for name in coded_names(unet):
        parent, _, leaf = name.rpartition(".")
        setattr(unet.get_submodule(parent), leaf, Traced(unet.get_submodule(name), route))


class Traced(ScaledLayer):
    """A ScaledLayer whose weight is decoded to memory of the right size and nothing else."""

    def __init__(self, old: nn.Linear | nn.Conv2d, route: Route):
        nn.Module.__init__(self)
        self.route, self.bias, self.shape = route, old.bias, tuple(old.weight.shape)
        self.convolution = None
        if isinstance(old, nn.Conv2d):
            self.convolution = list(old.stride), list(old.padding), list(old.dilation), old.groups
        self.channels = CHANNELS_LAST if self.convolution is None else CHANNELS_SECOND
        with torch.device("meta"):
            self.out_logs, self.in_logs = (nn.ParameterList([nn.Parameter(torch.zeros(n))]) for n in self.shape[:2])

    def forward(self, x: torch.Tensor, *args) -> torch.Tensor:
        y = self.product(x)                # meta knows no autocast
        return y if self.bias is None else y + (self.bias if self.convolution is None else self.bias[:, None, None])

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(self.shape, dtype=dtype, device="meta")


class _Attention(torch.autograd.Function):
    """Flash attention's memory: inputs and result are kept, gradients of the inputs are made."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def attention(query, key, value, *args, **options):
    """In scaled_dot_product_attention's place."""
    return _Attention.apply(query, key, value)


def _unet(shapes: dict) -> list[tuple[int, ...]]:
    return [layer.shape for layer in make_layers(shapes) if layer.component == "unet"]


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


if __name__ == "__main__":
    from alias import RESULTS

    sys.exit(tell(RESULTS))
