"""The only file that imports ComfyUI's internals; the rest of `nodes` takes them from here.

What differs between the versions we work on (0.8.0 to 0.33.0) is settled here, by looking, never by version number.
"""
from __future__ import annotations

import contextlib
import gc
import inspect
import sys

import comfy.cli_args
import comfy.float
import comfy.hooks
import comfy.latent_formats
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import folder_paths as folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker

try:
    from comfy_kitchen.tensor.base import (
        BaseLayoutParams,
        QuantizedLayout,
        QuantizedTensor,
        register_layout_class,
        register_layout_op,
    )

    HAS_QUANTIZED_TENSORS = True
except ImportError:
    BaseLayoutParams = QuantizedLayout = QuantizedTensor = object
    HAS_QUANTIZED_TENSORS = False

from ..vq_core.errors import Interrupted, UnsupportedError

calculate_weight = comfy.lora.calculate_weight
cast_bias_weight = comfy.ops.cast_bias_weight
cast_to_device = comfy.model_management.cast_to_device
get_attr = comfy.utils.get_attr
ProgressBar = comfy.utils.ProgressBar
get_key_weight = comfy.model_patcher.get_key_weight
lora_compute_dtype = comfy.model_management.lora_compute_dtype
model_sampling = comfy.model_sampling
run_every_op = getattr(comfy.ops, "run_every_op", lambda: None)      # lets the user interrupt between two layers
round_weight = comfy.float.stochastic_rounding       # stochastic for 8-bit floats only
set_attr_param = comfy.utils.set_attr_param
string_to_seed = getattr(comfy.utils, "string_to_seed", None) or comfy.model_patcher.string_to_seed
uncast_bias_weight = comfy.ops.uncast_bias_weight
BaseOps = comfy.ops.manual_cast
Interruption = comfy.model_management.InterruptProcessingException
EnumHookMode = comfy.hooks.EnumHookMode
APPLY_MODEL = comfy.patcher_extension.WrappersMP.APPLY_MODEL
SAMPLER_SAMPLE = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
LowVramPatch = comfy.model_patcher.LowVramPatch
ModelPatcher = comfy.model_patcher.ModelPatcher
# Dynamic VRAM came with 0.16; before it there is one patcher only.
ModelPatcherDynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)
LazyCastingParam = getattr(comfy.model_patcher, "LazyCastingParam", None)
LoKrAdapter = comfy.weight_adapter.LoKrAdapter
LoRAAdapter = comfy.weight_adapter.LoRAAdapter
WeightAdapterBase = comfy.weight_adapter.WeightAdapterBase


def writes_metadata() -> bool:
    """Whether the user lets graphs be written into files (not with --disable-metadata)."""
    return not comfy.cli_args.args.disable_metadata


def require_quantized_tensors() -> None:
    """UnsupportedError where ComfyUI runs without comfy-kitchen, whose tensors carry our weights."""
    if not HAS_QUANTIZED_TENSORS:
        raise UnsupportedError("VQ files need the package comfy-kitchen 0.2.3 or newer, which cannot be imported here: "
                               "install the requirements of ComfyUI again")


def register_layout(name: str, layout: type, operations: dict) -> None:
    """Make a layout and its torch operations known; doing it twice changes nothing."""
    register_layout_class(name, layout)
    for operation, handler in operations.items():
        register_layout_op(operation, layout)(handler)


def state_dict_to_checkpoint(sd: dict, metadata: dict, operations: type, dynamic: bool, parts: dict) -> tuple:
    """ComfyUI's checkpoint loader on a state dict -> (model patcher, clip, vae), None for what was not asked.

    parts: {"output_model", "output_clip", "output_vae"} -> bool.
    """
    load = comfy.sd.load_state_dict_guess_config
    options = {"custom_operations": operations}
    out = load(sd, embedding_directory=folder_paths.get_folder_paths("embeddings"), model_options=options,
               te_model_options=dict(options), metadata=metadata, **_dynamic(load, dynamic), **parts)
    return (None, None, None) if out is None else out[:3]


def state_dict_to_diffusion_model(sd: dict, metadata: dict, operations: type, dynamic: bool):
    """ComfyUI's diffusion-model loader on a state dict -> model patcher, None where no known model is recognized."""
    load = comfy.sd.load_diffusion_model_state_dict
    return load(sd, model_options={"custom_operations": operations}, metadata=metadata, **_dynamic(load, dynamic))


def _dynamic(load, dynamic: bool) -> dict:
    known = "disable_dynamic" in inspect.signature(load).parameters
    return {"disable_dynamic": not dynamic} if known else {}


def is_cpu(device) -> bool:
    """Whether a load device is the CPU."""
    return device is not None and comfy.model_management.is_device_cpu(device)


def merged_shape(patches: list, weight, key: str) -> tuple[int, ...]:
    """Shape of a weight with its patches: some enlarge it (inpainting); 0.8 cannot tell."""
    calculate = getattr(comfy.lora, "calculate_shape", None)
    return tuple(weight.shape if calculate is None else calculate(patches, weight, key))


def free_bytes(device) -> int:
    """Bytes the host may still take on a device."""
    return comfy.model_management.get_free_memory(device)


def compute_device() -> torch.device:
    """The device ComfyUI computes on."""
    return comfy.model_management.get_torch_device()


def make_room(nbytes: int, device: torch.device) -> None:
    """Ask the host to unload models until so many bytes are free on a device; never more. Nothing on the CPU."""
    if not is_cpu(device):
        comfy.model_management.free_memory(nbytes, device)


def free_models() -> None:
    """Unload every model, for work that needs all memory; the host loads them again where they are used."""
    comfy.model_management.unload_all_models()
    give_back()


def give_back() -> None:
    """Let the device have what torch keeps for later."""
    gc.collect()
    comfy.model_management.soft_empty_cache()


def samplers() -> list[str]:
    """Names of the samplers there are, other packs' too."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    """Names of the schedules there are."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def latent_format(model):
    """What a model's latents are: latent_channels, latent_dimensions and, from 0.9 on, spacial_downscale_ratio."""
    return model.get_model_object("latent_format")


def empty_latents(model, count: int, height: int, width: int) -> torch.Tensor:
    """What EmptyLatentImage gives KSampler for pictures of this size -> [count, channels, height / 8, width / 8]"""
    kind = latent_format(model)
    ratio = getattr(kind, "spacial_downscale_ratio", 8)
    shape = [count, kind.latent_channels, height // ratio, width // ratio]
    empty = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    return comfy.sample.fix_empty_latent_channels(model, empty)


def sample(model, latents: torch.Tensor, seed: int, steps: int, cfg: float, sampler: str, scheduler: str, positive,
           negative, callback) -> torch.Tensor:
    """What KSampler draws from empty latents -> [*shape]; callback(step, denoised, state, steps) before each step."""
    noise = comfy.sample.prepare_noise(latents, seed)
    return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, positive, negative, latents, seed=seed,
                               callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED)


def computed_in(model) -> torch.dtype:
    """dtype of what a MODEL's UNet is given."""
    return unet_dtype(model.model)


def unet_dtype(base) -> torch.dtype:
    """The same of the host's model inside a MODEL."""
    if hasattr(base, "get_dtype_inference"):
        return base.get_dtype_inference()
    return base.get_dtype() if base.manual_cast_dtype is None else base.manual_cast_dtype         # 0.8


def encode(clip, prompt: str) -> list:
    """A prompt's conditioning, as CLIPTextEncode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def load_model(model, nbytes: float) -> None:
    """Have a MODEL on its device, patched, with so many bytes beside it; other models make room."""
    comfy.model_management.load_models_gpu([model], memory_required=nbytes)


def previewer(model):
    """Maker of the host's previews: f(denoised [1, c, h, w]) -> what a progress bar takes; None where it makes none."""
    return _previewer(model.load_device, latent_format(model))


def sdxl_previewer():
    """The same for SDXL's latents, where there is no MODEL."""
    return _previewer(compute_device(), comfy.latent_formats.SDXL())


def _previewer(device, kind):
    try:
        import latent_preview
    except ImportError:                    # ComfyUI used as a library
        return None
    found = latent_preview.get_previewer(device, kind)
    return None if found is None else lambda latents: found.decode_latent_to_preview_image("JPEG", latents)


def make_vae(sd: dict):
    """A VAE of these weights, under the names inside it."""
    return comfy.sd.VAE(sd=sd)


def decode_sdxl(vae, latents: torch.Tensor) -> torch.Tensor:
    """SDXL's latents as the sampler has them [n, 4, h, w] -> pictures [n, height, width, 3], 0 to 1"""
    return vae.decode(comfy.latent_formats.SDXL().process_out(latents))


def missing(why: str) -> ExecutionBlocker:
    """An output that is not there: nodes that want it say why and do not run."""
    return ExecutionBlocker(why)


def server():
    """The host's running server, None where ComfyUI runs as a library."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def busy() -> bool:
    """Whether the host works on a prompt or has one waiting."""
    running = server()
    return running is not None and running.prompt_queue.get_tasks_remaining() > 0


def place_of(prompt: str) -> tuple[str, dict]:
    """Where a prompt is: "waiting", "running", "ended" or "unknown"; and its entry in the history once it has ended."""
    running = server()
    if running is None:
        return "unknown", {}
    now, later = running.prompt_queue.get_current_queue_volatile()
    for place, items in (("running", now), ("waiting", later)):
        if any(item[1] == prompt for item in items):
            return place, {}
    entry = running.prompt_queue.get_history(prompt_id=prompt).get(prompt)
    return ("unknown", {}) if entry is None else ("ended", entry)


def running_prompt() -> str:
    """Id of the prompt the host works on, "" where it has none."""
    now = () if server() is None else server().prompt_queue.get_current_queue_volatile()[0]
    return next((item[1] for item in now), "")


def interrupted() -> bool:
    """Whether the user pressed stop; ComfyUI's flag stays up."""
    return comfy.model_management.processing_interrupted()


def raise_if_interrupted() -> None:
    """ComfyUI's own interruption, which it shows as such and not as an error; lowers its flag."""
    comfy.model_management.throw_exception_if_processing_interrupted()


@contextlib.contextmanager
def as_interruption():
    """Around the work of a node: the host shows its own interruption as one, ours (Interrupted) as an error."""
    try:
        yield
    except Interrupted:
        raise_if_interrupted()
        raise
