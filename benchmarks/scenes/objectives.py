"""What each model is trained on: reconstruction, noise with min-SNR weights, flow, and consistency with a teacher.

Every loss takes the trained modules and a seeded generator on the CPU, so a resumed run repeats an unbroken one.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .presets import BETAS, DROPPED, Preset

KL, EDGES = 1e-6, 0.5                  # weights beside the absolute error of pixels
MIN_SNR = 5.0                          # Hang et al. 2023, gamma
SKIP, SIGMA_DATA, TIME_SCALE, HUBER = 20, 0.5, 10.0, 1e-3      # Luo et al. 2023 (LCM): 50-step grid, boundary, loss


@dataclass
class Data:
    """What the losses draw from, on the training device."""

    latents: torch.Tensor              # [n, 4, 16, 16], scaled
    ids: torch.Tensor                  # [n, 40]
    empty: torch.Tensor                # [1, 40], the empty prompt
    batch: int


def alphas_cumprod(device) -> torch.Tensor:
    """SDXL's noise schedule, [1000]."""
    betas = torch.linspace(BETAS["beta_start"]**0.5, BETAS["beta_end"]**0.5, 1000, dtype=torch.float64)**2
    return torch.cumprod(1 - betas, 0).float().to(device)


def encode_text(encoders: nn.ModuleDict, ids: torch.Tensor, both_pooled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """-> states [b, 40, sum of widths] before the last layer, pooled [b, last width] (or of both encoders)."""
    said = [encoders[name](ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    pooled = [one.text_embeds for one in (said if both_pooled else said[1:])]
    return torch.cat([one.hidden_states[-2] for one in said], -1), torch.cat(pooled, -1)


def unet_noise(unet, latents, times, states, pooled) -> torch.Tensor:
    """SDXL's call with the testbed's size ids."""
    sizes = latents.new_tensor([[64, 64, 0, 0, 64, 64]]).expand(len(latents), -1)
    return unet(latents, times, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample


def vae_loss(pictures: torch.Tensor, batch: int):
    """Absolute error of pixels and of their differences, with a small KL term; pictures uint8 on the device."""
    def loss(modules: nn.ModuleDict, random: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(pictures), (batch,), generator=random).to(pictures.device)
        images = pictures[chosen].float() / 127.5 - 1
        posterior = modules["vae"].encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=random).to(images.device)
        ours = modules["vae"].decode(posterior.mean + posterior.std * noise).sample
        error = ours - images
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + EDGES * edges + KL * posterior.kl().mean()
    return loss


def denoiser_loss(preset: Preset, data: Data, padding: int = 0):
    """Noise prediction of a UNet, min-SNR weighted; or velocity of a rectified flow for the transformer."""
    alphas = alphas_cumprod(data.latents.device)

    def unet_loss(modules: nn.ModuleDict, random: torch.Generator) -> torch.Tensor:
        clean, noise, ids = _drawn(data, random)
        times = torch.randint(1000, (data.batch,), generator=random).to(clean.device)
        ratio = alphas[times] / (1 - alphas[times])
        predicted = unet_noise(modules["denoiser"], _noised(clean, noise, alphas[times]), times,
                               *encode_text(modules, ids, both_pooled=False))
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return (error * ratio.clamp(max=MIN_SNR) / ratio).mean()

    def flow_loss(modules: nn.ModuleDict, random: torch.Generator) -> torch.Tensor:
        clean, noise, ids = _drawn(data, random)
        share = torch.randn(data.batch, generator=random).sigmoid().to(clean.device)      # logit-normal times
        mixed = torch.lerp(clean, noise, share[:, None, None, None])
        states, pooled = encode_text(modules, ids, both_pooled=True)
        states = F.pad(states, (0, 0, 0, padding))           # where the absent T5 would stand
        predicted = modules["denoiser"](mixed, states, pooled, share * 1000).sample
        return F.mse_loss(predicted.float(), noise - clean)

    return flow_loss if preset.kind == "dit" else unet_loss


def consistency_loss(teacher, data: Data, guidance: float, target: nn.ModuleDict):
    """Latent consistency: the student gives the same clean latents before and after one guided DDIM step.

    `target` is the student's moving average; guidance is part of what the student learns, it runs without.
    """
    alphas = alphas_cumprod(data.latents.device)
    encoders = nn.ModuleDict({name: getattr(teacher, name) for name in ("text_encoder", "text_encoder_2")})

    @torch.no_grad()
    def step(noisy, times, earlier, ids):
        said = encode_text(encoders, ids, both_pooled=False)
        blank = encode_text(encoders, data.empty.expand_as(ids), both_pooled=False)
        with_text = unet_noise(teacher.unet, noisy, times, *said).float()
        without = unet_noise(teacher.unet, noisy, times, *blank).float()
        noise = without + guidance * (with_text - without)
        stepped = _noised(_clean(noisy, noise, alphas[times]), noise, alphas[earlier])
        return said, consistent(target["denoiser"], stepped, earlier, said, alphas)

    def loss(modules: nn.ModuleDict, random: torch.Generator) -> torch.Tensor:
        clean, noise, ids = _drawn(data, random, dropped=0.0)
        times = (torch.randint(1, 1000 // SKIP + 1, (data.batch,), generator=random) * SKIP - 1).to(clean.device)
        noisy = _noised(clean, noise, alphas[times])
        said, wanted = step(noisy, times, (times - SKIP).clamp(min=0), ids)
        error = consistent(modules["denoiser"], noisy, times, said, alphas) - wanted
        return ((error.square() + HUBER**2).sqrt() - HUBER).mean()
    return loss


def consistent(unet, noisy, times, said, alphas) -> torch.Tensor:
    """The consistency function: the identity at time 0, the predicted clean latents elsewhere (LCMScheduler's)."""
    clean = _clean(noisy, unet_noise(unet, noisy, times, *said).float(), alphas[times])
    scaled = (times * TIME_SCALE).view(-1, 1, 1, 1)
    keep = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return keep * noisy + scaled / (scaled**2 + SIGMA_DATA**2).sqrt() * clean


def _drawn(data: Data, random: torch.Generator, dropped: float = DROPPED):
    """-> clean latents, noise, token ids of one batch, some prompts emptied."""
    device = data.latents.device
    chosen = torch.randint(len(data.latents), (data.batch,), generator=random).to(device)
    clean = data.latents[chosen]
    noise = torch.randn(clean.shape, generator=random).to(device)
    empty = (torch.rand(data.batch, 1, generator=random) < dropped).to(device)
    return clean, noise, torch.where(empty, data.empty, data.ids[chosen])


def _noised(clean, noise, alpha) -> torch.Tensor:
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def _clean(noisy, noise, alpha) -> torch.Tensor:
    alpha = alpha.view(-1, 1, 1, 1)
    return (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()
