"""Trains a testbed model from nothing: drawn scenes, VAE, text encoders and denoiser on cached latents, pipeline.

    python benchmarks/scenes/train_testbed.py --preset testbed -o out/testbed [--device cuda] [--minutes 9]
    python benchmarks/scenes/train_testbed.py --preset wide -o out/wide --device cuda
    python benchmarks/scenes/train_testbed.py --preset lcm --teacher out/wide/pipe -o out/lcm --device cuda
    python benchmarks/scenes/train_testbed.py --preset dit --teacher out/wide/pipe -o out/dit --device cuda

Writes pipe/ (diffusers, fp16), losses.png, samples.png and training.json; states/ make a killed run go on where it
was. `testbed` has the shipped model's sizes, `wide` channels that are multiples of 256, `lcm` is a few-step student of
a finished UNet, `dit` a transformer on the same captions (its VAE is the teacher's if one is given).
"""
from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])      # `scenes` is a package there

from alias import ROOT, machine  # noqa: E402

from scenes import alignment, classifier, objectives, pictures  # noqa: E402
from scenes.data import PROMPT_SEED, TEACHER_SEED, draw, scenes  # noqa: E402
from scenes.generate import PROMPTS, generate, held_out_prompts, load, quiet  # noqa: E402
from scenes.loop import AVERAGED, Paused, Run, SettingsError, average_of, train  # noqa: E402
from scenes.presets import (  # noqa: E402
    PRESETS,
    SHARD,
    make_denoiser,
    make_encoder,
    make_pipeline,
    make_vae,
    smoke,
    token_ids,
    tokenizer,
)

VAE_RATE, VAE_BATCH, GRID, STUDENT_GUIDANCE = 1e-3, 32, 24, 3.0


def main(argv: list[str] | None = None) -> int:
    """-> exit code: 0 done, 1 failed, 2 wrong arguments, 3 paused."""
    args = _arguments(argv)
    preset = replace(PRESETS[args.preset], **{name: getattr(args, name) for name in ("steps", "vae_steps", "batch",
                     "rate", "scenes") if getattr(args, name) is not None})
    preset = smoke(preset) if args.smoke else preset
    if preset.kind == "student" and not args.teacher:
        print("expected --teacher with the pipeline folder of a finished UNet for the preset lcm, got none",
              file=sys.stderr)
        return 2
    started, device = time.monotonic(), torch.device(args.device)
    torch.manual_seed(args.seed)
    quiet()
    run = Run(args.out / "states", device, started + args.minutes * 60,
              {**asdict(preset), "seed": args.seed, "teacher": str(args.teacher)})
    try:
        pipe, losses = make(preset, args, run)
    except Paused as pause:
        print(pause)
        return 3
    except (SettingsError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 1
    finish(pipe, preset, losses, args, time.monotonic() - started)
    return 0


def _arguments(argv: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="pipeline folder: the student's teacher, or whose VAE to use")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="pause after so long; the same call goes on")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps of everything")
    for name, kind in (("steps", int), ("vae-steps", int), ("batch", int), ("scenes", int), ("rate", float)):
        parser.add_argument(f"--{name}", type=kind)
    return parser.parse_args(argv)


def make(preset, args, run: Run):
    """-> the trained fp32 pipeline and the loss curves of its stages."""
    drawn, attributes = draw(TEACHER_SEED, preset.scenes, cache=ROOT / "out" / "scenes", workers=args.workers)
    captions = [scenes.caption(one) for one in attributes]
    if preset.kind == "student":
        return make_student(preset, args, run, drawn, captions)
    losses, words = {}, tokenizer()
    if args.teacher:
        vae = load(args.teacher).vae.to(run.device)
    else:
        vae, losses["vae"] = make_trained_vae(preset, drawn, run)
    latents = _scaled_latents(vae, drawn, run.device, fresh="vae" in losses, flow=preset.kind == "dit")
    encoders = [make_encoder(preset.text[0], preset.kind == "dit", words), make_encoder(preset.text[1], True, words)]
    pipe = make_pipeline(preset, words, vae, encoders, make_denoiser(preset)).to(run.device)
    modules = nn.ModuleDict({"text_encoder": encoders[0], "text_encoder_2": encoders[1],
                             "denoiser": pipe.transformer if preset.kind == "dit" else pipe.unet}).train()
    padding = pipe.encode_prompt("", "", "")[0].shape[1] - words.model_max_length if preset.kind == "dit" else 0
    loss = objectives.denoiser_loss(preset, _data(latents, words, captions, preset.batch, run.device), padding)
    average, losses["denoiser"] = train("denoiser", modules, loss, preset.steps, preset.rate, run, preset.ema)
    return make_pipeline(preset, words, vae, [average["text_encoder"], average["text_encoder_2"]],
                         average["denoiser"]), losses


def make_trained_vae(preset, drawn: torch.Tensor, run: Run):
    """-> the VAE and its loss curve."""
    modules = nn.ModuleDict({"vae": make_vae().to(run.device)}).train()
    loss = objectives.vae_loss(drawn.to(run.device), min(VAE_BATCH, preset.batch))
    average, curve = train("vae", modules, loss, preset.vae_steps, VAE_RATE, run, preset.ema)
    return average["vae"], curve


def make_student(preset, args, run: Run, drawn: torch.Tensor, captions: list[str]):
    """The teacher's UNet trained to reach its 50-step guided result in a few steps, with LCM's scheduler."""
    from diffusers import LCMScheduler

    teacher = load(args.teacher).to(run.device)
    for part in (teacher.unet, teacher.text_encoder, teacher.text_encoder_2):
        part.requires_grad_(False).eval()
    latents = _scaled_latents(teacher.vae, drawn, run.device)
    modules = average_of(nn.ModuleDict({"denoiser": teacher.unet})).requires_grad_(True).train()
    target = average_of(modules)
    data = _data(latents, teacher.tokenizer, captions, preset.batch, run.device)
    loss = objectives.consistency_loss(teacher, data, STUDENT_GUIDANCE, target)
    average, curve = train("student", modules, loss, preset.steps, preset.rate, run, preset.ema, average=target)
    teacher.register_modules(unet=average["denoiser"], scheduler=LCMScheduler.from_config(
        teacher.scheduler.config, original_inference_steps=1000 // objectives.SKIP))
    return teacher, {"student": curve}


@torch.no_grad()
def _scaled_latents(vae, drawn: torch.Tensor, device, fresh: bool = False, flow: bool = False) -> torch.Tensor:
    """-> latents [n, 4, 16, 16] of spread 1. A fresh VAE's scaling factor is set, and a flow's shift (SD 3's)."""
    latents = torch.cat([vae.encode(batch.to(device).float() / 127.5 - 1).latent_dist.mode()
                         for batch in drawn.split(256)])
    if fresh:
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
    if flow:
        vae.register_to_config(shift_factor=float(latents.mean()))
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def _data(latents: torch.Tensor, words, captions: list[str], batch: int, device) -> objectives.Data:
    return objectives.Data(latents, token_ids(words, captions).to(device), token_ids(words, [""]).to(device), batch)


def finish(pipe, preset, losses: dict, args, seconds: float) -> None:
    """Store the pipeline in fp16 and draw held-out prompts with what was stored."""
    out = args.out
    pipe.to("cpu", torch.float16).save_pretrained(out / "pipe", max_shard_size=SHARD)
    pictures.curve(losses, out / "losses.png", AVERAGED)
    prompts = held_out_prompts(8 if args.smoke else PROMPTS)
    steps, guidance = preset.sampling
    images = generate(load(out / "pipe").to(args.device), prompts, steps, guidance)
    pictures.grid(images[:GRID], out / "samples.png")
    denoiser = pipe.transformer if preset.kind == "dit" else pipe.unet
    files = {path.relative_to(out).as_posix(): path.stat().st_size
             for path in sorted((out / "pipe").rglob("*.safetensors"))}
    report = {"preset": args.preset, "smoke": args.smoke, "steps": preset.steps, "vae_steps": preset.vae_steps,
              "denoiser_parameters": sum(p.numel() for p in denoiser.parameters()), "files": files,
              "seconds_of_this_call": round(seconds), "sampling": {"steps": steps, "guidance": guidance},
              "held_out": {"seed": PROMPT_SEED, "prompts": len(prompts)}, "alignment": _alignment(images, prompts),
              "machine": machine()}
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{out}: {report['denoiser_parameters'] / 1e6:.1f} M parameters, largest file "
          f"{max(files.values()) / 2**20:.1f} MiB, together {sum(files.values()) / 2**20:.1f} MiB, "
          f"alignment {report['alignment']}")


def _alignment(images: torch.Tensor, prompts: list[str]) -> dict | None:
    """The grid's score against perfect pictures; None where the classifier has not been trained."""
    if not classifier.WEIGHTS.is_file():
        return None
    result = alignment.score(images, prompts)
    return {name: round(result[name], 4) for name in ("match", "chance", "score", "all_right")}


if __name__ == "__main__":
    raise SystemExit(main())
