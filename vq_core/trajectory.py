"""The way from noise to picture: the same noise for every model, and two models' predictions on the teacher's states.

Works on diffusers' StableDiffusionXLPipeline objects by listening to them, so that prompts, guidance, samplers and VAE
are treated as the user's own call would treat them. What is returned is float32 on the CPU.
"""
from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .errors import PlanError, UnsupportedError
from .metrics import latent_psnr, noise_snr
from .progress import Progress

# Names as in ComfyUI -> diffusers' scheduler; "model": the pipeline's own.
SAMPLERS = {"model": None, "euler": "EulerDiscreteScheduler", "euler_ancestral": "EulerAncestralDiscreteScheduler",
            "ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler", "lcm": "LCMScheduler"}
# Names as in ComfyUI -> what changes in the scheduler's configuration; "model": nothing.
SCHEDULERS = {"model": {}, "normal": {"timestep_spacing": "linspace"}, "sgm_uniform": {"timestep_spacing": "trailing"},
              "ddim_uniform": {"timestep_spacing": "leading"}, "karras": {"use_karras_sigmas": True},
              "exponential": {"use_exponential_sigmas": True}, "beta": {"use_beta_sigmas": True}}
EDGES = (0, 250, 500, 750, 1000)           # of the timestep intervals, 1000 = pure noise
CONDITIONING = ("own", "teacher")


@dataclass(frozen=True)
class Settings:
    """How a trajectory is drawn. size: (height, width) in pixels."""

    steps: int
    guidance: float
    size: tuple[int, int]
    sampler: str
    scheduler: str = "model"


@dataclass(frozen=True)
class Trajectory:
    """n pictures and the way to them; row i belongs to prompts[i] and seeds[i]."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Settings
    initial: torch.Tensor                  # [n, 4, h, w], noise of unit variance
    timesteps: torch.Tensor                # [steps], from noise to picture
    steps: torch.Tensor                    # [steps, n, 4, h, w], latents after each step
    images: torch.Tensor                   # [n, 3, height, width], 0 to 1
    predictions: torch.Tensor              # [steps, halves, n, 4, h, w]; what the UNet said: without prompt, with it
    embeddings: dict[str, torch.Tensor]    # of the prompts, by the pipeline's argument names, [n, ...]
    prediction_type: str

    @property
    def latents(self) -> torch.Tensor:
        """The latents the pictures were decoded from [n, 4, h, w]."""
        return self.steps[-1]


@dataclass(frozen=True)
class NoisePair:
    """Two models' predictions on the same states. halves: without and with the prompt; only with it if unguided."""

    timesteps: torch.Tensor                # [steps]
    ours: torch.Tensor                     # [steps, halves, n, 4, h, w]
    teacher: torch.Tensor                  # [steps, halves, n, 4, h, w]

    def snr(self) -> torch.Tensor:
        """dB [steps, halves, n]"""
        steps, halves, n = self.ours.shape[:3]
        return noise_snr(self.ours.flatten(0, 2), self.teacher.flatten(0, 2)).reshape(steps, halves, n)


def sample(pipe, prompts: Sequence[str], seeds: Sequence[int], steps: int = 20, guidance: float = 5.0,
           size: tuple[int, int] = (1024, 1024), sampler: str = "model", batch: int = 1,
           progress: Progress | None = None, scheduler: str = "model", decode: bool = True) -> Trajectory:
    """Draw prompts[i] from the noise of seeds[i], one seed a prompt -> everything on the way.

    The noise is made on the CPU in float32, so it is the same for every model, device and dtype. size: (height,
    width). sampler: a key of SAMPLERS. batch: pictures at once; results equal to the last bit need the same batch.
    progress: advanced by one unit a picture. scheduler: a key of SCHEDULERS. decode: False saves the VAE's work,
    `images` are the last latents then. The pipeline is left as it was. Raises PlanError or UnsupportedError.
    """
    settings = Settings(steps, float(guidance), tuple(size), sampler, scheduler)
    _check(pipe, prompts, seeds, settings, batch)
    parts = [_draw(pipe, prompts[i:i + batch], seeds[i:i + batch], settings, progress, decode=decode)
             for i in range(0, len(prompts), batch)]
    return parts[0] if len(parts) == 1 else _joined(parts)


def noise_along(pipe, trajectory: Trajectory, conditioning: str = "own", batch: int = 1,
                progress: Progress | None = None) -> NoisePair:
    """Ask a model for its predictions on the states of the teacher's trajectory, step by step.

    conditioning: "own" uses the model's own text encoders, so the whole checkpoint is measured; "teacher" uses the
    trajectory's embeddings, so only the UNet is. batch as in sample.
    """
    if conditioning not in CONDITIONING:
        raise PlanError(f"conditioning must be 'own' or 'teacher', got '{conditioning}'")
    _check(pipe, trajectory.prompts, trajectory.seeds, trajectory.settings, batch)
    _check_same_kind(pipe, trajectory)
    said = []
    for first in range(0, len(trajectory.prompts), batch):
        rows = slice(first, first + batch)
        embeddings = {name: value[rows] for name, value in trajectory.embeddings.items()}
        part = _draw(pipe, trajectory.prompts[rows], trajectory.seeds[rows], trajectory.settings, progress,
                     along=trajectory.steps[:, rows], embeddings=embeddings if conditioning == "teacher" else None)
        if not torch.equal(part.timesteps, trajectory.timesteps):
            raise UnsupportedError("the model's schedule has other timesteps than the teacher's: choose the same "
                                   "sampler for both by name")
        said.append(part.predictions)
    return NoisePair(trajectory.timesteps, torch.cat(said, 2), trajectory.predictions)


def latent_psnr_along(ours: Trajectory, teacher: Trajectory) -> torch.Tensor:
    """latent_psnr after each step, dB [steps, n]."""
    if ours.steps.shape != teacher.steps.shape:
        raise PlanError(f"trajectories to compare must have one shape [steps, pictures, ...], got "
                        f"{list(ours.steps.shape)} and {list(teacher.steps.shape)}: draw both with the same settings")
    return torch.tensor([[latent_psnr(a, b) for a, b in zip(*rows)] for rows in zip(ours.steps, teacher.steps)],
                        dtype=torch.float64)


def by_interval(values: torch.Tensor, timesteps: torch.Tensor,
                edges: Sequence[float] = EDGES) -> dict[tuple[float, float], torch.Tensor]:
    """Values [steps, ...] -> their mean over the steps of each interval low <= timestep < high; empty ones left out."""
    groups = {}
    for low, high in zip(edges, edges[1:]):
        inside = (timesteps >= low) & (timesteps < high)
        if inside.any():
            groups[low, high] = values[inside].mean(0)
    return groups


def _check(pipe, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, batch: int) -> None:
    if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
        raise PlanError(f"sampling needs a list of prompts and one seed for each, got {len(prompts)} prompts and "
                        f"{len(seeds)} seeds: repeat a prompt to draw it from several seeds")
    if settings.sampler not in SAMPLERS:
        raise PlanError(f"unknown sampler '{settings.sampler}': expected one of {', '.join(SAMPLERS)}")
    if settings.scheduler not in SCHEDULERS:
        raise PlanError(f"unknown scheduler '{settings.scheduler}': expected one of {', '.join(SCHEDULERS)}")
    if settings.steps < 1 or batch < 1:
        raise PlanError(f"steps and batch must be at least 1, got {settings.steps} and {batch}")
    if len(settings.size) != 2 or any(side < 8 or side % 8 for side in settings.size):
        raise PlanError(f"size must be (height, width) in multiples of 8 pixels, got {settings.size}")
    wanted, given = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if wanted != given:
        raise UnsupportedError(f"only text-to-image models can be sampled: this UNet takes {wanted} channels, its VAE "
                               f"makes {given}")


def _check_same_kind(pipe, trajectory: Trajectory) -> None:
    """Predictions compare only between models of one latent space that predict the same thing."""
    kind = _prediction_type(pipe.scheduler)
    if kind != trajectory.prediction_type:
        raise UnsupportedError(f"the teacher predicts '{trajectory.prediction_type}', this model '{kind}': only "
                               f"checkpoints of one family can be compared")
    channels = trajectory.initial.shape[1]
    if pipe.unet.config.in_channels != channels:
        raise UnsupportedError(f"the teacher has {channels} latent channels, this model {pipe.unet.config.in_channels}"
                               f": only checkpoints of one family can be compared")


def _draw(pipe, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, progress: Progress | None,
          along: torch.Tensor | None = None, embeddings: dict[str, torch.Tensor] | None = None,
          decode: bool = True) -> Trajectory:
    """One batch. along: states [steps, n, 4, h, w] that replace the model's own after each step."""
    noise, said, states, times = _noise(pipe, seeds, settings.size), [], [], []
    if embeddings is None:
        with _stoppable(pipe, progress):
            embeddings = _embed(pipe, prompts, settings.guidance)

    def stepped(_, step: int, timestep: torch.Tensor, found: dict) -> dict:
        states.append(_kept(found["latents"]))
        times.append(float(timestep))
        if progress is not None:
            progress.advance(len(prompts) / settings.steps)
        return {} if along is None else {"latents": along[step].to(found["latents"])}

    with torch.no_grad(), _stoppable(pipe, progress), _listening(pipe, settings, said):
        placed = {name: value.to(pipe.unet.device, pipe.unet.dtype) for name, value in embeddings.items()}
        images = pipe(**placed, latents=noise.to(pipe.unet.device, pipe.unet.dtype), height=settings.size[0],
                      width=settings.size[1], num_inference_steps=settings.steps, guidance_scale=settings.guidance,
                      generator=[torch.Generator().manual_seed(seed) for seed in seeds], callback_on_step_end=stepped,
                      output_type="pt" if decode and along is None else "latent").images
    predictions = torch.stack(said).unflatten(1, (-1, len(prompts)))
    return Trajectory(tuple(prompts), tuple(seeds), settings, noise, torch.tensor(times), torch.stack(states),
                      _kept(images), predictions, {name: _kept(value) for name, value in embeddings.items()},
                      _prediction_type(pipe.scheduler))


@contextmanager
def _stoppable(pipe, progress: Progress | None) -> Iterator[None]:
    """Each layer asks first whether to stop: one call of SDXL's UNet takes a CPU half a minute."""
    modules = [module for part in pipe.components.values() if isinstance(part, nn.Module) for module in part.modules()]
    hooks = [module.register_forward_pre_hook(lambda *_: progress.check())
             for module in modules if progress is not None and not any(module.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _listening(pipe, settings: Settings, said: list[torch.Tensor]) -> Iterator[None]:
    """The pipeline with a fresh scheduler and no progress bar; what its UNet says is appended. All is undone after."""
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", None)
    pipe.scheduler = _fresh(scheduler, settings)
    pipe.set_progress_bar_config(**{**(bar or {}), "disable": True})
    hook = pipe.unet.register_forward_hook(
        lambda _, __, output: said.append(_kept(output[0] if isinstance(output, tuple) else output.sample)))
    try:
        yield
    finally:
        hook.remove()
        pipe.scheduler = scheduler
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar


def _fresh(scheduler, settings: Settings):
    """A scheduler without history; another sampler keeps betas, spacing and kind of prediction."""
    import diffusers

    own = type(scheduler).__name__
    name, changes = SAMPLERS[settings.sampler] or own, SCHEDULERS[settings.scheduler]
    if "EDM" in own and (name != own or changes):
        asked = settings.sampler if name != own else settings.scheduler
        raise UnsupportedError(f"this model has a noise schedule of its own kind ({own}), so '{asked}' cannot drive "
                               f"it: choose sampler and scheduler 'model'")
    kind = getattr(diffusers, name)
    for option in changes:
        if option not in inspect.signature(kind.__init__).parameters:
            raise UnsupportedError(f"diffusers' {name} knows no '{settings.scheduler}' schedule: choose another "
                                   f"sampler or scheduler")
    return kind.from_config(scheduler.config, **changes)


def _prediction_type(scheduler) -> str:
    return str(scheduler.config.get("prediction_type", "epsilon"))


def _noise(pipe, seeds: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
    """[n, 4, h, w]; picture i from seeds[i] alone"""
    shape = (1, pipe.unet.config.in_channels, *(side // pipe.vae_scale_factor for side in size))
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _embed(pipe, prompts: Sequence[str], guidance: float) -> dict[str, torch.Tensor]:
    """What the text encoders say, by the names the pipeline's call takes; the empty prompt's too where it is used."""
    guided = guidance > 1 and pipe.unet.config.time_cond_proj_dim is None
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        found = pipe.encode_prompt(list(prompts), device=pipe.unet.device, do_classifier_free_guidance=guided)
    return {name: value for name, value in zip(names, found) if value is not None}


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _joined(parts: list[Trajectory]) -> Trajectory:
    """Batches one after the other."""
    first = parts[0]
    joined = {name: torch.cat([getattr(part, name) for part in parts], axis)
              for name, axis in (("initial", 0), ("steps", 1), ("images", 0), ("predictions", 2))}
    embeddings = {name: torch.cat([part.embeddings[name] for part in parts]) for name in first.embeddings}
    return Trajectory(sum((p.prompts for p in parts), ()), sum((p.seeds for p in parts), ()), first.settings,
                      timesteps=first.timesteps, embeddings=embeddings, prediction_type=first.prediction_type, **joined)
