"""A real ComfyUI samples a full-size file three ways and compares: stock loader, decode per call, decode at load.

usage: python comfyui_sdxl.py COMFYUI SMALL DECOMPRESSED [--steps 2 --size 128]     (with ComfyUI's own Python)

SMALL: a vqpack file; DECOMPRESSED: `vqpack decompress` of it (fp16), opened by the stock loader. Every way runs in a
process of its own, on the CPU in fp32, from the same noise, prompt and LoRA (random, rank 16, linear and convolution
layers, strength 0.7). Prints latents' relative difference to the stock loader and seconds per step, with and without
the LoRA; results go to benchmarks/results/comfyui_sdxl.json.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alias import RESULTS, load_vqpack, machine

WAYS = ("stock", "compressed", "decoded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("decompressed", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
    else:
        compare(args)


def compare(args) -> None:
    """Run the three ways and write the table."""
    import torch

    rows, latents = {}, {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for way in args.ways.split(","):
            out = Path(folder) / f"{way}.pt"
            process = subprocess.Popen([sys.executable, *sys.argv, "--child", way, "--out", str(out)], env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{way} failed with status {status}")
            saved = torch.load(out, weights_only=True)
            latents[way], rows[way] = saved.pop("latents"), {**saved, "peak_rss_bytes": usage.ru_maxrss * 1024}
            print(way, json.dumps(rows[way]), flush=True)
    for way in list(rows)[1:]:
        for name, ours in latents[way].items():
            stock = latents["stock"][name]
            rows[way][f"relative_difference_{name}"] = float((ours - stock).norm() / stock.norm())
        rows[way]["step_time_over_stock"] = rows[way]["seconds_per_step"] / rows["stock"]["seconds_per_step"]
        print(way, json.dumps(rows[way]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    settings = {"steps": args.steps, "size": args.size, "threads": args.threads}
    (RESULTS / "comfyui_sdxl.json").write_text(json.dumps({"machine": machine(), "settings": settings, **rows},
                                                          indent=1) + "\n")


def child(args) -> None:
    """One way in a ComfyUI of its own: load, sample, sample with the LoRA, save."""
    host = args.comfyui.resolve()
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, str(host))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import torch

    load_vqpack()
    with torch.inference_mode():
        started = time.monotonic()
        model, clip = load(args)
        load_seconds = time.monotonic() - started
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle left of a blue square"))
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        del clip
        plain, seconds = sample(model, positive, negative, args)
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora(model), 0.7, 0)
        with_lora, lora_seconds = sample(patched, positive, negative, args)
    torch.save({"latents": {"plain": plain, "lora": with_lora}, "load_seconds": round(load_seconds, 2),
                "seconds_per_step": round(seconds, 3), "seconds_per_step_lora": round(lora_seconds, 3)}, args.out)


def load(args):
    """-> (model patcher, clip)"""
    import comfy.sd

    if args.child == "stock":
        return comfy.sd.load_checkpoint_guess_config(str(args.decompressed), output_vae=False)[:2]
    from vqpack.nodes.loading import load_checkpoint

    return load_checkpoint(args.small, args.child)[:2]


def sample(model, positive, negative, args):
    """-> latents float32 [1, 4, size / 8, size / 8], seconds of the fastest step (the least disturbed)"""
    import comfy.sample
    import torch

    shape = [1, 4, args.size // 8, args.size // 8]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ticks = []
    latents = comfy.sample.sample(model, noise, args.steps + 1, 5.0, "euler", "normal", positive, negative,
                                  torch.zeros(shape), seed=1, disable_pbar=True,
                                  callback=lambda *_: ticks.append(time.monotonic()))
    return latents.float(), min(b - a for a, b in zip(ticks, ticks[1:]))


def lora(model) -> dict:
    """A random rank-16 LoRA in kohya's spelling for linear and 3x3 convolution layers of one block and the middle."""
    import torch

    generator, out = torch.Generator().manual_seed(2), {}
    for key in model.model.state_dict():
        name = key.removeprefix("diffusion_model.").removesuffix(".weight")
        chosen = "middle_block" in name or "output_blocks.1." in name or "input_blocks.7." in name
        if not key.endswith(".weight") or not chosen or ".norm" in name:
            continue
        layer = model.get_model_object(key)
        if layer.ndim not in (2, 4):
            continue
        rows, cols, taps = layer.shape[0], layer.shape[1], tuple(layer.shape[2:])
        prefix = "diffusion_model." + name
        out[f"{prefix}.lora_up.weight"] = 0.02 * torch.randn(rows, 16, *(1 for _ in taps), generator=generator)
        out[f"{prefix}.lora_down.weight"] = 0.02 * torch.randn(16, cols, *taps, generator=generator)
        out[f"{prefix}.alpha"] = torch.tensor(16.0)
    return out


if __name__ == "__main__":
    main()
