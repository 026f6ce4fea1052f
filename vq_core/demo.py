"""`vqpack demo`: the embedded model at four rates, reloaded from its files, drawn side by side and measured."""
from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from .errors import UnsupportedError
from .metrics import latent_psnr

RATES = (4, 3, 2, 1)                       # bits, best first
STEPS, GUIDANCE, SIDE, SEED = 20, 3.0, 64, 1000
# Held-out captions that the fp16 model follows with these seeds, so that what a rate breaks can be seen.
PROMPTS = ("a large red circle on a plain blue background",
           "a small white star right of a large purple square on a graded green background",
           "a small black cross above a large yellow ring on a dotted purple background",
           "a large green triangle on a striped orange background",
           "a large white circle left of a small blue square on a plain black background",
           "a small red ring above a large orange star on a dotted white background",
           "a large blue cross on a graded yellow background")
ZOOM, MARGIN, LINE, PROMPT_WIDTH = 2, 8, 16, 190      # of the picture, pixels
NOTE = ("A small model with narrow layers: it ranks rates and shows what breaks, it does not predict how SDXL would "
        "look (testbed/README.md).")


@dataclass(frozen=True)
class Row:
    """One model that drew the prompts."""

    label: str
    bits: dict[str, float]                 # stored bits a weight: coded layers, whole UNet, file
    file_bytes: int
    psnr: tuple[float, ...]                # dB, each prompt's final latents against fp16's; () for fp16 itself
    pictures: torch.Tensor                 # [prompts, 3, height, width], 0 to 1


def run_demo(out: str | Path = "demo", prompts: tuple[str, ...] = PROMPTS, rates: tuple[int, ...] = RATES) -> int:
    """Write the compressed files and `demo.png` into `out`, print the table -> exit code 0."""
    from .pipeline import quiet

    started, folder, source = time.monotonic(), Path(out), _testbed()
    folder.mkdir(parents=True, exist_ok=True)
    quiet()
    print(f"drawing {len(prompts)} prompts with the fp16 model", flush=True)
    teacher = _draw(_teacher(source), prompts)
    rows = [Row("fp16", dict.fromkeys(("coded", "unet", "file"), 16.0), _weight_bytes(source), (), teacher[1])]
    for rate in rates:
        rows.append(_compressed(source, folder, rate, prompts, teacher[0]))
    _picture(rows, prompts).save(folder / "demo.png")
    print(f"\n{table(rows)}\n\n{NOTE}\n{folder / 'demo.png'}: fp16 and every rate side by side, same prompts and seeds "
          f"({time.monotonic() - started:.0f} s)")
    return 0


def table(rows: list[Row]) -> str:
    """The rows as aligned text. The median, because one mirrored composition decides any mean of squared errors."""
    lines = [("rate", "bits: coded", "UNet", "file", "size", "latent PSNR: median", "worst")]
    for row in rows:
        psnr = [f"{value:.1f} dB" for value in (median(row.psnr), min(row.psnr))] if row.psnr else ["-", "-"]
        lines.append((row.label, *(f"{row.bits[name]:.2f}" for name in ("coded", "unet", "file")),
                      f"{row.file_bytes / 1e6:.2f} MB", *psnr))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def _testbed() -> Path:
    folder = Path(__file__).resolve().parents[1] / "testbed" / "pipe"
    if not folder.is_dir():
        raise UnsupportedError("the demo's model is not in the installed package: run 'python install.py demo' in a "
                               "clone of the repository")
    return folder


def _teacher(source: Path):
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(source, low_cpu_mem_usage=False, local_files_only=True,
                                                     add_watermarker=False).to(torch.float32)


def _weight_bytes(source: Path) -> int:
    return sum(path.stat().st_size for path in source.rglob("*.safetensors"))


def _compressed(source: Path, folder: Path, rate: int, prompts: tuple[str, ...], reference: torch.Tensor) -> Row:
    """Quantize at one rate, load the written file, draw."""
    from .pipeline import load_pipeline
    from .quantize import quantize

    result = quantize(source, folder / f"testbed-{rate}bit.safetensors", bits=rate, overwrite=True, window=_window())
    label = f"{rate} bit{'' if rate == 1 else 's'}"
    print(f"{label}: {result.path.name} in {result.seconds:.0f} s, drawing", flush=True)
    latents, pictures = _draw(load_pipeline(result.path, configs=source), prompts)
    psnr = tuple(latent_psnr(ours, fp16) for ours, fp16 in zip(latents, reference))
    return Row(label, result.bits, result.file_bytes, psnr, pictures)


def _window() -> int | None:
    """The default window where something fast codes it; 8 in plain torch, where 12 would take a quarter of an hour."""
    fast = torch.cuda.is_available() or importlib.util.find_spec("numba") is not None
    return None if fast else 8


def _draw(pipe, prompts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """-> final latents [prompts, 4, h, w] and pictures [prompts, 3, height, width]; the same noise for every model."""
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.randn(1, 4, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(SEED + i))
             for i in range(len(prompts))]
    with torch.no_grad():
        latents = pipe(prompt=list(prompts), height=SIDE, width=SIDE, num_inference_steps=STEPS,
                       guidance_scale=GUIDANCE, original_size=(SIDE, SIDE), target_size=(SIDE, SIDE),
                       latents=torch.cat(noise), output_type="latent").images
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents, (decoded / 2 + 0.5).clamp(0, 1)


def _picture(rows: list[Row], prompts: tuple[str, ...]):
    """One row a prompt, one column a model, labels above and at the left."""
    from PIL import Image, ImageDraw, ImageFont

    cell, head = SIDE * ZOOM, 3 * LINE + MARGIN
    width = PROMPT_WIDTH + len(rows) * (cell + MARGIN) + MARGIN
    image = Image.new("RGB", (width, head + len(prompts) * (cell + MARGIN)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for column, row in enumerate(rows):
        left = PROMPT_WIDTH + column * (cell + MARGIN)
        psnr = f", {median(row.psnr):.1f} dB" if row.psnr else ""
        for line, text in enumerate((row.label, f"UNet {row.bits['unet']:.2f} bits{psnr}",
                                     f"file {row.file_bytes / 1e6:.2f} MB")):
            draw.text((left, MARGIN // 2 + line * LINE), text, "black", font)
        for index, pixels in enumerate(row.pictures):
            array = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            picture = Image.fromarray(array).resize((cell, cell), Image.Resampling.NEAREST)
            image.paste(picture, (left, head + index * (cell + MARGIN)))
    for index, prompt in enumerate(prompts):
        draw.multiline_text((MARGIN, head + index * (cell + MARGIN)), _wrapped(prompt, draw, font), "black", font)
    return image


def _wrapped(text: str, draw, font) -> str:
    """Lines no wider than the prompt column."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= PROMPT_WIDTH - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
