"""diffusers models from a vqpack file: `load_unet` and `load_pipeline`, without any network."""
from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from .activations.int8 import Int8Product, chosen, linear_spec
from .activations.specs import TokenSpec
from .arch import UNET_PREFIX, Architecture, detect, unet_names, vae_names
from .configs import read_config
from .container import Reader
from .decompress import decode_tensor
from .errors import FormatError, PlanError, UnsupportedError
from .keymap import PrefixTable
from .layers import replace_layers
from .progress import Progress
from .source_reader import SourceReader
from .weight import CodedWeight
from .workers import Stoppable, as_done, worker_count

VAE_PREFIX = "first_stage_model."
CLIP_L = "conditioner.embedders.0.transformer."
CLIP_G = ("conditioner.embedders.1.model.transformer.", "conditioner.embedders.0.model.transformer.")
DECODE = ("once", "per_call")
PIPELINES = {"sdxl-inpaint": "StableDiffusionXLInpaintPipeline", "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
             "sdxl-ip2p": "StableDiffusionXLInstructPix2PixPipeline"}     # every other family: text to image
log = logging.getLogger(__name__)


def load_unet(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu",
              decode: str = "once", configs: str | Path | None = None, activations: str | None = None):
    """A vqpack file -> diffusers' UNet2DConditionModel in evaluation mode.

    path: the file, or any checkpoint opened by source_reader.open_reader, which is closed.
    dtype: of the dense weights and of what is computed; None = float32 on the CPU, float16 elsewhere.
    decode: "once" decodes at load, which gives an ordinary model of an ordinary model's size and speed; "per_call"
    keeps the codes in memory and decodes each layer whenever it is used.
    configs: a diffusers folder whose configurations replace SDXL's, for models of other head sizes.
    activations: "int8" rounds what linear layers are given and multiplies in int8 (docs/activations.md); with "once"
    these layers keep integers, a byte a weight. "file": as the file's plan says. None: 16 or 32 bits.
    Raises FormatError or UnsupportedError in one sentence.
    """
    with _Loader(path, dtype, device, decode, configs, activations) as loader:
        return loader.unet()


def load_pipeline(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu",
                  decode: str = "once", configs: str | Path | None = None, activations: str | None = None,
                  **components):
    """A vqpack file -> StableDiffusionXLPipeline (its inpainting, image-to-image or editing kin for such models).

    components: ready parts (vae=, text_encoder=, tokenizer=, scheduler=, ...) used instead of the file's; a file
    without encoders or VAE needs them. Other arguments as in load_unet.
    """
    import diffusers

    with _Loader(path, dtype, device, decode, configs, activations) as loader:
        name = PIPELINES.get(loader.architecture.name, "StableDiffusionXLPipeline")
        pipeline = getattr(diffusers, name)
        parts = loader.components(components)
        return pipeline(**parts, **_switches(loader, name), add_watermarker=False).to(device)


def load_parts(path: str | Path, names: Iterable[str], dtype: torch.dtype | None = None,
               device: str | torch.device = "cpu", configs: str | Path | None = None) -> dict[str, object]:
    """Only some components of a file ("vae", "text_encoder", "tokenizer_2", ...), for another one's load_pipeline."""
    with _Loader(path, dtype, device, "once", configs) as loader:
        return {name: getattr(loader, name)() for name in names}


def _switches(loader: _Loader, pipeline: str) -> dict:
    index = loader.config("pipeline")
    refiner = loader.architecture.name == "sdxl-refiner"
    switches = {"force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", not refiner)}
    if pipeline in (PIPELINES["sdxl-refiner"], PIPELINES["sdxl-inpaint"]):
        switches["requires_aesthetics_score"] = index.get("requires_aesthetics_score", refiner)
    return switches


class _Loader:
    """One open file and how its parts are wanted."""

    rounded: Mapping[str, TokenSpec] = MappingProxyType({})        # key of a layer whose input is rounded -> how

    def __init__(self, path, dtype: torch.dtype | None, device, decode: str, configs, activations: str | None = None):
        if decode not in DECODE:
            raise PlanError(f"decode must be 'once' or 'per_call', got '{decode}'")
        self.device, self.decode = torch.device(device), decode
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.float16)
        self.folder = None if configs is None else Path(configs)
        opened = isinstance(path, Reader | SourceReader)
        self.reader = path if opened else Reader(path, mapped=False)     # unmapped: the file may be moved or replaced
        try:
            for warning in self.reader.warnings:
                log.warning("%s", warning)
            self.reader.check_tensors()
            self.coded = frozenset(self.reader.coded_keys())
            self.shapes = {key: self._shape(key) for key in self.reader.keys() if not key.startswith("vq.")}
            self.architecture: Architecture = detect(self.shapes, self.reader.path.name)
            settings = chosen(activations, self.reader.metadata)
            specs = {key: linear_spec(settings, key) for key in self.coded
                     if key.startswith(UNET_PREFIX) and len(self.shapes[key]) == 2}
            self.rounded = {key: spec for key, spec in specs.items() if spec is not None}
        except BaseException:
            self.reader.close()
            raise

    def __enter__(self) -> _Loader:
        return self

    def __exit__(self, *_) -> None:
        self.reader.close()

    def _shape(self, key: str) -> tuple[int, ...]:
        return self.reader.layout(key).shape if key in self.coded else self.reader.entry(key).shape

    def config(self, name: str) -> dict:
        """The configuration of one component."""
        return read_config(name, self.folder)

    def has(self, prefix: str) -> bool:
        """Whether the file holds tensors under a prefix."""
        return any(key.startswith(prefix) for key in self.shapes)

    def components(self, given: dict) -> dict:
        """The parts of a pipeline: what was given, else what the file has."""
        refiner = self.architecture.name == "sdxl-refiner"
        makers = {"scheduler": self.scheduler, "unet": self.unet, "vae": self.vae, "tokenizer_2": self.tokenizer_2,
                  "text_encoder_2": self.text_encoder_2, "tokenizer": self.tokenizer, "text_encoder": self.text_encoder}
        absent = {"tokenizer", "text_encoder"} if refiner else set()
        made = {name: None if name in absent else make() for name, make in makers.items() if name not in given}
        return {**made, **given}

    def unet(self):
        """UNet2DConditionModel."""
        from diffusers import UNet2DConditionModel

        from .configs.unet import unet_config

        config = self.config("unet")
        if "down_block_types" not in config:         # ours: shapes tell the rest
            config = unet_config(self.architecture.unet, config)
        with torch.device("meta"):
            model = UNet2DConditionModel.from_config(config)
        keys = [key[len(UNET_PREFIX):] for key in self.shapes if key.startswith(UNET_PREFIX)]
        return self._fill(model, UNET_PREFIX, PrefixTable(unet_names.pairs_from_ldm(keys)))

    def vae(self):
        """AutoencoderKL; edm_mean and edm_std of the file become its latent statistics."""
        from diffusers import AutoencoderKL

        self._require(VAE_PREFIX, "VAE", "vae")
        config = self.config("vae")
        if self.architecture.prediction == "edm":
            config = {**config, **{ours: self.reader.tensor(key).flatten().tolist() for key, ours in (
                ("edm_mean", "latents_mean"), ("edm_std", "latents_std"))}, "scaling_factor": 0.5}
        with torch.device("meta"):
            model = AutoencoderKL.from_config(config)
        keys = [key[len(VAE_PREFIX):] for key in self.shapes if key.startswith(VAE_PREFIX)]
        return self._fill(model, VAE_PREFIX, PrefixTable(vae_names.pairs_from_ldm(keys)))

    def text_encoder(self):
        """CLIP-L as CLIPTextModel."""
        from transformers import CLIPTextConfig, CLIPTextModel

        self._require(CLIP_L, "first text encoder", "text_encoder")
        with torch.device("meta"):
            model = CLIPTextModel(CLIPTextConfig(**self.config("text_encoder")))
        return self._fill(model, CLIP_L, PrefixTable(()))

    def text_encoder_2(self):
        """CLIP-G as CLIPTextModelWithProjection."""
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        prefix = next(filter(self.has, CLIP_G), CLIP_G[0])
        self._require(prefix, "second text encoder", "text_encoder_2")
        with torch.device("meta"):
            model = CLIPTextModelWithProjection(CLIPTextConfig(**self.config("text_encoder_2")))
        return self._fill(model, prefix, PrefixTable(()))

    def tokenizer(self):
        """CLIP's tokenizer, padding with the end token."""
        from .configs.tokenizer import load_tokenizer

        return load_tokenizer(folder=self.folder and self.folder / "tokenizer")

    def tokenizer_2(self):
        """The same, padding with token 0."""
        from .configs.tokenizer import load_tokenizer

        return load_tokenizer("!", folder=self.folder and self.folder / "tokenizer_2")

    def scheduler(self):
        """Euler, set up for the kind of prediction the file's markers name."""
        import diffusers

        config, prediction = self.config("scheduler"), self.architecture.prediction
        if prediction == "edm":          # Playground 2.5
            return diffusers.EDMEulerScheduler(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0)
        if prediction == "edm-v":        # CosXL
            return diffusers.EDMEulerScheduler(sigma_data=1.0, sigma_min=0.002, sigma_max=120.0,
                                               prediction_type="v_prediction")
        if prediction == "v":
            config = {**config, "prediction_type": "v_prediction"}
        if self.architecture.zero_terminal_snr:
            config = {**config, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return getattr(diffusers, config["_class_name"]).from_config(config)

    def _require(self, prefix: str, what: str, argument: str) -> None:
        if not self.has(prefix):
            raise UnsupportedError(f"'{self.reader.path.name}' holds no {what}: give one as {argument}=..., or "
                                   f"quantize the checkpoint again with all its parts")

    def _tensors(self, prefix: str, names: PrefixTable) -> Iterator[tuple[str, torch.Tensor | CodedWeight]]:
        """(diffusers name, tensor in the wanted dtype or coded weight kept as it is) of one component."""
        own = {key: names.apply(key[len(prefix):]) for key in self.shapes if key.startswith(prefix)}
        decoded = [key for key in own if key in self.coded - self.rounded.keys() and self.decode == "once"]
        for key, name in own.items():
            if key not in self.coded:
                yield name, decode_tensor(self.reader, key, self.dtype).to(self.device)
            elif self.decode == "per_call" or key in self.rounded:
                yield name, self.reader.weight(key).to(self.device)
        # Read here, decoded side by side on the CPU: a layer has a thread to itself and waits for nobody.
        weights = ((key, self.reader.weight(key)) for key in decoded)
        for (key, _), tensor in as_done(self._decoded, weights, worker_count(self.device.type), Stoppable(Progress())):
            yield own[key], tensor

    def _decoded(self, item: tuple[str, CodedWeight]) -> torch.Tensor:
        """(key, weight) -> the weight in the wanted dtype, on the device"""
        weight = item[1].to(self.device)
        return weight.decode(self.dtype or weight.source_dtype)

    def _fill(self, model: nn.Module, prefix: str, names: PrefixTable) -> nn.Module:
        """Give a model on the meta device its weights; every one must come, with its shape."""
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        dense, coded = {}, {}
        for name, value in self._tensors(prefix, names):
            name = name if name in expected else name.removeprefix("text_model.")     # transformers 5
            if name not in expected:
                continue                 # logit_scale, position_ids and other leftovers of training
            if isinstance(value, torch.Tensor) and value.numel() == _count(expected[name]):
                value = value.reshape(expected[name])      # the VAE's 1x1 convolutions are linear layers in diffusers
            if tuple(value.shape) != expected[name]:
                raise FormatError(f"'{name}' of '{self.reader.path.name}' has shape {list(value.shape)}, expected "
                                  f"{list(expected[name])}: give the model's own configuration with configs=FOLDER")
            (dense if isinstance(value, torch.Tensor) else coded)[name] = value
        missing = sorted(expected.keys() - dense.keys() - coded.keys())
        if missing:
            raise FormatError(f"'{self.reader.path.name}' lacks {len(missing)} tensors under '{prefix}', the first is "
                              f"'{missing[0]}': give the model's own configuration with configs=FOLDER")
        model.load_state_dict(dense, strict=False, assign=True)
        layers = {name.removesuffix(".weight"): weight for name, weight in coded.items()}
        replace_layers(model, layers, dtype=self.dtype)
        for key, spec in self.rounded.items():
            if key.startswith(prefix):
                layer = names.apply(key[len(prefix):]).removesuffix(".weight")
                model.get_submodule(layer).product = Int8Product(spec, keep=self.decode == "once")
        _fill_buffers(model, self.device)
        return model.requires_grad_(False).eval()


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _fill_buffers(model: nn.Module, device: torch.device) -> None:
    """CLIP's position_ids stand in no checkpoint: 0, 1, 2, ..."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                if name != "position_ids":
                    raise UnsupportedError(f"this version of transformers or diffusers keeps '{name}', which vqpack "
                                           f"does not know: install the versions of tests/requirements.txt")
                module.register_buffer(name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape),
                                       persistent=False)


def quiet() -> None:
    """The libraries' progress bars and advice would drown ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
