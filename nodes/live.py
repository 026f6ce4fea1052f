"""MODEL, CLIP and VAE of a graph as a checkpoint: each weight with its LoRA and merge patches, one at a time.

Nothing is baked into the model: a weight is taken where it is, patched as the host's own saving patches it, and handed
on. Reading it changes nothing, whether the model is loaded, loaded in part or not at all.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..vq_core.arch.detect import detect, refuse_quantized
from ..vq_core.errors import UnsupportedError
from ..vq_core.source_model import CLIP_L_PREFIX, Made, Model, ModelSource
from ..vq_core.weight import CodedWeight
from . import files, host
from .layout import is_coded, unwrap

_UNET, _CLIP_L, _CLIP_G = "diffusion_model.", "clip_l.", "clip_g."
_VAE_KEYS = ("decoder.conv_in.weight", "taesd_decoder.1.weight")       # the usual one, the tiny one
_NOT_SAVED = ("transformer.text_projection.weight", "logit_scale")      # of CLIP-L: no SDXL checkpoint has them


@dataclass(frozen=True)
class Weight:
    """One weight of a loaded model."""

    patcher: object
    key: str

    @property
    def patches(self) -> list:
        """LoRA and merges of this weight, in the host's form."""
        return self.patcher.patches.get(self.key, [])

    def base(self):
        """The weight without patches, also where the host wrote them into the model (dense models only)."""
        kept, hooked = self.patcher.backup.get(self.key), self.patcher.hook_backup.get(self.key)
        if hooked is not None:
            return hooked[0]
        if kept is not None:
            return kept.weight
        path, _, name = self.key.rpartition(".")
        module = host.get_attr(self.patcher.model, path) if path else None
        original = getattr(module, "originals", {}).get(name)         # a foreign patcher wrote into our layer
        return host.get_key_weight(self.patcher.model, self.key)[0] if original is None else original

    def coded(self) -> CodedWeight | None:
        """The blob, None where the weight is dense."""
        base = self.base()
        return unwrap(base) if is_coded(base) else None

    def made(self, narrow: torch.dtype | None) -> Made:
        """For the source; narrow: what a float32 weight is stored as."""
        base = self.base()
        dtype = unwrap(base).source_dtype if is_coded(base) else base.dtype
        dtype = narrow if narrow is not None and dtype == torch.float32 and not is_coded(base) else dtype
        return Made(host.merged_shape(self.patches, base, self.key), dtype, lambda: self.merged(dtype))

    def merged(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight with its patches, as the host's CheckpointSave writes it -> [*shape] of dtype, on the CPU"""
        with torch.no_grad():              # runs in worker threads, where the host's inference mode does not reach
            base, device = self.base(), self.patcher.load_device
            convert = host.get_key_weight(self.patcher.model, self.key)[2]
            if is_coded(base):
                coded, convert = unwrap(base), None
                base = coded.to(device).decode(torch.float32).to(coded.source_dtype)
            if self.patches:
                wide = host.cast_to_device(base, device, host.lora_compute_dtype(device), copy=True)
                wide = wide if convert is None else convert(wide, inplace=True)
                wide = host.calculate_weight(self.patches, wide, self.key)
                base = host.round_weight(wide, dtype, seed=host.string_to_seed(self.key))
            return base.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()


@dataclass(frozen=True)
class Live:
    """A graph's model. weights: component ("unet", "clip_l", "clip_g", "vae") -> name inside it -> Weight."""

    weights: dict[str, dict[str, Weight]]
    name: str

    def source(self, model, folder: Path) -> ModelSource:
        """-> the source for vq_core; UnsupportedError in one sentence for what is no SDXL model."""
        shapes = {f"model.diffusion_model.{n}": tuple(w.base().shape) for n, w in self.weights["unet"].items()}
        detect(shapes, self.name)                                       # before anything is read
        parts = {part: _made(weights) for part, weights in self.weights.items()}
        found = markers(model)
        return ModelSource(Model(**parts, markers=found, metadata=_modelspec(self.name, found)), self.name, folder)

    def all_weights(self) -> Iterator[tuple[str, Weight]]:
        """(key in a VQ file, weight) of everything."""
        clip_g = f"conditioner.embedders.{1 if self.weights['clip_l'] else 0}.model.transformer."
        prefixes = {"unet": "model.diffusion_model.", "clip_l": CLIP_L_PREFIX + "transformer.", "clip_g": clip_g,
                    "vae": "first_stage_model."}
        for part, weights in self.weights.items():
            for name, weight in weights.items():
                yield prefixes[part] + name, weight


def live(model, clip=None, vae=None) -> Live:
    """What is in the graph; UnsupportedError where a part is not SDXL's or quantized by another tool."""
    name = _file_stem(model) + ("-merged" if model.patches or (clip is not None and clip.patcher.patches) else "")
    unet = _weights(model, _UNET, name)
    clip_l = clip_g = vae_weights = {}
    if clip is not None:
        clip_l, clip_g = (_text_encoder(clip, prefix) for prefix in (_CLIP_L, _CLIP_G))
        others = [key for key in clip.patcher.model_state_dict() if not key.startswith((_CLIP_L, _CLIP_G))]
        if not clip_g or others:
            raise UnsupportedError("the CLIP is not SDXL's: expected text encoders CLIP-L and CLIP-G (the refiner: "
                                   "CLIP-G), connect the CLIP of an SDXL checkpoint or leave the input open")
    if vae is not None:
        vae_weights = _weights(vae.patcher, "", name)
        if vae.latent_channels != 4 or not any(key in vae_weights for key in _VAE_KEYS):
            raise UnsupportedError("the VAE is not SDXL's: expected one with 4 latent channels, connect the VAE of an "
                                   "SDXL checkpoint or leave the input open")
    return Live({"unet": unet, "clip_l": clip_l, "clip_g": clip_g, "vae": vae_weights}, name)


def markers(model) -> dict[str, torch.Tensor]:
    """The keys by which a checkpoint says what its model predicts, from the sampling the MODEL has now."""
    sampling, kinds = model.get_model_object("model_sampling"), host.model_sampling
    if isinstance(sampling, kinds.ModelSamplingContinuousEDM):
        latent = model.model.latent_format
        if isinstance(sampling, kinds.EDM) and hasattr(latent, "latents_mean"):           # Playground 2.5
            return {"edm_mean": latent.latents_mean.clone().float(), "edm_std": latent.latents_std.clone().float()}
        if isinstance(sampling, kinds.V_PREDICTION):
            return {f"edm_vpred.{n}": torch.tensor(float(getattr(sampling, n))) for n in ("sigma_max", "sigma_min")}
    elif isinstance(sampling, kinds.V_PREDICTION):
        zero_snr = {"ztsnr": torch.zeros(0)} if getattr(sampling, "zsnr", False) else {}
        return {"v_pred": torch.zeros(0), **zero_snr}
    return {}


def left_out(model, clip=None) -> list[str]:
    """What a MODEL or CLIP has beside its weights and what no checkpoint can hold, in words."""
    options, found = model.model_options, []
    transformer = options.get("transformer_options", {})
    objects = [key for key in model.object_patches if key != "model_sampling"]
    if "model_sampling" in model.object_patches:
        found.append("settings of the sampling other than what the model predicts")
    if objects:
        found.append(f"replaced parts of the model ({', '.join(objects[:3])})")
    foreign = [key for kind in model.wrappers.values() for key in kind if not str(key).startswith("vqpack")]
    if foreign or any(transformer.get(name) for name in ("patches", "patches_replace")):
        found.append("patches of attention and blocks")
    if any(name.startswith("sampler_") or name == "model_function_wrapper" for name in options):
        found.append("changes to the sampler")
    patchers = [model] if clip is None else [model, clip.patcher]
    if any(patcher.injections for patcher in patchers):
        found.append("LoRA added beside the weights (bypass)")
    if any(patcher.hook_patches or patcher.forced_hooks for patcher in patchers):
        found.append("LoRA by hook")
    return found


def say_left_out(model, clip=None) -> str:
    """Log what the file will lack -> the same sentence for the node, "" where there is nothing."""
    lacking = left_out(model, clip)
    if not lacking:
        return ""
    text = f"not in the file, add it again after loading: {'; '.join(lacking)}"
    logging.getLogger(__name__).warning("vqpack: %s", text)
    return text


def output_path(model, name: str) -> Path:
    """Where a file made of a MODEL goes: beside the file it was loaded from, else to the first folder of ours.

    -> a folder (the file's name is made up later) or the file `name` in it, as files.output_path.
    """
    roots = [Path(root) for key in ("checkpoints", "diffusion_models")
             for root in host.folder_paths.get_folder_paths(key)]
    origin = source_file(model)
    if origin is not None and any(root in origin.parents for root in roots):
        return files.output_path(origin, name)
    beside = [root for root in roots if origin is not None and root.parent / files.FOLDER in origin.parents]
    return files.output_path([*beside, *roots][0] / "model.safetensors", name)


def source_file(patcher) -> Path | None:
    """The file a model was loaded from, where the host or our loader noted it."""
    _, arguments = (*(getattr(patcher, "cached_patcher_init", None) or (None, ())), None)[:2]
    path = arguments[0] if arguments and isinstance(arguments[0], str) else None
    return Path(path) if path else None


def _file_stem(patcher) -> str:
    path = source_file(patcher)
    return path.stem if path is not None else "model"


def _weights(patcher, prefix: str, name: str) -> dict[str, Weight]:
    keys = list(patcher.model_state_dict(prefix))
    refuse_quantized(dict.fromkeys(keys, ()), name)
    return {key[len(prefix):]: Weight(patcher, key) for key in keys}


def _text_encoder(clip, prefix: str) -> dict[str, Weight]:
    found = _weights(clip.patcher, prefix, "the CLIP")
    dropped = _NOT_SAVED if prefix == _CLIP_L else ()
    return {key.removeprefix("transformer."): weight for key, weight in found.items()
            if key not in dropped and not key.endswith("position_ids")}


def _made(weights: dict[str, Weight]) -> dict[str, Made]:
    narrow = _narrow(weight.base() for weight in weights.values())
    return {name: weight.made(narrow) for name, weight in weights.items()}


def _narrow(tensors: Iterable[torch.Tensor]) -> torch.dtype | None:
    """The 16-bit dtype that holds all float32 tensors exactly: the host widened them when it loaded them on the CPU."""
    possible = [torch.float16, torch.bfloat16]
    for tensor in tensors:
        if not is_coded(tensor) and tensor.dtype == torch.float32:
            possible = [dtype for dtype in possible if torch.equal(tensor.to(dtype).float(), tensor)]
        if not possible:
            return None
    return possible[0]


def _modelspec(name: str, found: dict) -> dict[str, str]:
    predicts = "v" if any(key.replace("_", "").startswith(("vpred", "edmvpred")) for key in found) else "epsilon"
    return {"modelspec.sai_model_spec": "1.0.0", "modelspec.implementation": "sgm", "modelspec.title": name,
            "modelspec.predict_key": predicts}
