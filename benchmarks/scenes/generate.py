"""Pictures of held-out prompts by any testbed pipeline, each with its own noise; run as a script, its score as a row.

    python benchmarks/scenes/generate.py [FOLDER ...] [--prompts 64] [--steps 12] [--guidance 3] [--json FILE]
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])      # `scenes` is a package there

from alias import load_vqpack, machine  # noqa: E402

from scenes import alignment  # noqa: E402
from scenes.data import PROMPT_SEED, TESTBED, scenes  # noqa: E402

load_vqpack()
from vqpack.vq_core.pipeline import quiet  # noqa: E402

PROMPTS, NOISE_SEED, BATCH, SIDE = 64, 1000, 16, 64


def held_out_prompts(count: int = PROMPTS) -> list[str]:
    """The first `count` captions of a seed that nothing was trained on."""
    return [scenes.scene(PROMPT_SEED, index, size=8)[1] for index in range(count)]


def load(folder: Path):
    """A diffusers pipeline in fp32, read from local files only; one for Stable Diffusion 3 has no T5."""
    from diffusers import DiffusionPipeline

    quiet()
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    absent = {"text_encoder_3": None, "tokenizer_3": None} if kind == "StableDiffusion3Pipeline" else {}     # no T5
    pipe = DiffusionPipeline.from_pretrained(str(folder), low_cpu_mem_usage=False, local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)


@torch.no_grad()
def generate(pipe, prompts: list[str], steps: int, guidance: float, seed: int = NOISE_SEED) -> torch.Tensor:
    """-> [n, 3, 64, 64] of 0..1 on the CPU; prompt i starts from the noise of seed + i, in every model the same."""
    sizes = {"original_size": (SIDE, SIDE), "target_size": (SIDE, SIDE)} if hasattr(pipe, "unet") else {}
    noise = torch.cat([torch.randn(1, 4, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(seed + i))
                       for i in range(len(prompts))])
    made = [pipe(prompt=prompts[first:first + BATCH], height=SIDE, width=SIDE, num_inference_steps=steps,
                 guidance_scale=guidance, latents=noise[first:first + BATCH].to(pipe.device), output_type="pt",
                 generator=torch.Generator().manual_seed(seed + first), **sizes).images.float().cpu()
            for first in range(0, len(prompts), BATCH)]
    return torch.nan_to_num(torch.cat(made)).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="pipelines; the first is the teacher (default: testbed)")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts, teacher, rows = held_out_prompts(args.prompts), None, []
    for folder in args.folders or [TESTBED / "pipe"]:
        started = time.monotonic()
        row = alignment.score(generate(load(folder), prompts, args.steps, args.guidance), prompts, teacher)
        teacher = teacher or row
        rows.append({"pipeline": folder.name, "prompts": len(prompts), "steps": args.steps, "guidance": args.guidance,
                     **row, "machine": machine()})
        kinds = ", ".join(f"{kind} {value['match']:.3f}" for kind, value in row["kinds"].items())
        print(f"{folder.name}: {len(prompts)} prompts, {args.steps} steps: match {row['match']:.3f}, chance "
              f"{row['chance']:.3f}, score {row['score']:.3f}, all right {row['all_right']:.3f} ({kinds}), "
              f"{time.monotonic() - started:.0f} s", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
