"""Pictures drawn by a model that learns: Euler's method in a model's own timesteps, no pipeline and no VAE needed."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..progress import Progress
from ..tuning.lessons import ADDED, TEXT, Batch
from .noise_levels import NoiseTable


@dataclass(frozen=True)
class Prompted:
    """What a UNet is told of a prompt, float32 on the CPU: text states, pooled ones, and those of no prompt."""

    text: torch.Tensor                     # [2, tokens, width], without the prompt and with it
    pooled: torch.Tensor                   # [2, width]
    time_ids: torch.Tensor                 # [6]

    @staticmethod
    @torch.no_grad()
    def of(pipe, prompt: str, size: tuple[int, int]) -> Prompted:
        """By a pipeline's text encoders. size: (height, width) in pixels."""
        text, empty, pooled, empty_pooled = pipe.encode_prompt(prompt, device=pipe.unet.device,
                                                               do_classifier_free_guidance=True)
        numbers = torch.tensor([*size, 0, 0, *size], dtype=torch.float32)
        return Prompted(torch.cat([empty, text]).float().cpu(), torch.cat([empty_pooled, pooled]).float().cpu(),
                        numbers)


class Sampler:
    """A schedule of noise. steps: of the sampler; guidance: 1 asks without the empty prompt."""

    def __init__(self, scheduler, name: str, steps: int, guidance: float, size: tuple[int, int]):
        scheduler.set_timesteps(steps)
        noise = NoiseTable.of(scheduler, name)
        self.times, self.guidance, self.size = scheduler.timesteps.float().cpu(), guidance, size
        self.sigmas = torch.cat([noise.sigmas(self.times).float(), torch.zeros(1)])          # [steps + 1]
        self.velocity = scheduler.config.get("prediction_type") == "v_prediction"

    @torch.no_grad()
    def draw(self, unet, prompts: Sequence[Prompted], seeds: Sequence[int], progress: Progress) -> torch.Tensor:
        """-> latents [n, 4, h, w] as the sampler has them, float32 on the CPU"""
        state = torch.stack([torch.randn(4, *self.size, generator=torch.Generator().manual_seed(seed))
                             for seed in seeds]) * (1 + self.sigmas[0]**2).sqrt()
        for time, sigma, after in zip(self.times, self.sigmas, self.sigmas[1:]):
            progress.check()
            sample = state / (1 + sigma**2).sqrt()
            said = self._asked(unet, prompts, sample, time)
            clean = (sample - sigma * said) / (1 + sigma**2).sqrt() if self.velocity else state - sigma * said
            state = clean + (state - clean) * (after / sigma)
        return state

    def _asked(self, unet, prompts: Sequence[Prompted], sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """What guidance makes of the halves [n, 4, h, w]"""
        halves = slice(1, 2) if self.guidance == 1 else slice(0, 2)
        count = 1 if self.guidance == 1 else 2
        fixed = {TEXT: torch.cat([p.text[halves] for p in prompts]),
                 f"{ADDED}text_embeds": torch.cat([p.pooled[halves] for p in prompts]),
                 f"{ADDED}time_ids": torch.stack([p.time_ids for p in prompts]).repeat_interleave(count, 0)}
        samples = sample.repeat_interleave(count, 0)                   # [n * halves, 4, h, w]
        batch = Batch(samples, time.expand(len(samples)), fixed, sample[:, None].expand(-1, count, -1, -1, -1),
                      time.expand(len(sample)))
        kind = unet.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" and torch.cuda.is_bf16_supported()):
            said = batch.ask(unet).float().cpu()                       # [n, halves, 4, h, w]
        return said[:, 0] if count == 1 else said[:, 0] + self.guidance * (said[:, 1] - said[:, 0])


class Preview:
    """The same prompts from the same noise, drawn again and again; what tuning's Looking asks for."""

    def __init__(self, sampler: Sampler, prompts: Sequence[Prompted], seed: int):
        self.sampler, self.prompts, self.seeds = sampler, list(prompts), [seed + i for i in range(len(prompts))]

    def by(self, unet, progress: Progress) -> torch.Tensor:
        """-> latents [prompts, 4, h, w]"""
        return self.sampler.draw(unet, self.prompts, self.seeds, progress)

    def by_teacher(self) -> None:
        """There is none."""
