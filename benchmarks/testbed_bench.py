"""The testbed calibrated, coded, judged by its layers' outputs and drawn: what the calibration benches share.

Everything that is made is kept in a folder under a name that holds a digest of the code that made it.
"""
from __future__ import annotations

import copy
import csv
import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import exp, log
from pathlib import Path

import torch
from alias import ROOT, load_vqpack
from quality_measure import Settings, captions, load_teacher
from quality_students import OURS_CODE, TESTBED, layers

load_vqpack()
from vqpack.vq_core import trajectory  # noqa: E402
from vqpack.vq_core.arch import UNET_PREFIX, unet_names  # noqa: E402
from vqpack.vq_core.calibration import Calibration  # noqa: E402
from vqpack.vq_core.calibration.run import calibrate  # noqa: E402
from vqpack.vq_core.container import Reader  # noqa: E402
from vqpack.vq_core.decompress import decode_tensor  # noqa: E402
from vqpack.vq_core.encode import to_matrix  # noqa: E402
from vqpack.vq_core.gram import output_error  # noqa: E402
from vqpack.vq_core.keymap import PrefixTable  # noqa: E402
from vqpack.vq_core.plan import Plan  # noqa: E402
from vqpack.vq_core.quantize import QuantizeResult, quantize  # noqa: E402
from vqpack.vq_core.source import open_source  # noqa: E402

CAPTURE_CODE = ("vq_core/calibration", "vq_core/trajectory.py")
CODE = (*OURS_CODE, *CAPTURE_CODE, "vq_core/gram.py", "vq_core/planning")
BATCH, SIDE = 8, 64
MOST_WORDS = 14                            # of a random prompt; captions have 7 to 15


@dataclass(frozen=True)
class Way:
    """What is drawn: `prompts` captions of scenes of seed `scenes`, their noise from seed `noise` on."""

    prompts: int = 32
    steps: int = 12
    guidance: float = 3.0
    scenes: int = 11
    noise: int = 1000
    sampler: str = "model"

    def seeds(self) -> list[int]:
        """Of the noise, one a prompt."""
        return list(range(self.noise, self.noise + self.prompts))


def scene_captions(count: int, scenes: int) -> tuple[str, ...]:
    """Captions of scenes of one seed; 1 trained the testbed, 11 is what quality.py draws."""
    return captions(Settings(count, 1, scenes=scenes))


def random_prompts(count: int, seed: int) -> tuple[str, ...]:
    """Words of the testbed's vocabulary in any order: no caption of anything."""
    from scenes.data import load_scenes

    chance, words = random.Random(seed), load_scenes().WORDS
    return tuple(" ".join(chance.choices(words, k=chance.randint(3, MOST_WORDS))) for _ in range(count))


def digest(names: Sequence[str], *settings) -> str:
    """Of settings and of the files and folders that decide a result -> hex digits"""
    found = hashlib.sha256(repr(settings).encode() + torch.__version__.encode())
    for name in names:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return found.hexdigest()[:12]


def calibration_of(folder: Path, name: str, prompts: Sequence[str], **settings) -> Path:
    """The testbed's calibration with these prompts and settings, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return calibrate(TESTBED, folder / f"{name}-{digest(CAPTURE_CODE, prompts, settings)}", prompts=list(prompts),
                     device="cpu", **settings).path


def coded(folder: Path, name: str, plan: Plan, calibration: Path | None, sequential: Sequence[str] | None = None
          ) -> tuple[QuantizeResult, dict]:
    """The UNet through the product -> its result, LDM key -> float32 weight; the file is kept.

    sequential: prompts, to code block by block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = json.dumps(plan.to_json(), sort_keys=True), calibration and calibration.name
    asked += () if sequential is None else (tuple(sequential),)
    path = folder / f"{name}-{digest(CODE, *asked)}.safetensors"
    result = quantize(TESTBED, path, plan=plan, parts=("unet",), device="cpu", calibration=calibration,
                      sequential=sequential and list(sequential))
    with Reader(result.path, mapped=False) as reader:
        return result, {layer.key: decode_tensor(reader, layer.key, torch.float32) for layer in layers()[0]}


@cache
def originals() -> dict[str, torch.Tensor]:
    """LDM key -> the testbed's own coded layers, float32."""
    with open_source(TESTBED) as source:
        return {layer.key: source.load_float(layer.key) for layer in layers()[0]}


def layer_errors(weights: dict[str, torch.Tensor], truth: Path) -> dict[str, float]:
    """LDM key -> squared error of a layer's outputs over their square, for the inputs of a calibration file."""
    return {key: _relative(original, weights[key], _inputs(truth)[key]) for key, original in originals().items()}


@cache
def _inputs(truth: Path) -> dict[str, torch.Tensor]:
    """LDM key -> gram of all inputs in a calibration file, float32 [blocks, size, size], shared between layers."""
    found = {}
    with Calibration(truth) as calibration:
        for keys in calibration.shared().values():
            blocks = calibration.gram(keys[0]).all_inputs().float()
            found |= dict.fromkeys(keys, blocks)
    return found


def _relative(original: torch.Tensor, decoded: torch.Tensor, blocks: torch.Tensor) -> float:
    matrix, lost = (to_matrix(w, 0, w.shape[1]) for w in (original, original - decoded))
    return float(output_error(lost, blocks).sum() / output_error(matrix, blocks).sum())


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return exp(sum(map(log, values)) / len(values))


def judged(folder: Path, name: str, weights: dict[str, torch.Tensor], way: Way, draw: bool = True) -> dict:
    """One value a prompt: prediction SNR on the teacher's way (mean over steps and halves), latent PSNR at its end.

    weights: LDM key -> float32; all others stay the teacher's. draw: False leaves latent_psnr out. Kept as JSON.
    """
    kept = folder / f"{name}-{_of_weights(weights)}-{digest(CAPTURE_CODE, asdict(way), draw)}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    pipe, teacher = load_teacher(), teacher_way(folder, way)
    own, pipe.unet = pipe.unet, _with(pipe.unet, weights)
    try:
        found = {"noise_snr": trajectory.noise_along(pipe, teacher, "teacher", BATCH).snr().mean((0, 1)).tolist()}
        if draw:
            found["latent_psnr"] = trajectory.latent_psnr_along(sample(pipe, way), teacher)[-1].tolist()
    finally:
        pipe.unet = own
    publish(kept, lambda part: part.write_text(json.dumps(found)))
    return found


def teacher_way(folder: Path, way: Way) -> trajectory.Trajectory:
    """The teacher's trajectory, drawn once a folder."""
    path = folder / f"teacher-{digest(CAPTURE_CODE, asdict(way))}.pt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = vars(sample(load_teacher(), way))
        plain = {name: value for name, value in drawn.items() if name != "settings"}
        publish(path, lambda part: torch.save(plain, part))
    return trajectory.Trajectory(settings=_as_drawn(way), **torch.load(path, weights_only=True))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows with the first one's columns; complete or not at all."""
    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, write)


def add_rows(path: Path, rows: list[dict], key: tuple[str, ...]) -> None:
    """Rows into a CSV file, in place of those of the same key; columns that older rows lack are empty there."""
    found = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
    new = {tuple(str(row[name]) for name in key) for row in rows}
    kept = [row for row in found if tuple(row.get(name, "") for name in key) not in new]
    write_csv(path, [{name: row.get(name, "") for name in rows[0]} for row in kept] + rows)


def publish(path: Path, write) -> None:
    """write(part) makes a file that becomes `path` when it is complete."""
    part = path.with_suffix(f".{os.getpid()}.part")
    write(part)
    os.replace(part, path)


def _of_weights(weights: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for key in sorted(weights):
        found.update(weights[key].numpy().tobytes())
    return found.hexdigest()[:12]


def _with(unet, weights: dict[str, torch.Tensor]):
    """A copy of the teacher's UNet with these weights."""
    made = copy.deepcopy(unet)
    parameters = dict(made.named_parameters())
    with open_source(TESTBED) as source:
        keys = [key.removeprefix(UNET_PREFIX) for key in source.keys() if key.startswith(UNET_PREFIX)]
    names = PrefixTable(unet_names.pairs_from_ldm(keys))
    with torch.no_grad():
        for key, weight in weights.items():
            parameters[names.apply(key.removeprefix(UNET_PREFIX))].copy_(weight)
    return made.eval()


def _as_drawn(way: Way) -> trajectory.Settings:
    return trajectory.Settings(way.steps, way.guidance, (SIDE, SIDE), way.sampler)


def sample(pipe, way: Way) -> trajectory.Trajectory:
    """Draw a way with any pipeline of the testbed."""
    return trajectory.sample(pipe, scene_captions(way.prompts, way.scenes), way.seeds(), way.steps, way.guidance,
                             (SIDE, SIDE), way.sampler, batch=BATCH)
