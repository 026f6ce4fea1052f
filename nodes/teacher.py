"""MODEL and CLIP of a graph as what vq_core calibrates and learns from: the host's sampler, text encoders, memory."""
from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..vq_core.arch import UNET_PREFIX, detect
from ..vq_core.calibration.calls import Calls, chosen_calls, noise_levels
from ..vq_core.calibration.groups import CodedLayer, Group, coded_layers, groups_of
from ..vq_core.calibration.settings import Picture, Settings
from ..vq_core.calibration.teacher import refuse_picture_models
from ..vq_core.compare.prompts import SDXL_PROMPTS
from ..vq_core.errors import UnsupportedError
from ..vq_core.progress import Progress
from ..vq_core.source_reader import SourceReader
from ..vq_core.tuning.lessons import Lessons
from . import host
from .live import left_out, live
from .network import HostSensitivities, Network, Recorder

SIDE = 1024                                # pixels, SDXL's own
_PROBE = 64                                # pixels of the picture that shows which layers share an input
_SIZES = 6 * 256                           # of the vector that SDXL's UNet gets beside the text
_PROMPTS = 64                              # texts encoded at a time: encoders and UNet take turns in memory
# Bytes of a backward pass for one half of a 1024 x 1024 picture: the inputs of all layers in 16 bits, 2.9 GB by their
# shapes, and as much again for attention and norms, taken twice for safety. Not measured on a GPU.
_GRADIENTS = 12e9
_salts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class LiveTeacher:
    """What vq_core.calibration.teacher.CheckpointTeacher is, for a model in memory. preview(denoised): shows it."""

    built_in, job = SDXL_PROMPTS, "calibrate"

    def __init__(self, model, clip, folder: Path, preview: Callable[[torch.Tensor], None] | None = None):
        _check(model, clip, self.job)
        graph = live(model, clip)
        self.name, self._model, self._clip, self._preview = graph.name, model, clip, preview
        self._source = graph.source(model, folder)
        self.architecture = self._source.details
        self.shapes = {key: tuple(self._source.shape(key)) for key in self._source.keys()}
        self.samplers, self.schedulers = host.samplers(), host.schedulers()
        self.device, self.salt = str(model.load_device), _salt(model, clip)
        self.unet = Network(model)
        self.sensitivities = partial(HostSensitivities, self.unet)
        self._prompts: list[str] = []
        self._texts: dict[str, list] = {}

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return SIDE, SIDE

    def factor(self) -> int:
        """Pixels a latent."""
        return getattr(host.latent_format(self._model), "spacial_downscale_ratio", 8)

    def layers(self) -> list[CodedLayer]:
        """The coded layers in forward order, by the host's paths, which are a checkpoint's."""
        return [replace(layer, module=layer.key[len(UNET_PREFIX):].removesuffix(".weight"))
                for layer in coded_layers(self.shapes)]

    def identity(self, progress: Progress) -> dict:
        """By content, LoRA and merges included."""
        return self._source.identity(progress)

    def open(self) -> None:
        """The host loads the model when it draws."""

    def groups(self, layers: list[CodedLayer], settings: Settings) -> tuple[list[Group], list[str]]:
        """Which layers share an input, from one call on a small picture."""
        probe = replace(settings, steps=1, timesteps=1, window=(0.0, 1000.0), size=(_PROBE, _PROBE))
        calls = self._record(Picture(0, "a", 0, False), probe, lambda *_: None)
        groups, unreached = groups_of(self.unet, layers, settings.full_columns, lambda: calls.ask(self.unet, 0))
        if not groups:
            raise UnsupportedError(f"none of the layers of '{self.name}' was called while it drew: take nodes away "
                                   f"that compile or replace the model")
        return groups, unreached

    def notes(self, pictures: Sequence[Picture]) -> list[str]:
        """What is seen beside the weights."""
        beside = left_out(self._model, self._clip)
        return [f"drawn with what is in no file: {'; '.join(beside)}."] if beside else []

    def prepare(self, pictures: Sequence[Picture], settings: Settings) -> None:
        """Remember the prompts, to encode many at a time."""
        self._prompts = [picture.prompt for picture in pictures]

    def draw(self, picture: Picture, settings: Settings, progress: Progress) -> Calls:
        """One picture by the host's sampler."""
        def callback(step: int, denoised: torch.Tensor, state: torch.Tensor, total: int) -> None:
            progress.advance(1 / total)
            if self._preview is not None:
                self._preview(denoised)

        return self._record(picture, settings, callback)

    def make_room(self, nbytes: int, settings: Settings, gradients: bool = False) -> None:
        """The model loaded, with room for its sums and for one call beside it."""
        height, width = (side // self.factor() for side in settings.size)
        need = nbytes + self._model.memory_required([2, 4, height, width])
        if gradients:                      # those of one half wait for the other's
            need += _GRADIENTS * height * width / (SIDE / 8) ** 2 + (settings.guidance != 1) * self._model.model_size()
        host.load_model(self._model, need)

    def close(self) -> None:
        """The model stays loaded, as the host wants it."""
        self._texts.clear()

    def _record(self, picture: Picture, settings: Settings, callback: Callable) -> Calls:
        positive, negative = self._text(picture.prompt), self._text("")
        recorder = Recorder(self.unet)
        empty = host.empty_latents(self._model, 1, *settings.size)
        with recorder.listening():
            host.sample(self._model, empty, picture.seed, settings.steps, settings.guidance, settings.sampler,
                        settings.scheduler, positive, negative, callback)
        asked, answered = recorder.result()
        if not asked:
            raise UnsupportedError(f"'{self.name}' was not asked for anything while it drew: take nodes away that "
                                   f"replace the model")
        return chosen_calls(asked, answered, noise_levels(torch.tensor([row[1] for row in asked])), settings, picture)

    def _text(self, prompt: str) -> list:
        """Conditioning of a prompt; where it is not known, of it and of those that follow."""
        if prompt not in self._texts:
            empty = self._texts.get("")
            start = self._prompts.index(prompt) if prompt in self._prompts else len(self._prompts)
            wanted = dict.fromkeys([prompt, *self._prompts[start:start + _PROMPTS]])
            self._texts = {text: host.encode(self._clip, text) for text in wanted}
            self._texts.setdefault("", empty if empty is not None else host.encode(self._clip, ""))
        return self._texts[prompt]


class TuningTeacher(LiveTeacher):
    """What vq_core.tuning.teacher.CheckpointTeacher is, for a model in memory."""

    job, configs = "tune", None

    def identity(self, progress: Progress) -> list:
        """By content, LoRA and merges included, and by what else decides what it draws."""
        return [super().identity(progress), self.salt]

    def weights(self) -> SourceReader:
        """Its weights, one at a time."""
        return SourceReader(self._source)

    def check(self, trajectory: str) -> None:
        """UnsupportedError for pictures that the student is to draw: the host's sampler cannot ask it."""
        if trajectory != "teacher":
            raise UnsupportedError(f"a linked model draws with ComfyUI's sampler, which cannot draw with the student: "
                                   f"choose trajectory 'teacher' instead of '{trajectory}', or a checkpoint file")

    def record(self, lessons: Lessons, student_unet, trajectory: str, settings: Settings, progress: Progress) -> None:
        """Draw the pictures that are missing and keep what the model says at every step; it is unloaded then."""
        self.prepare(lessons.missing(), settings)
        lessons.record(lambda picture: self._asked(picture, settings, progress), progress)
        self.close()
        host.free_models()

    def _asked(self, picture: Picture, settings: Settings, progress: Progress) -> tuple[Calls, list[torch.Tensor]]:
        with torch.inference_mode():       # as the host loaded the model
            calls = self.draw(picture, settings, progress)
            return as_diffusers(calls, settings.size), [calls.ask(self.unet, i) for i in range(len(calls.steps))]


def as_diffusers(calls: Calls, size: tuple[int, int]) -> Calls:
    """The host's calls by the names of diffusers' UNet: its vector is the pooled text and six embedded sizes."""
    vector = calls.fixed["added.y"]                                    # [halves, pooled + 6 * 256]
    sizes = torch.tensor([*size, 0.0, 0.0, *size]).expand(len(vector), 6)
    return replace(calls, fixed={"text": calls.fixed["text"], "added.text_embeds": vector[:, :-_SIZES],
                                 "added.time_ids": sizes})


def _check(model, clip, job: str) -> None:
    """UnsupportedError in one sentence where this model and these text encoders do not draw from text."""
    graph = live(model)
    shapes = {UNET_PREFIX + name: tuple(weight.base().shape) for name, weight in graph.weights["unet"].items()}
    refuse_picture_models(detect(shapes, graph.name), graph.name, job)
    if clip is None:
        raise UnsupportedError("the model is to draw prompts and no CLIP is connected, or the checkpoint has none: "
                               "connect the CLIP of an SDXL checkpoint")
    keys = list(clip.patcher.model_state_dict())
    for prefix, name in (("clip_l.", "CLIP-L"), ("clip_g.", "CLIP-G")):
        if not any(key.startswith(prefix) for key in keys):
            raise UnsupportedError(f"the CLIP has no {name}, and '{graph.name}' reads CLIP-L and CLIP-G: connect the "
                                   f"CLIP of an SDXL checkpoint")
    for patcher in (model, clip.patcher):
        if patcher.hook_patches or patcher.forced_hooks or patcher.injections:
            raise UnsupportedError("the model has a LoRA by hook or beside its weights (bypass), which no quantized "
                                   "file can hold: load it with an ordinary LoRA loader, or take it away")


def _salt(model, clip) -> str:
    """What decides a drawing beside weights and settings. Patches cannot be compared: these model objects, this run."""
    parts = [str(host.computed_in(model)), str(getattr(clip, "layer_idx", None))]
    if left_out(model, clip):
        parts += [_salts.setdefault(one, uuid.uuid4().hex) for one in (model, clip)]
    return " ".join(parts)
