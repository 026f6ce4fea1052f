"""The pictures of tuned.py: what students draw before and after, beside the teacher's."""
from __future__ import annotations

import statistics
from pathlib import Path

import torch
from alias import load_vqpack
from quality_measure import as_images
from quality_plots import INK, OURS, TRELLIS, grid, pyplot

load_vqpack()
from vqpack.vq_core import metrics  # noqa: E402

SHOWN = {"trellis-1-free": "1 bit,\ndata-free", "trellis-1": "1 bit,\ncalibrated", "trellis-1-tuned": "1 bit,\ntuned",
         "trellis-1.5-tuned": "1.5 bits,\ntuned", "trellis-2-tuned": "2 bits,\ntuned",
         "planned-2-tuned": "planned to 2,\ntuned", "planned-3-tuned": "planned to 3,\ntuned",
         "gptq-4": "GPTQ 4,\ncalibrated"}
PROMPTS = 6


def draw(found: dict[str, dict], prompts, theirs: torch.Tensor, folder: Path) -> None:
    """Write tuned-pictures.png of the students in SHOWN. found: name -> what tuned.measured gives."""
    columns = []
    for name, title in SHOWN.items():
        if name in found:
            one = found[name]
            psnr = metrics.image_psnr(as_images(one["pictures"]), as_images(theirs)).tolist()
            latent = statistics.median([float(value) for value in one["latent_psnr"]])
            columns.append((f"{title}\n{one['bits']:.2f} bits, {latent:.1f} dB", one["pictures"], psnr,
                            INK if name.startswith("gptq") else OURS[TRELLIS][0]))
    if columns:
        folder.mkdir(parents=True, exist_ok=True)
        figure = grid(prompts[:PROMPTS], theirs, columns)
        figure.savefig(folder / "tuned-pictures.png", dpi=100)
        pyplot.close(figure)

