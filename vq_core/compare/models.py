"""The checkpoints of a comparison: what each is, whether they fit together, and one pipeline at a time."""
from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from ..arch import UNET_PREFIX, Architecture, component_of, detect
from ..configs import read_config
from ..container import Reader
from ..demo import PROMPTS as TESTBED_PROMPTS
from ..errors import FormatError, PlanError, UnsupportedError
from ..inspection import content_id, file_bits
from ..pipeline import CLIP_G, CLIP_L, VAE_PREFIX, load_parts, load_pipeline, quiet
from ..progress import Progress
from ..source import open_source
from ..source_reader import open_reader
from .prompts import SDXL_PROMPTS

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TESTBED_CONTEXT = 192                      # text width of the model in testbed/, which knows 34 words
PARTS = {"first text encoder": ("text_encoder", "tokenizer"), "second text encoder": ("text_encoder_2", "tokenizer_2"),
         "VAE": ("vae",)}                  # what a file may lack -> components that are borrowed together
NEEDS_PICTURE = {"sdxl-refiner": "a refiner", "sdxl-inpaint": "an inpainting model", "sdxl-ip2p": "an editing model"}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, opened once to see what it is."""

    letter: str
    path: Path
    kind: str                              # "vqpack file", "checkpoint file", "diffusers folder"
    file_bytes: int
    bits: Mapping[str, float]              # stored bits a weight: coded layers, whole UNet, file
    architecture: Architecture
    shapes: Mapping[str, tuple[int, ...]]  # stored key -> shape
    metadata: Mapping[str, str]
    identity: tuple                        # what a stopped run goes on with: it must be the same files
    lacks: tuple[str, ...] = ()            # of PARTS
    texts: Mapping[str, str] = field(default_factory=dict)         # of the metadata, for people
    content: str | None = None             # inspection.content_id of a vqpack file

    @property
    def name(self) -> str:
        """File or folder name."""
        return self.path.name


def open_checkpoint(path: str | Path, letter: str) -> Checkpoint:
    """Look at one checkpoint of any kind; VQError in one sentence where it cannot be used."""
    path = Path(path).absolute()
    with open_reader(path) as reader:
        ours = isinstance(reader, Reader)
        coded = frozenset(reader.coded_keys())
        shapes = {key: tuple(reader.layout(key).shape if key in coded else reader.entry(key).shape)
                  for key in reader.keys() if not key.startswith("vq.")}
        kind = "vqpack file" if ours else "diffusers folder" if path.is_dir() else "checkpoint file"
        bits = file_bits(reader) if ours else _plain_bits(reader, shapes)
        texts = {key: value for key, value in reader.metadata.items()
                 if key.startswith("modelspec.") and len(value) < 500}
        return Checkpoint(letter, path, kind, reader.file_bytes, bits, detect(shapes, path.name), shapes,
                          dict(reader.metadata), _identity(path), _lacks(shapes), texts,
                          content_id(reader) if ours else None)


def check_together(checkpoints: list[Checkpoint]) -> list[str]:
    """-> one sentence per borrowed part. UnsupportedError where they cannot draw from the same noise and text."""
    first = checkpoints[0]
    if first.architecture.name in NEEDS_PICTURE:
        raise UnsupportedError(f"'{first.name}' is {NEEDS_PICTURE[first.architecture.name]}, which starts from a "
                               f"picture, and compare draws from text: `vqpack verify FILE --against ORIGINAL` "
                               f"compares the weights")
    for other in checkpoints[1:]:
        if unet_shapes(other) != unet_shapes(first):
            raise UnsupportedError(f"'{other.name}' is {described(other)} and '{first.name}' is {described(first)}: "
                                   f"compare needs checkpoints of one architecture")
    notes = []
    for checkpoint in checkpoints:
        for part in checkpoint.lacks:
            lender = lender_of(part, checkpoints)
            notes.append(f"'{checkpoint.name}' holds no {part}: that of '{lender.name}' is used.")
    if len({(c.architecture.prediction, c.architecture.zero_terminal_snr) for c in checkpoints}) > 1:
        kinds = ", ".join(f"'{c.name}' {c.architecture.prediction}" for c in checkpoints)
        notes.append(f"The checkpoints predict different things ({kinds}); each is sampled as its own kind.")
    return notes


def lender_of(part: str, checkpoints: list[Checkpoint]) -> Checkpoint:
    """The first checkpoint that has a part; UnsupportedError where none has it."""
    for checkpoint in checkpoints:
        if part not in checkpoint.lacks:
            return checkpoint
    raise UnsupportedError(f"none of the checkpoints holds a {part}: add one that does as the last argument, its part "
                           f"is then used for all")


def described(checkpoint: Checkpoint) -> str:
    """`sdxl (2567 M UNet weights)`"""
    count = sum(prod(shape) for shape in unet_shapes(checkpoint).values())
    return f"{checkpoint.architecture.name} ({count / 1e6:.0f} M UNet weights)"


def unet_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The UNet's keys and shapes."""
    return {key: shape for key, shape in checkpoint.shapes.items() if key.startswith(UNET_PREFIX)}


def built_in_prompts(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A list the model can follow: the testbed's own captions, else SDXL's."""
    return TESTBED_PROMPTS if is_testbed(checkpoint) else SDXL_PROMPTS


def is_testbed(checkpoint: Checkpoint) -> bool:
    """Whether this is the model in testbed/ or made from it."""
    return checkpoint.architecture.unet.context_dim == TESTBED_CONTEXT


@dataclass(frozen=True)
class Models:
    """Everything needed to make one pipeline after the other."""

    checkpoints: tuple[Checkpoint, ...]
    device: str
    configs: Path | None                   # folder whose configurations files without their own get

    def folder(self, checkpoint: Checkpoint) -> Path | None:
        """The configurations of one checkpoint: its own folder's, else the given ones."""
        return checkpoint.path if checkpoint.path.is_dir() else self.configs

    def size(self) -> tuple[int, int]:
        """The model's own picture size: (height, width)."""
        folder = self.folder(self.checkpoints[0])
        side = read_config("unet", folder).get("sample_size") or 128
        height, width = side if isinstance(side, list) else (side, side)
        return height * self.factor(), width * self.factor()

    def factor(self) -> int:
        """Pixels a latent."""
        vae = read_config("vae", self.folder(self.checkpoints[0]))
        return 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)

    def pipeline(self, checkpoint: Checkpoint, **ready):
        """Load one, with the parts it lacks from the first that has them; free it before the next.

        ready: parts by their diffusers name that are taken as they are, such as unet.
        """
        quiet()
        borrowed = {}
        for part in checkpoint.lacks:
            lender = lender_of(part, list(self.checkpoints))
            borrowed |= load_parts(open_reader(lender.path), PARTS[part], device=self.device,
                                   configs=self.folder(lender))
        pipe = load_pipeline(open_reader(checkpoint.path), device=self.device, configs=self.folder(checkpoint),
                             **borrowed, **ready)
        pipe.set_progress_bar_config(disable=True)
        if not checkpoint.path.is_dir() and self.configs is not None:
            _own_prediction(pipe, checkpoint)
        return pipe


def find_configs(checkpoints: list[Checkpoint], given: str | Path | None) -> Path | None:
    """The folder given, else that of the first checkpoint that is one."""
    if given is not None:
        if not Path(given).is_dir():
            raise PlanError(f"--configs must be a diffusers folder, '{given}' is not one")
        return Path(given).absolute()
    return next((c.path for c in checkpoints if c.path.is_dir() and (c.path / "unet").is_dir()), None)


def free_memory() -> None:
    """Give back what a deleted pipeline held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def source_sha256(checkpoint: Checkpoint, progress: Progress) -> str | None:
    """SHA-256 of an ordinary checkpoint as `vqpack.source` has it; None for a vqpack file."""
    if checkpoint.kind == "vqpack file":
        return None
    with open_source(checkpoint.path) as source:
        return source.sha256(progress)


def _own_prediction(pipe, checkpoint: Checkpoint) -> None:
    """A scheduler configured by another checkpoint's folder may say v-prediction; a file's markers decide."""
    prediction = {"eps": "epsilon", "v": "v_prediction"}.get(checkpoint.architecture.prediction)
    if prediction and pipe.scheduler.config.prediction_type != prediction:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction)


def _lacks(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    prefixes = {"first text encoder": (CLIP_L,), "second text encoder": CLIP_G, "VAE": (VAE_PREFIX,)}
    return tuple(part for part, wanted in prefixes.items() if not any(key.startswith(wanted) for key in shapes))


def _plain_bits(reader, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """An ordinary checkpoint's stored bits a weight."""
    weights, stored = {"unet": 0, "file": 0}, {"unet": 0, "file": 0}
    for key, shape in shapes.items():
        for name in ("file", "unet") if component_of(key) == "unet" else ("file",):
            weights[name] += prod(shape)
            stored[name] += reader.entry(key).nbytes
    if not weights["unet"]:
        raise FormatError(f"'{reader.path.name}' holds no UNet weights")
    bits = {name: 8 * stored[name] / weights[name] for name in weights}
    return {"coded": bits["unet"], **bits}


def _identity(path: Path) -> tuple:
    """Name, size and time of change of its weight files: reading gigabytes again would cost more than it saves."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
