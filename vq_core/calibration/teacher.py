"""What is calibrated: a checkpoint that diffusers draws. Who has a model in memory gives an object with these members.

The ComfyUI nodes do (nodes/teacher.py): run.calibrate() captures and writes the same way for both.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .. import trajectory
from ..arch import Architecture
from ..compare.models import NEEDS_PICTURE, Models, built_in_prompts, open_checkpoint
from ..errors import UnsupportedError
from ..progress import Progress
from ..safetensors_io import sha256_file
from ..source import open_source
from .calls import Calls, draw
from .groups import CodedLayer, Group, coded_layers, find_groups
from .sensitivity import Sensitivities
from .settings import Picture, Settings

BY_CHANNELS = {9: "sdxl-inpaint", 8: "sdxl-ip2p"}          # of the UNet's input -> key of NEEDS_PICTURE
REFINER_VECTOR = 2560                      # width of its label embedding; all others have 2816


def refuse_picture_models(architecture: Architecture, name: str, job: str = "calibrate") -> None:
    """UnsupportedError for what does not draw from text alone, by family or, of pruned models, by input channels.

    job: what draws, for the message.
    """
    unet = architecture.unet
    kind = architecture.name if architecture.name in NEEDS_PICTURE else BY_CHANNELS.get(unet.in_channels)
    if unet.adm_in_channels == REFINER_VECTOR:
        kind = "sdxl-refiner"
    if kind:
        raise UnsupportedError(f"'{name}' is {NEEDS_PICTURE[kind]}, which starts from a picture, and {job} draws from "
                               f"text: {job} the base it was made from")


class CheckpointTeacher:
    """A checkpoint of any kind with its text encoders, drawn with its own sampler.

    name, architecture, device: what it is and where it runs; samplers, schedulers: names it can be drawn with;
    built_in: prompts it can follow; unet: set by open(), a module with `device` and `dtype` that calls.Calls can ask;
    sensitivities(modules): what differentiates it; salt: what else decides the result, beside identity and settings.
    """

    salt = ""
    samplers: Sequence[str] = tuple(trajectory.SAMPLERS)
    schedulers: Sequence[str] = tuple(trajectory.SCHEDULERS)
    sensitivities = Sensitivities

    def __init__(self, path: str | Path, device: str | None = None, configs: str | Path | None = None):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._checkpoint = open_checkpoint(path, "A")
        self.name, self.architecture = self._checkpoint.name, self._checkpoint.architecture
        refuse_picture_models(self.architecture, self.name)
        if self._checkpoint.lacks:
            raise UnsupportedError(f"'{self.name}' holds no {self._checkpoint.lacks[0]}, and calibrate draws pictures: "
                                   f"give a checkpoint with all its parts")
        self._models = Models((self._checkpoint,), self.device, None if configs is None else Path(configs))
        self.built_in = built_in_prompts(self._checkpoint)
        self._pipe = self.unet = None

    def size(self) -> tuple[int, int]:
        """The model's own picture size: (height, width)."""
        return self._models.size()

    def factor(self) -> int:
        """Pixels a latent."""
        return self._models.factor()

    def layers(self) -> list[CodedLayer]:
        """The coded layers in forward order; `module` is a path in `unet`."""
        return coded_layers(self._checkpoint.shapes)

    def identity(self, progress: Progress) -> dict:
        """Name, bytes and SHA-256 of what is calibrated."""
        if self._checkpoint.kind != "vqpack file":
            with open_source(self._checkpoint.path) as source:
                return source.identity(progress)
        path, nbytes = self._checkpoint.path, self._checkpoint.file_bytes
        progress.start("reading the source", nbytes, self.name)
        return {"name": self.name, "bytes": nbytes, "sha256": sha256_file(path, progress)}

    def open(self) -> None:
        """Load the model."""
        self._pipe = self._models.pipeline(self._checkpoint)
        self.unet = self._pipe.unet

    def groups(self, layers: list[CodedLayer], settings: Settings) -> tuple[list[Group], list[str]]:
        """groups.find_groups: layers that share an input, and keys of those that none reaches."""
        return find_groups(self._pipe, layers, settings.guidance, settings.full_columns)

    def notes(self, pictures: Sequence[Picture]) -> list[str]:
        """Sentences about the prompts."""
        tokenizer = self._pipe.tokenizer or self._pipe.tokenizer_2
        most = tokenizer.model_max_length
        long = sum(len(tokenizer(picture.prompt).input_ids) > most for picture in pictures)
        return [f"{long} prompts are longer than the {most} tokens the text encoders read; their ends are "
                f"cut."] if long else []

    def prepare(self, pictures: Sequence[Picture], settings: Settings) -> None:
        """Called once with the pictures that are going to be drawn."""

    def draw(self, picture: Picture, settings: Settings, progress: Progress) -> Calls:
        """Draw one picture and keep what the UNet was asked; advances `progress` by one in all."""
        return draw(self._pipe, picture, settings, progress)

    def make_room(self, nbytes: int, settings: Settings, gradients: bool = False) -> None:
        """Called before a sweep whose sums take so many bytes on the device, and before backward passes."""

    def close(self) -> None:
        """Let go of the model."""
        self._pipe = self.unet = None
