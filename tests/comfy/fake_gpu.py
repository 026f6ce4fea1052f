"""A second device on a machine that has none, for tests inside a ComfyUI process: `cpu:0` plays the GPU.

torch keeps its tensors where the CPU's are and computes as usual, while ComfyUI's own bookkeeping sees two devices that
differ: partial loading, memory states and, with fake_dynamic_vram, the whole of dynamic VRAM run as they do on a GPU.
What it cannot show: whether a tensor really crossed over, streams, pinned memory, time.
"""
from __future__ import annotations

import contextlib
from unittest import mock

import comfy.model_management as management
import torch
from safetensors.torch import load_file
from vqpack.nodes import host

GPU = torch.device("cpu", 0)
CPU = torch.device("cpu")
PLENTY = 64 << 30


@contextlib.contextmanager
def second_device(state: str = "NORMAL_VRAM", free: int = PLENTY):
    """Models are loaded on `cpu:0`, of which `free` bytes are left for what is not loaded yet; state: a VRAMState."""
    def free_memory(device=None, torch_free_too=False):
        taken = sum(loaded.model_loaded_memory() for loaded in management.current_loaded_models
                    if loaded.model is not None and loaded.device == GPU)
        left = free - taken if device is None or device == GPU else PLENTY
        return (left, 0) if torch_free_too else left

    with contextlib.ExitStack() as stack:
        for name, value in (("get_torch_device", lambda: GPU), ("is_device_cpu", lambda device: device == CPU),
                            ("get_free_memory", free_memory), ("vram_state", management.VRAMState[state]),
                            ("minimum_inference_memory", lambda: 0), ("EXTRA_RESERVED_VRAM", 0)):
            stack.enter_context(mock.patch.object(management, name, value))
        yield


class Vbar:
    """What comfy_aimdo's ModelVBAR offers, in plain memory: slots that can be taken away."""

    def __init__(self, size, device):
        self.slots: dict[int, torch.Tensor] = {}
        self.resident: dict[int, bytes] = {}
        self.pinned: dict[int, int] = {}
        self.faults = 0
        self.full = False                  # a fault answers "no room", as under memory pressure

    def alloc(self, size):
        slot = len(self.slots)
        self.slots[slot] = torch.zeros(size, dtype=torch.uint8)
        return (self, slot, size)

    def fault(self, slot, size):
        if self.full:
            return None
        self.pinned[slot] = self.pinned.get(slot, 0) + 1
        if slot not in self.resident:
            self.faults += 1
            self.resident[slot] = self.faults.to_bytes(8, "little")
        return self.resident[slot]

    def unpin(self, slot, size):
        self.pinned[slot] = self.pinned.get(slot, 0) - 1

    def prioritize(self):
        """Nothing to order."""

    def loaded_size(self):
        return sum(self.slots[slot].nbytes for slot in self.resident)

    def free_memory(self, wanted):
        freed = self.loaded_size()
        for slot in self.resident:
            self.slots[slot].fill_(255)    # whoever reads it now reads garbage
        self.resident.clear()
        return freed


class HostBuffer:
    """Of pinned memory only its absence is simulated."""

    size = 0

    def __init__(self, *sizes):
        """No memory is taken."""


@contextlib.contextmanager
def fake_dynamic_vram():
    """ComfyUI's dynamic loading over Vbar, on `cpu:0`; to be used within second_device."""
    import comfy.pinned_memory
    import comfy.utils
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    patched = [(comfy.utils, "load_safetensors", lambda path: (load_file(path), None)),
               (comfy_aimdo.model_vbar, "ModelVBAR", Vbar), (comfy_aimdo.host_buffer, "HostBuffer", HostBuffer),
               (comfy_aimdo.torch, "aimdo_to_tensor", lambda slot, device: slot[0].slots[slot[1]]),
               (comfy_aimdo.model_vbar, "vbars_analyze", lambda device=None: 0),
               (comfy.pinned_memory, "get_pin", lambda module, subset="weights": None),
               (comfy.pinned_memory, "pin_memory", lambda module, subset="weights", size=None: None),
               (management, "pinned_hostbuf_size", lambda size: 0),
               (comfy.memory_management, "aimdo_enabled", True),
               (comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic),
               (comfy.ops, "cast_bias_weight", _to_the_gpu(comfy.ops.cast_bias_weight)),
               (host, "cast_bias_weight", _to_the_gpu(host.cast_bias_weight))]
    with contextlib.ExitStack() as stack:
        for module, name, value in patched:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def _to_the_gpu(cast):
    """The host's cast with its device said to be the GPU: an input that is on `cpu:0` calls itself `cpu`."""
    def cast_bias_weight(s, input=None, dtype=None, device=None, bias_dtype=None, **options):
        if input is not None:
            dtype, bias_dtype = dtype or input.dtype, bias_dtype or dtype or input.dtype
        return cast(s, None, dtype, GPU, bias_dtype, **options)
    return cast_bias_weight
