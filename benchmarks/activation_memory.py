"""Peak bytes of activations in one call of SDXL's UNet, traced on torch's meta device: no weights, no computing.

    python benchmarks/activation_memory.py [--out benchmarks/results]

Every tensor an operation makes is counted while something refers to it; attention is counted as one operation that
makes its result only (flash or memory-efficient attention). What libraries take beside that is not in it. diffusers'
UNet; vq_core/cost_model.py holds the bytes for a latent pixel that come of it. Writes activation_memory.json.
"""
from __future__ import annotations

import argparse
import json
import weakref
from pathlib import Path
from unittest import mock

import torch
from alias import RESULTS, load_vqpack, machine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

load_vqpack()
from vqpack.vq_core.bench.unet import inputs, random_unet  # noqa: E402

CASES = ((1024, 2), (1024, 1), (768, 2), (512, 2), (512, 1))


class LiveBytes(TorchDispatchMode):
    """Counts storages that operations made, until nothing refers to them."""

    def __init__(self, ignored):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in ignored}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


def attention(query, key, value, *args, **options):
    """Its result only."""
    return torch.empty_like(query)


def traced(pixels: int, batch: int) -> int:
    """Peak bytes of one call in fp16."""
    unet, arguments = random_unet("meta", torch.float16), inputs(pixels, batch, "meta", torch.float16)
    with (torch.inference_mode(), mock.patch("torch.nn.functional.scaled_dot_product_attention", attention),
          LiveBytes([*unet.parameters(), *unet.buffers()]) as live):
        unet(**arguments)
    return live.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for pixels, batch in CASES:
        peak = traced(pixels, batch)
        rows.append({"pixels": pixels, "batch": batch, "peak_bytes": peak,
                     "bytes_per_latent_pixel": peak / (batch * (pixels // 8) ** 2)})
        print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "activation_memory.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
