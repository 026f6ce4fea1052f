"""Reading a diffusers folder as one LDM checkpoint: files, shards, variants, key names, prediction markers."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from .arch import UNET_PREFIX, clip_names, unet_names, vae_names
from .errors import FormatError, UnsupportedError
from .keymap import PrefixTable
from .safetensors_io import SafetensorsFile
from .source import Contents, Origin, open_weights

VAE_PREFIX = "first_stage_model."
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")      # diffusers' and transformers' base names
Found = Mapping[str, SafetensorsFile]                    # own key -> file (or source_model.Tensors)


def read_folder(path: Path) -> Contents:
    """Read a pipeline folder (unet/, text_encoder/, text_encoder_2/, vae/) or a lone UNet folder."""
    unet_folder = path / "unet" if (path / "unet").is_dir() else path
    if not _weight_files(unet_folder):
        raise UnsupportedError(_no_unet(path, unet_folder))
    with ExitStack() as stack:
        files: list[SafetensorsFile] = []

        def found(folder: Path) -> Found:
            return _open_component(folder, files, stack)

        origins = _unet(found(unet_folder))
        if unet_folder != path:
            first = found(path / "text_encoder")
            origins.update(_clip_l(first))
            origins.update(clip_g_origins(found(path / "text_encoder_2"), 1 if first else 0))
            origins.update(_vae(found(path / "vae")))
        stack.pop_all()
    return Contents(path, tuple(files), origins, constants=_markers(path))


def _no_unet(path: Path, unet_folder: Path) -> str:
    if any(unet_folder.glob("*.bin")):
        return (f"'{path.name}' holds its UNet as pickle (.bin) files, which can run code when opened: save it with "
                f"safetensors first")
    kind = _json(path / "model_index.json").get("_class_name")
    if kind:
        return f"'{path.name}' is a {kind} without UNet weights, not an SDXL pipeline"
    return (f"'{path.name}' is not a diffusers folder: expected unet/diffusion_pytorch_model.safetensors inside, or "
            f"give a single .safetensors file")


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The component's file or shards; plain names before variants such as fp16, a single file before shards."""
    if not folder.is_dir():
        return ()
    for base in WEIGHT_NAMES:
        singles = [folder / f"{base}.safetensors", *sorted(folder.glob(f"{base}.*.safetensors"))]
        indices = [folder / f"{base}.safetensors.index.json", *sorted(folder.glob(f"{base}.*index*.json"))]
        variants = [p for p in singles[1:] if "-of-" not in p.name]
        for candidate in (singles[0], indices[0], *variants, *indices[1:]):
            if candidate.is_file():
                return _shards(candidate) if candidate.suffix == ".json" else (candidate,)
    return ()


def _shards(index: Path) -> tuple[Path, ...]:
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise FormatError(f"'{index.name}' in '{index.parent.name}' is damaged: expected a weight_map of file names")
    names = sorted(set(names.values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise FormatError(f"'{index.name}' in '{index.parent.name}' names the shard '{name:.80}', which is not "
                              f"there")
    return tuple(index.parent / name for name in names)


def _open_component(folder: Path, files: list[SafetensorsFile], stack: ExitStack) -> Found:
    found: dict[str, SafetensorsFile] = {}
    for path in _weight_files(folder):
        file = stack.enter_context(open_weights(path))
        files.append(file)
        for key in file.entries:
            if key in found:
                raise FormatError(f"'{key:.120}' stands in two shards of '{folder.name}'")
            found[key] = file
    return found


def _origins(found: Found, rename: Callable[[str], str | None], reshape=lambda key, shape: shape) -> dict[str, Origin]:
    """One to one: own key -> LDM key by `rename` (None drops it), shapes by `reshape` (LDM key and shape)."""
    origins = {}
    for own, file in found.items():
        key, entry = rename(own), file.entry(own)
        if key is not None:
            origins[key] = Origin(((file, own),), reshape(key, entry.shape), entry.dtype)
    return origins


def _unet(found: Found) -> dict[str, Origin]:
    table = PrefixTable((diffusers, ldm) for ldm, diffusers in unet_names.pairs_from_diffusers(found))
    return _origins(found, lambda key: UNET_PREFIX + table.apply(key))


def _vae(found: Found) -> dict[str, Origin]:
    table = PrefixTable((diffusers, ldm) for ldm, diffusers in vae_names.pairs_from_diffusers(found))
    return _origins(found, lambda key: VAE_PREFIX + table.apply(key),
                    lambda key, shape: vae_names.ldm_shape(key[len(VAE_PREFIX):], shape))


def _clip_l(found: Found) -> dict[str, Origin]:
    return _origins(found, lambda key: f"conditioner.embedders.0.transformer.{_with_text_model(key)}")


def clip_g_origins(found: Found, embedder: int) -> dict[str, Origin]:
    """CLIP-G under OpenCLIP names, as in published SDXL files: q/k/v fused, projection transposed."""
    prefix = f"conditioner.embedders.{embedder}.model."
    own = {_with_text_model(key): key for key in found}
    table = PrefixTable((hf, openclip) for openclip, hf in clip_names.pairs(own))

    def rename(key: str) -> str | None:
        name = _with_text_model(key)
        plain = clip_names.fused_name(name) is None and not name.endswith("position_ids")
        return prefix + table.apply(name) if plain and name != clip_names.PROJECTION[1] else None

    origins = _origins(found, rename)
    origins.update(_fused(found, own, prefix))
    projection = own.get(clip_names.PROJECTION[1])
    if projection is not None:
        entry = found[projection].entry(projection)
        origins[prefix + clip_names.PROJECTION[0]] = Origin(((found[projection], projection),), entry.shape[::-1],
                                                            entry.dtype, transpose=True)
    return origins


def _fused(found: Found, own: Mapping[str, str], prefix: str) -> dict[str, Origin]:
    origins = {}
    for fused in dict.fromkeys(filter(None, map(clip_names.fused_name, own))):
        names = clip_names.split_names(fused)
        missing = [name for name in names if name not in own]
        if missing:
            raise FormatError(f"the text encoder lacks '{missing[0]}'")
        parts = tuple((found[own[name]], own[name]) for name in names)
        entries = [file.entry(key) for file, key in parts]
        if len({(e.shape, e.dtype) for e in entries}) != 1:
            raise FormatError(f"the text encoder's q, k and v differ in shape or dtype at '{names[0]}'")
        shape = (3 * entries[0].shape[0], *entries[0].shape[1:])
        origins[prefix + fused] = Origin(parts, shape, entries[0].dtype)
    return origins


def _with_text_model(key: str) -> str:
    """transformers 5 saves CLIPTextModel without the "text_model." that every other tool expects."""
    return f"text_model.{key}" if key.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else key


def _markers(path: Path) -> dict[str, torch.Tensor]:
    """ComfyUI's marker keys for what a folder says in its scheduler's configuration."""
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    markers = {}
    if scheduler.get("prediction_type") == "v_prediction":
        markers["v_pred"] = torch.zeros(0)
        if scheduler.get("rescale_betas_zero_snr"):
            markers["ztsnr"] = torch.zeros(0)
    vae = _json(path / "vae" / "config.json")
    if str(scheduler.get("_class_name")).startswith("EDM") and vae.get("latents_mean") and vae.get("latents_std"):
        for key, name in (("edm_mean", "latents_mean"), ("edm_std", "latents_std")):
            markers[key] = torch.tensor(vae[name], dtype=torch.float32).view(1, -1, 1, 1)
    return markers


def _json(path: Path) -> dict:
    """A JSON object, {} where there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read '{path.name}' in '{path.parent.name}': {error}") from None
    return data if isinstance(data, dict) else {}
