"""Model patchers that add LoRA and merges to the decoded weight in each call, and never bake nor re-encode them.

The host's own patchers write a patched weight back, which for a coded weight means fp16 size or a lossy second coding.
These leave coded weights alone and keep one VQPatch per patched weight in the module's `weight_function`.
"""
from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..vq_core.scratch_pool import POOL
from . import control, host, kept
from .dense_view import DenseView
from .guards import restore
from .layout import decode, is_coded, unwrap
from .ops import Coded
from .patches import HookPatch, VQPatch, patch_bytes, say_if_hook_matches_nothing, say_if_nothing_matches
from .scratch import count_scratch

_SHARE_OF_FREE_MEMORY = 0.25               # dynamic VRAM has no budget to ask; more than this stays in main memory


class _OnTheFly:
    """Overrides shared by both patchers; the next class in line is the host's."""

    def coded_modules(self) -> Iterator[tuple[str, Coded]]:
        """(weight key, module) of every module whose weight is coded."""
        for name, module in self.model.named_modules():
            if isinstance(module, Coded) and is_coded(module.weight):
                yield f"{name}.weight", module

    def coded_module(self, key: str) -> Coded | None:
        """The module whose coded weight has this key."""
        path, _, name = key.rpartition(".")
        module = host.get_attr(self.model, path) if name == "weight" and path else None
        return module if isinstance(module, Coded) and is_coded(module.weight) else None

    def add_patches(self, patches, *args, **kwargs):
        """The host's, and a word where there is nothing to add: it tells one line per key, or nothing."""
        say_if_nothing_matches(patches, self.is_clip)
        return super().add_patches(patches, *args, **kwargs)

    def add_hook_patches(self, hook, patches, *args, **kwargs):
        """The same for what comes by hook."""
        say_if_hook_matches_nothing(hook, patches, self.is_clip)
        return super().add_hook_patches(hook, patches, *args, **kwargs)

    def patch_weight_to_device(self, key, device_to=None, *args, **kwargs):
        """Coded weights are not patched here; with return_weight the patched dense weight is given instead."""
        module = self.coded_module(key)
        if module is None:
            return super().patch_weight_to_device(key, device_to, *args, **kwargs)
        if kwargs.get("return_weight"):
            return self.patched_weight(key, device_to)
        if kwargs.get("force_cast") and device_to is not None:       # dynamic VRAM: small modules go over in one piece
            self.backup.setdefault(key, _Backup(module.weight))
            host.set_attr_param(self.model, key, module.weight.to(device_to))
        return None

    def patched_weight(self, key: str, device=None) -> torch.Tensor:
        """The decoded weight with its patches, in the dtype of the source checkpoint -> [*logical shape]"""
        coded = unwrap(self.coded_module(key).weight)
        weight = decode(coded if device is None else coded.to(device), torch.float32)
        if key in self.patches:
            weight = host.calculate_weight(self.patches[key], weight, key)
        wide = coded.source_dtype in (torch.float16, torch.bfloat16, torch.float32)
        return weight.to(coded.source_dtype if wide else torch.float16)

    def loaded_weight(self, key: str) -> torch.Tensor:
        """The decoded weight as the model computes with it now, with the LoRA it is loaded with -> [*logical shape]"""
        weight = self.coded_module(key).weight
        dense = decode(unwrap(weight), torch.float32)
        if key in self.patches and self.model.current_weight_patches_uuid == self.patches_uuid:
            dense = host.calculate_weight(self.patches[key], dense, key)
        return dense.to(weight.dtype)

    def model_state_dict(self, filter_prefix=None):
        """The host's, with coded weights decoded when they are looked up: other code takes weights out of it by key."""
        return DenseView(super().model_state_dict(filter_prefix), self)

    def patch_bytes(self) -> int:
        """Bytes of the tensors that LoRA and merges bring to coded weights."""
        return sum(patch_bytes(self.patches[key]) for key, _ in self.coded_modules() if key in self.patches)

    def held_bytes(self) -> int:
        """Bytes of those tensors that are on the device now."""
        patches = (getattr(module, "vq_patch", None) for _, module in self.coded_modules())
        return sum(patch.bytes_held for patch in patches if patch is not None)

    def kept_bytes(self) -> int:
        """Bytes of decoded weights that are kept on the device now."""
        return kept.kept_bytes(module for _, module in self.coded_modules())

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        """Take our patches out too (the host only does so after a partial load), and what foreign patchers left."""
        if unpatch_weights:
            POOL.clear()
            for _, module in self.coded_modules():
                module.vq_patch = module.kept = None
                module.weight_function = [f for f in module.weight_function if not isinstance(f, VQPatch)]
        super().unpatch_model(device_to, unpatch_weights=unpatch_weights)
        if unpatch_weights:
            restore(self.model)

    def _attach(self, device) -> None:
        """Exactly one patch, first in line, on every coded weight that has patches; tensors go to device, if given."""
        for key, module in self.coded_modules():
            patch = getattr(module, "vq_patch", None)
            if key not in self.patches:
                patch = None
            elif patch is None or patch.uuid != self.patches_uuid:
                patch = VQPatch(key, self.patches[key], self.patches_uuid)
            if patch is not None and device is not None:
                patch.move_to(device)
            module.vq_patch = patch
            others = [f for f in module.weight_function if not isinstance(f, (VQPatch, host.LowVramPatch))]
            module.weight_function = others if patch is None else [patch, *others]
            if getattr(module, "weight_lowvram_function", None) is not None:
                module.weight_lowvram_function = None                # dynamic VRAM would re-encode what it returns

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights, memory_counter):
        """Hooks on a coded weight become a weight function; the host would write into the weight."""
        module = self.coded_module(key)
        if module is None:
            return super().patch_hook_weight_to_device(hooks, combined_patches, key, original_weights, memory_counter)
        if key not in combined_patches:
            return None
        patch = HookPatch(key, combined_patches[key], {key: original_weights.pop(key)})
        patch.move_if_room(self.load_device, memory_counter)
        _set_hook(module, patch)
        if self.hook_mode == host.EnumHookMode.MaxSpeed:             # else the host caches nothing: all keys or none
            self.cached_hook_patches.setdefault(hooks, {})[key] = (patch, module.weight.device)
        return None

    def patch_cached_hook_weights(self, cached_weights, key, memory_counter):
        """What was cached for a coded weight is its HookPatch."""
        patch = cached_weights[key][0]
        if not isinstance(patch, HookPatch):
            return super().patch_cached_hook_weights(cached_weights, key, memory_counter)
        return _set_hook(self.coded_module(key), patch)

    def unpatch_hooks(self, whitelist_keys_set=None):
        """Take hook patches out of coded weights (only of the listed keys where there is a list)."""
        for key, module in self.coded_modules():
            if not whitelist_keys_set or key in whitelist_keys_set:
                _set_hook(module, None)
        return super().unpatch_hooks(whitelist_keys_set)

    def model_state_dict_for_saving(self, model=None, prefix=""):
        """Dense weights with their patches, decoded when they are written where the host can wait for that."""
        sd = super().model_state_dict_for_saving(model, prefix)
        for key, module in self.coded_modules():
            if key.startswith(prefix):
                sd[key[len(prefix):]] = self._dense_for_saving(key, module)
        return sd

    def _dense_for_saving(self, key: str, module: Coded):
        if host.LazyCastingParam is None or self.is_clip:            # CLIP-G's q, k and v are concatenated before
            return self.patched_weight(key).cpu()
        dtype = unwrap(module.weight).source_dtype
        return host.LazyCastingParam(self, key, torch.empty(module.weight.shape, dtype=dtype, device="meta"))


class _Backup:
    """The host's record of a weight to put back."""

    inplace_update = False

    def __init__(self, weight):
        self.weight = weight


def _set_hook(module: Coded, patch: HookPatch | None) -> None:
    functions = [f for f in module.weight_function if not isinstance(f, HookPatch)]
    module.weight_function = functions if patch is None else [*functions, patch]


class VQModelPatcher(_OnTheFly, host.ModelPatcher):
    """Whole or partial loading, as on every ComfyUI from 0.8 on."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        """The host's load, then one patch per patched weight, its tensors on the device where they leave room.

        Their bytes come off the budget (0 with full_load: none given). Tensors that would take more than half of it
        stay in main memory and cross over in each call, as the weights do that found no room. Decoded weights are kept
        in what is left of it.
        """
        budget = math.inf if full_load and not lowvram_model_memory else lowvram_model_memory
        wanted = self.patch_bytes()
        room = wanted <= budget / 2
        if room and wanted and budget < math.inf:
            lowvram_model_memory = budget - wanted
            full_load = full_load and self.model_size() <= lowvram_model_memory
        super().load(device_to, lowvram_model_memory, force_patch_weights, full_load)
        self._attach(device_to if room else self.offload_device)
        self.model.model_loaded_weight_memory += self.held_bytes()
        kept.fill(self, device_to, budget - self.model.model_loaded_weight_memory)
        self.model.model_loaded_weight_memory += self.kept_bytes()

    def partially_unload(self, device_to, memory_to_free=0, *args, **kwargs):
        """Decoded weights go first. The host appends a second patch to what it unloads; leave one."""
        POOL.clear()
        freed = kept.drop(module for _, module in self.coded_modules())
        self.model.model_loaded_weight_memory -= freed
        if not freed or freed < memory_to_free:
            freed += super().partially_unload(device_to, memory_to_free - freed, *args, **kwargs)
            self._attach(None)
        return freed


if host.ModelPatcherDynamic is not None:

    class VQModelPatcherDynamic(_OnTheFly, host.ModelPatcherDynamic):
        """Dynamic VRAM. Experimental: written from the host's source, not yet run on a GPU."""

        def __new__(cls, model=None, load_device=None, *args, **kwargs):
            # The host's own __new__ gives its plain patcher on the CPU, without our overrides.
            if host.is_cpu(load_device):
                return VQModelPatcher(model, load_device, *args, **kwargs)
            return object.__new__(cls)

        def load(self, device_to=None, *args, **kwargs):
            """The host's load, then patches as in the other patcher. What is coded counts as its stored bytes."""
            super().load(device_to, *args, **kwargs)
            room = self.patch_bytes() <= _SHARE_OF_FREE_MEMORY * host.free_bytes(device_to)
            self._attach(device_to if room else self.offload_device)
            forced = [self.coded_module(key) for key in self.backup]
            logical = sum(m.weight.numel() * m.weight.element_size() - m.weight.nbytes for m in forced if m is not None)
            self.model.model_loaded_weight_memory += self.held_bytes() - logical

        def partially_unload(self, *args, **kwargs):
            """The host gives back what is not paged last; patch tensors are counted with it and go with it."""
            freed = super().partially_unload(*args, **kwargs)
            if not self.model.model_loaded_weight_memory:
                for _, module in self.coded_modules():
                    if getattr(module, "vq_patch", None) is not None:
                        module.vq_patch.move_to(self.offload_device)
            return freed

        def clone(self, disable_dynamic=False, *args, **kwargs):
            """The host makes a plain patcher for what cannot be dynamic; it has to be ours."""
            return adopt(super().clone(disable_dynamic, *args, **kwargs))


def adopt(patcher):
    """Turn one of the host's patchers into ours, in place: it is already known to the host by identity."""
    dynamic = host.ModelPatcherDynamic is not None and isinstance(patcher, host.ModelPatcherDynamic)
    if isinstance(patcher, host.ModelPatcher) and not isinstance(patcher, _OnTheFly):
        patcher.__class__ = VQModelPatcherDynamic if dynamic else VQModelPatcher
        if hasattr(patcher.model, "diffusion_model"):
            control.add_to(patcher)
            count_scratch(patcher.model)
    return patcher


