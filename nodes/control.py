"""ControlLora on a coded model: a control net that borrows the UNet's weights, which here are coded.

The host's ControlLora copies them out of the UNet's state dict, key by key, before each sampling. Ours holds stored
bytes there, so once the copies are made the same keys are given the coded tensors themselves: nothing is decoded ahead
of time and nothing is copied, each layer decodes its own weight when it runs.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch

from . import host
from .layout import is_coded
from .ops import Coded
from .patches import VQPatch

KEY = "vqpack.control"


def add_to(patcher) -> None:
    """Watch every sampling of this patcher and of its clones."""
    patcher.remove_wrappers_with_key(host.SAMPLER_SAMPLE, KEY)
    patcher.add_wrapper_with_key(host.SAMPLER_SAMPLE, KEY, lend_weights)


def lend_weights(executor, guider, *args, **kwargs):
    """The host's sampler, after the control nets of this sampling got coded weights where they had stored bytes."""
    unet = guider.inner_model.diffusion_model
    for net in _control_models(guider.conds):
        _lend(unet, net)
    return executor(guider, *args, **kwargs)


def _control_models(conds: dict) -> Iterator[torch.nn.Module]:
    """Networks of all control nets in the conditionings, chained ones too, each once."""
    seen = set()
    for control in (cond.get("control") for group in conds.values() for cond in group):
        while control is not None and id(control) not in seen:
            seen.add(id(control))
            if isinstance(getattr(control, "control_model", None), torch.nn.Module):
                yield control.control_model
            control = control.previous_controlnet


def _lend(unet: torch.nn.Module, net: torch.nn.Module) -> None:
    """Replace stored bytes among the parameters of `net` by the coded weight they belong to, with its LoRA."""
    layers = dict(unet.named_modules())
    for name, module in net.named_modules():
        ours, borrowed = layers.get(name), getattr(module, "weight", None)
        if isinstance(ours, Coded) and is_coded(ours.weight) and _is_blob_of(borrowed, ours.weight):
            module.weight = torch.nn.Parameter(ours.weight.detach(), requires_grad=False)
            module.weight_function = [f for f in ours.weight_function if isinstance(f, VQPatch)]


def _is_blob_of(tensor, coded) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.dtype == torch.uint8 and tensor.shape == coded._qdata.shape
