"""From a VQ file to ComfyUI's MODEL, CLIP and VAE."""
from __future__ import annotations

from pathlib import Path

import torch

from ..vq_core.activations.int8 import FROM_FILE, chosen
from ..vq_core.adapters.file import base_id
from ..vq_core.container import Reader
from ..vq_core.errors import UnsupportedError
from . import host, kept
from .activations import set_inputs
from .files import is_unet_only
from .layout import wrap
from .ops import VQOps, VQOpsDecoded
from .patcher import adopt
from .schema import AS_FILED, COMPRESSED, DECODED, DYNAMIC, FULL

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
# They stand beside the UNet and say how it predicts; the host drops them where it takes a UNet out of a checkpoint.
_MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_BASE = "vqpack.base"                      # in the metadata of what was read: base_id, of adapters
_ALL = {"output_model": True, "output_clip": True, "output_vae": True}


def load_checkpoint(path: str | Path, memory_mode: str = COMPRESSED, keep_bytes: int = 0, activations: str = FULL
                    ) -> tuple:
    """A VQ file with a UNet -> (model patcher, clip or None, vae).

    memory_mode: COMPRESSED decodes in each call, DECODED once while loading (memory of the original checkpoint),
    DYNAMIC is COMPRESSED under the host's dynamic VRAM. keep_bytes: of decoded weights that COMPRESSED may keep.
    activations: one of schema.ACTIVATIONS, for the UNet's Linear layers. Raises VQError, in one sentence, for a file
    that is not ours.
    """
    model, clip, vae = _load(path, memory_mode, _ALL, activations)
    _set_up(model, path, memory_mode, keep_bytes, activations)
    _remember(model, _reload_model, path, memory_mode, keep_bytes, activations)
    if clip is not None:
        kept.set_budget(clip.patcher, kept.ALL if memory_mode == DECODED else 0)
        _remember(clip.patcher, _reload_clip, path, memory_mode)
    if getattr(vae, "patcher", None) is not None:
        _remember(vae.patcher, _reload_vae, path, memory_mode)
    return model, clip, vae


def load_diffusion_model(path: str | Path, memory_mode: str = COMPRESSED, keep_bytes: int = 0,
                         activations: str = FULL):
    """The UNet of a VQ file, with or without text encoders and VAE in it -> model patcher."""
    sd, metadata = read_state_dict(path)
    operations, dynamic = _operations(memory_mode, activations), memory_mode == DYNAMIC
    model = host.state_dict_to_diffusion_model(_unet_only(sd), metadata, operations, dynamic)
    if model is None:
        raise UnsupportedError(f"'{Path(path).name}' holds no diffusion model that this ComfyUI recognizes")
    _name(model, path, metadata)
    _set_up(adopt(model), path, memory_mode, keep_bytes, activations, metadata)
    _remember(model, _reload_diffusion_model, path, memory_mode, keep_bytes, activations)
    return model


def load_vae(path: str | Path):
    """The VAE of a VQ file; None where it holds none."""
    with Reader(path, mapped=False) as reader:
        sd = {key.removeprefix(_VAE): reader.tensor(key) for key in reader.keys() if key.startswith(_VAE)}
    return host.make_vae(sd) if sd else None


def read_state_dict(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """-> (key -> tensor, coded ones wrapped in their logical shape; header metadata). Tables are registered.

    The user can interrupt it; nothing of it is kept then.
    """
    host.require_quantized_tensors()
    with Reader(path, mapped=False) as reader:      # memory of its own: the file may be replaced afterwards
        coded = set(reader.coded_keys())
        sd = {}
        for key in reader.keys():
            host.raise_if_interrupted()
            if not key.startswith("vq."):
                sd[key] = wrap(reader.weight(key)) if key in coded else reader.tensor(key)
        return sd, {**reader.metadata, _BASE: base_id(reader)}


def _unet_only(sd: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The UNet of a checkpoint under the keys of a UNet file, with its markers; a UNet file as it is."""
    if not any(key.startswith(_UNET) for key in sd):
        return sd
    return {key.removeprefix(_UNET): value for key, value in sd.items() if key.startswith(_UNET) or key in _MARKERS}


def _load(path, memory_mode: str, parts: dict[str, bool], activations: str = FULL) -> tuple:
    sd, metadata = read_state_dict(path)
    if is_unet_only(sd):
        raise UnsupportedError(f"'{Path(path).name}' holds a UNet only, not a whole checkpoint: use Load Diffusion "
                               f"Model (VQ), and load text encoders and VAE from elsewhere")
    model, clip, vae = host.state_dict_to_checkpoint(sd, metadata, _operations(memory_mode, activations),
                                                     memory_mode == DYNAMIC, parts)
    if parts["output_model"] and model is None:
        raise UnsupportedError(f"'{Path(path).name}' holds no diffusion model that this ComfyUI recognizes")
    if clip is not None:
        adopt(clip.patcher)
    if model is not None:
        _name(model, path, metadata)
    return adopt(model), clip, vae


def _name(model, path, metadata: dict[str, str]) -> None:
    """Note on the host's model, which all clones of a MODEL share, what file it is."""
    model.model.vq_base, model.model.vq_path, model.model.vq_name = metadata[_BASE], Path(path), Path(path).name


def _operations(memory_mode: str, activations: str = FULL) -> type:
    """Rounded layers need their codes: with them, "decoded" is keeping all that there is room for (_set_up)."""
    return VQOpsDecoded if memory_mode == DECODED and activations == FULL else VQOps


def _set_up(model, path, memory_mode: str, keep_bytes: int, activations: str, metadata=None) -> None:
    settings = {FULL: "none", AS_FILED: FROM_FILE}.get(activations, activations)
    if settings == FROM_FILE and metadata is None:
        with Reader(path) as reader:
            metadata = dict(reader.metadata)
    wanted = chosen(settings, metadata or {})
    if wanted is not None:
        set_inputs(model, wanted)
    kept.set_budget(model, kept.ALL if memory_mode == DECODED else keep_bytes)


def _remember(patcher, factory, path, memory_mode: str, *more) -> None:
    """Tell the host how to make an independent copy of this model (compile, hooks, several devices)."""
    patcher.cached_patcher_init = (factory, (str(path), memory_mode, *more))


def _mode(memory_mode: str, disable_dynamic: bool) -> str:
    return COMPRESSED if disable_dynamic and memory_mode == DYNAMIC else memory_mode


def _reload_model(path: str, memory_mode: str, keep_bytes: int = 0, activations: str = FULL,
                  disable_dynamic: bool = False):
    parts, mode = {**_ALL, "output_clip": False, "output_vae": False}, _mode(memory_mode, disable_dynamic)
    model = _load(path, mode, parts, activations)[0]
    _set_up(model, path, mode, keep_bytes, activations)
    return model


def _reload_clip(path: str, memory_mode: str, disable_dynamic: bool = False):
    parts = {**_ALL, "output_model": False, "output_vae": False}
    return _load(path, _mode(memory_mode, disable_dynamic), parts)[1].patcher


def _reload_vae(path: str, memory_mode: str, disable_dynamic: bool = False):
    parts = {**_ALL, "output_model": False, "output_clip": False}
    return _load(path, _mode(memory_mode, disable_dynamic), parts)[2].patcher


def _reload_diffusion_model(path: str, memory_mode: str, keep_bytes: int = 0, activations: str = FULL,
                            disable_dynamic: bool = False):
    return load_diffusion_model(path, _mode(memory_mode, disable_dynamic), keep_bytes, activations)
