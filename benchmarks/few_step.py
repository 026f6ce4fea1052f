"""A teacher of 4 steps without guidance, coded to 3 bits and tuned with its own preset: what is left of its quality.

    python benchmarks/scenes/train_testbed.py --preset lcm --teacher testbed/pipe -o out/few --device cpu \\
        --steps 600 --batch 16 --scenes 6000 --rate 2e-4
    python benchmarks/few_step.py [--teacher out/few/pipe] [--steps 200] [--prompts 64] [--folder out/few_step]

Calibrated and tuned with the preset `lcm`, 4 steps, guidance 1, on captions that nothing is judged on. Rows: the model
the teacher was distilled from, drawn in 4 steps without and with guidance; the teacher; coded; tuned. Metrics:

fidelity     dB, PSNR of the clean latents that the model predicts of held-out scenes with noise mixed in, mean over the
             teacher's 4 timesteps. "lost": the teacher's minus the model's, scene by scene
attributes   share of a caption's attributes in the 4-step picture beyond chance, perfect pictures 1. "lost" as above
latent_psnr, image_psnr    dB, of the 4-step pictures against the teacher's from the same noise
noise_snr    dB, of predictions along the teacher's way

The 4-step quality is kept within 1 dB where the upper end of the fidelity lost lies below 1. Medians of latent_psnr,
image_psnr and noise_snr, else means; 95 % bootstrap over prompts or scenes. Writes few_step.csv. One thread.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from quality_measure import as_images, eight_bits
from testbed_bench import CODE, digest, scene_captions, write_csv

load_vqpack()
from vqpack.vq_core import metrics, trajectory  # noqa: E402
from vqpack.vq_core.calibration.run import calibrate  # noqa: E402
from vqpack.vq_core.pipeline import load_unet  # noqa: E402
from vqpack.vq_core.plan import make_plan  # noqa: E402
from vqpack.vq_core.quantize import quantize  # noqa: E402
from vqpack.vq_core.tuning.run import tune  # noqa: E402
from vqpack.vq_core.tuning.settings import Tuning  # noqa: E402

STEPS, SIDE, BATCH, BITS = 4, 64, 8, 3
DRAWN = {"steps": STEPS, "guidance": 1.0, "preset": "lcm", "size": (SIDE, SIDE), "device": "cpu"}
CALIBRATED, LESSONS, JUDGED = (32, 5), (96, 6), 11     # captions and seed of their scenes; 1 trained the teacher
FIRST_NOISE = 1000
STATISTICS = {"fidelity": "mean", "attributes": "mean", "latent_psnr": "median", "image_psnr": "median",
              "noise_snr": "median"}
COMPARED = ("fidelity", "attributes")      # with the teacher's own
PLAIN = {"plain, 4 steps, no guidance": (STEPS, 1.0), "plain, 4 steps, guidance 3": (STEPS, 3.0),
         "plain, 20 steps, guidance 3": (20, 3.0)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=ROOT / "out" / "few" / "pipe")
    parser.add_argument("--steps", type=int, default=200, help="of tuning")
    parser.add_argument("--prompts", type=int, default=64, help="pictures and scenes that judge")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "few_step")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if not (args.teacher / "model_index.json").is_file():
        print(f"expected a few-step teacher in {args.teacher}, got nothing: make one with the first command of --help",
              file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    found = {name: plain(args.prompts, *way) for name, way in PLAIN.items()}
    pipe, files = load(args.teacher), {"teacher": None, **students(args)}
    reference = drawn(pipe, args.prompts)
    for name, path in files.items():
        found[name] = {"bits": 16.0} if path is None else {"bits": files_bits(path)}
        found[name] |= measured(pipe, path, reference, args)
    write_csv(args.out / "few_step.csv", rows(found))
    return 0


def students(args) -> dict[str, Path]:
    """Coded and tuned files, made once in --folder."""
    name = digest((*CODE, "vq_core/tuning"), str(args.teacher), training(args.teacher))
    coded, tuned = (args.folder / f"{kind}-{name}.safetensors" for kind in ("coded", f"tuned-{args.steps}"))
    captions = {seed: list(scene_captions(*seed)) for seed in (CALIBRATED, LESSONS)}
    if not coded.is_file():
        calibration = calibrate(args.teacher, args.folder / f"calibration-{name}", prompts=captions[CALIBRATED],
                                timesteps=STEPS, sensitivity=False, overwrite=True, **DRAWN).path
        quantize(args.teacher, coded, plan=make_plan(BITS), parts=("unet",), device="cpu", calibration=calibration)
    if not tuned.is_file():
        tune(coded, args.teacher, tuned, prompts=captions[LESSONS], tuning=Tuning(steps=args.steps),
             recordings=args.folder / "recordings", **DRAWN)
    return {f"coded, {BITS} bits": coded, f"tuned, {args.steps} steps": tuned}


def measured(pipe, path: Path | None, reference: trajectory.Trajectory, args) -> dict[str, torch.Tensor]:
    """Metric -> one value a prompt or scene. path: a vqpack file whose UNet takes the place of the pipeline's."""
    own = pipe.unet
    try:
        if path is not None:
            pipe.unet = load_unet(path, torch.float32, "cpu", configs=args.teacher)
        found = {"fidelity": fidelity(pipe, reference.timesteps, args.prompts)}
        ours = reference if path is None else drawn(pipe, args.prompts)
        found["attributes"] = attributes(ours.images, reference.prompts)
        if path is not None:
            found["latent_psnr"] = trajectory.latent_psnr_along(ours, reference)[-1]
            found["image_psnr"] = metrics.image_psnr(ours.images, reference.images)
            found["noise_snr"] = trajectory.noise_along(pipe, reference, "teacher", BATCH).snr().mean((0, 1))
        return found
    finally:
        pipe.unet = own


def plain(prompts: int, steps: int, guidance: float) -> dict:
    """The model that was distilled, with its own sampler."""
    from scenes.data import TESTBED

    return {"bits": 16.0, "attributes": attributes(drawn(load(TESTBED / "pipe"), prompts, steps, guidance).images,
                                                   scene_captions(prompts, JUDGED))}


def drawn(pipe, prompts: int, steps: int = STEPS, guidance: float = 1.0) -> trajectory.Trajectory:
    """The judged captions, from the same noise for every model."""
    return trajectory.sample(pipe, scene_captions(prompts, JUDGED), range(FIRST_NOISE, FIRST_NOISE + prompts), steps,
                             guidance, (SIDE, SIDE), batch=BATCH)


def attributes(images: torch.Tensor, captions) -> torch.Tensor:
    """Each picture's share of right attributes beyond chance; perfect pictures have 1 on average."""
    from scenes import alignment

    return torch.tensor(alignment.score(as_images(eight_bits(images)), list(captions))["per_image"],
                        dtype=torch.float64)


@torch.no_grad()
def fidelity(pipe, timesteps: torch.Tensor, count: int) -> torch.Tensor:
    """PSNR of predicted clean latents, dB, of scenes of the judged seed: mean over `timesteps` [count]."""
    from scenes import objectives
    from scenes.data import draw, scenes
    from scenes.presets import token_ids

    pictures, kinds = draw(JUDGED, count)
    alphas, found = pipe.scheduler.alphas_cumprod, []
    for first in range(0, count, BATCH):
        clean = pipe.vae.encode(pictures[first:first + BATCH].float() / 127.5 - 1).latent_dist.mode()
        clean = clean * pipe.vae.config.scaling_factor
        random = torch.Generator().manual_seed(FIRST_NOISE + first)
        ids = token_ids(pipe.tokenizer, [scenes.caption(kind) for kind in kinds[first:first + BATCH]])
        said = objectives.encode_text({"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}, ids,
                                      both_pooled=False)
        found.append(torch.stack([_predicted(pipe.unet, clean, int(time), said, alphas, random)
                                  for time in timesteps]).mean(0))
    return torch.cat(found)


def _predicted(unet, clean: torch.Tensor, time: int, said, alphas: torch.Tensor, random) -> torch.Tensor:
    """dB of each picture at one timestep."""
    from scenes import objectives

    noise, alpha = torch.randn(clean.shape, generator=random), alphas[time]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    times = torch.full((len(clean),), time)
    ours = objectives.consistent(unet, noisy, times, said, alphas)
    return torch.tensor([metrics.latent_psnr(a, b) for a, b in zip(ours, clean)], dtype=torch.float64)


def load(folder: Path):
    """A testbed pipeline in float32."""
    from scenes.generate import load

    return load(folder)


def training(teacher: Path) -> str:
    """What is known of how the teacher was made."""
    report = teacher.parent / "training.json"
    return report.read_text() if report.is_file() else ""


def files_bits(path: Path) -> float:
    """Stored bits a weight of a file's whole UNet."""
    from vqpack.vq_core.container import Reader
    from vqpack.vq_core.inspection import file_bits

    with Reader(path) as reader:
        return file_bits(reader)["unet"]


def rows(found: dict[str, dict]) -> list[dict]:
    """One row a model and metric, with what the teacher has more."""
    table, here = [], machine()
    for name, values in found.items():
        for metric, statistic in STATISTICS.items():
            if metric not in values:
                continue
            own = metrics.bootstrap(values[metric], statistic)
            row = {"model": name, "bits": f"{values['bits']:.3f}", "metric": metric, "statistic": statistic,
                   "low": f"{own.low:.3f}", "value": f"{own.value:.3f}", "high": f"{own.high:.3f}",
                   "lost_low": "", "lost": "", "lost_high": "", "count": own.count, "machine": here["cpu"],
                   "commit": here["commit"]}
            if metric in COMPARED and name != "teacher":
                gap = metrics.paired_bootstrap(found["teacher"][metric], values[metric], statistic)
                row |= {"lost_low": f"{gap.low:.3f}", "lost": f"{gap.value:.3f}", "lost_high": f"{gap.high:.3f}"}
            table.append(row)
            lost = f", lost {row['lost']} ({row['lost_low']} to {row['lost_high']})" if row["lost"] else ""
            print(f"{name}: {metric} {row['value']} ({row['low']} to {row['high']}){lost}", flush=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
