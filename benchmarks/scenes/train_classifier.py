"""Trains the attribute classifier on drawn scenes and writes its weights and held-out accuracy.

    python benchmarks/scenes/train_classifier.py [--scenes 8000] [--epochs 14] [--threads 1]

Generated pictures are blurred, bent and noisy, so half of the training pictures come out of the testbed's VAE with
noise on their latents, and all are blurred, shifted, mirrored and changed in brightness. Deterministic on one machine.
"""
from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])      # `scenes` is a package there

from alias import ROOT, machine  # noqa: E402

from scenes import classifier  # noqa: E402
from scenes.data import CLASSIFIER_SEED, GROUPS, HELD_OUT_SEED, TESTBED, draw, labels, mirrored  # noqa: E402

HELD_OUT, BATCH, RATE, DECAY, DROPOUT = 400, 64, 3e-3, 0.05, 0.1
LATENT_NOISE, PIXEL_NOISE, LIGHT, SHIFT = 0.35, 0.05, 0.08, 2      # most: of latents' spread, of 1, of 1, pixels
CACHE = ROOT / "out" / "scenes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--reconstructed", type=int, default=2000, help="of them also through the VAE")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=classifier.WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started, vae = time.monotonic(), load_vae()
    pictures, attributes = draw(CLASSIFIER_SEED, args.scenes, cache=CACHE)
    rebuilt = reconstruct(vae, pictures[:args.reconstructed], LATENT_NOISE, progress=True)
    print(f"{args.scenes} scenes ready in {time.monotonic() - started:.0f} s", flush=True)
    net = train(pictures, rebuilt, labels(attributes), args.epochs)
    size = classifier.save(net, args.out)
    classifier.load.cache_clear()
    write_report(classifier.load(args.out), vae, args, size, time.monotonic() - started)


def load_vae():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(TESTBED / "pipe" / "vae", low_cpu_mem_usage=False, torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


@torch.inference_mode()
def reconstruct(vae, pictures: torch.Tensor, noise: float = 0.0, progress: bool = False) -> torch.Tensor:
    """uint8 [n, 3, 64, 64] through the VAE -> the same; `noise` is the most added to a picture's latents."""
    generator, out = torch.Generator().manual_seed(0), []
    for batch in pictures.split(50):
        latents = vae.encode(batch.float() / 127.5 - 1).latent_dist.mode()                  # [b, 4, 16, 16]
        level = torch.rand(len(batch), 1, 1, 1, generator=generator) * noise / vae.config.scaling_factor
        latents = latents + level * torch.randn(latents.shape, generator=generator)
        out.append(((vae.decode(latents).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        if progress and len(out) % 10 == 0:
            print(f"reconstructed {len(out) * 50} of {len(pictures)}", flush=True)
    return torch.cat(out) if out else pictures[:0]


def train(pictures: torch.Tensor, rebuilt: torch.Tensor, wanted: torch.Tensor, epochs: int) -> classifier.Net:
    """Cross-entropy over all attributes, AdamW, warm-up and cosine; order and augmentation from one generator."""
    torch.manual_seed(0)
    net, random = classifier.Net().train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    steps = epochs * (len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2 + 1e-3)
    for epoch in range(epochs):
        started, losses = time.monotonic(), []
        for chosen in torch.randperm(len(pictures), generator=random).split(BATCH):
            if len(chosen) == BATCH:
                loss = _loss(net, *batch_of(pictures, rebuilt, wanted, chosen, random))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
        print(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.4f}, "
              f"{time.monotonic() - started:.0f} s", flush=True)
    return net.eval()


def batch_of(pictures, rebuilt, wanted, chosen, random) -> tuple[torch.Tensor, torch.Tensor]:
    """Augmented pictures 0..1 and their labels; half of those that went through the VAE come from there."""
    images, target = pictures[chosen], wanted[chosen]
    through = (chosen < len(rebuilt)) & (torch.rand(len(chosen), generator=random) < 0.5)
    images[through] = rebuilt[chosen[through]]
    images = augment(images.float() / 255, random)
    flipped = torch.rand(len(chosen), generator=random) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images, torch.where(flipped[:, None], mirrored(target), target)


def augment(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Shifted by up to SHIFT pixels, mixed with its blurred self, changed in brightness, with noise."""
    def level(most):
        return torch.rand(len(images), 1, 1, 1, generator=random) * most

    dy, dx = torch.randint(2 * SHIFT + 1, (2,), generator=random).tolist()
    images = F.pad(images, (SHIFT,) * 4, mode="replicate")[:, :, dy:dy + 64, dx:dx + 64]
    line = torch.tensor([1., 4, 6, 4, 1]) / 16
    kernel = (line[:, None] * line[None]).expand(3, 1, 5, 5)
    images = torch.lerp(images, F.conv2d(F.pad(images, (2,) * 4, mode="replicate"), kernel, groups=3), level(1))
    images = images * (1 - LIGHT + level(2 * LIGHT)) + (level(LIGHT) - LIGHT / 2)
    return (images + level(PIXEL_NOISE) * torch.randn(images.shape, generator=random)).clamp(0, 1)


def _loss(net, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return sum(F.cross_entropy(logits, wanted[:, i], ignore_index=-1)
               for i, logits in enumerate(net(images, dropout=DROPOUT)))


def accuracy(net, pictures: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """Share right per attribute (second objects where there are any), and of pictures with everything right."""
    right, there = classifier.predicted(pictures.float() / 255, net) == wanted, wanted >= 0
    shares = {name: float((right & there)[:, i].sum() / there[:, i].sum()) for i, name in enumerate(GROUPS)}
    shares["everything"] = float(right.all(1).double().mean())
    return {name: round(share, 4) for name, share in shares.items()}


def write_report(net, vae, args, size: int, seconds: float) -> None:
    """Held-out accuracy of the stored fp16 weights, printed and written next to them."""
    pictures, attributes = draw(HELD_OUT_SEED, HELD_OUT, cache=CACHE)
    wanted = labels(attributes)
    shares = {"drawn": accuracy(net, pictures, wanted),
              "reconstructed by the testbed's VAE": accuracy(net, reconstruct(vae, pictures), wanted)}
    report = {"held_out": {"seed": HELD_OUT_SEED, "scenes": HELD_OUT, "accuracy": shares},
              "training": {"seed": CLASSIFIER_SEED, "scenes": args.scenes, "reconstructed": args.reconstructed,
                           "epochs": args.epochs, "seconds": round(seconds)},
              "parameters": sum(p.numel() for p in net.parameters()), "bytes": size, "machine": machine()}
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    for name in shares["drawn"]:
        print(f"{name:12} " + "  ".join(f"{kind}: {rows[name]:.3f}" for kind, rows in shares.items()), flush=True)
    print(f"{args.out.name}: {size / 1e6:.2f} MB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
