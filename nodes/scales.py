"""Scale adapters on a MODEL: before each call of the UNet its layers get their scales, by the noise of every sample.

They go around what a layer computes (call.py), so decoded weights, kept ones, fused kernels and LoRA are as without
them; a LoRA is inside the scales. Nothing is loaded again when they change: they stand in a wrapper of the patcher.
"""
from __future__ import annotations

import weakref

from ..vq_core.adapters.file import Adapter
from ..vq_core.adapters.stack import Stack
from ..vq_core.errors import UnsupportedError
from . import host
from .ops import Coded

KEY, PREFIX = "vqpack.scales", "model.diffusion_model."


class Scaled:
    """The wrapper around every call of a MODEL's UNet: all adapters of the MODEL together."""

    def __init__(self, adapters: tuple[tuple[Adapter, float], ...]):
        self.adapters, self.stack = adapters, Stack(adapters)
        self._of, self._layers = None, {}

    def __call__(self, executor, x, sigma, *args, **kwargs):
        """The host's call: x [samples, ...], sigma [samples]"""
        layers = self._find(executor.class_obj)
        if x.shape[0] != len(sigma):
            sigma = sigma[:1].expand(x.shape[0])
        scales = self.stack.scales(sigma, x.device, host.unet_dtype(executor.class_obj))
        try:
            for key, layer in layers.items():
                layer.scales = scales[key]
            return executor(x, sigma, *args, **kwargs)
        finally:
            for layer in layers.values():
                layer.scales = None

    def _find(self, model) -> dict[str, Coded]:
        """Key of a weight -> the layer of this model."""
        if self._of is None or self._of() is not model:
            keys = dict.fromkeys(key for adapter, _ in self.adapters for key in adapter.layers)
            paths = {key: key.removeprefix(PREFIX).removesuffix(".weight") for key in keys}
            self._of = weakref.ref(model)
            self._layers = {key: model.diffusion_model.get_submodule(path) for key, path in paths.items()}
        return self._layers


def base_of(model) -> str | None:
    """base_id of the VQ file a MODEL was loaded from; UnsupportedError for a model of another loader."""
    base = getattr(model.model, "vq_base", None)
    if base is None:
        raise UnsupportedError("expected a MODEL of Load Checkpoint (VQ) or Load Diffusion Model (VQ), got one of "
                               "another loader: scale adapters belong to a VQ file")
    return base


def with_adapter(model, adapter: Adapter, strength: float):
    """A clone of a MODEL with one adapter more."""
    model = model.clone()
    before = [wrapper for wrapper in model.get_wrappers(host.APPLY_MODEL, KEY) if isinstance(wrapper, Scaled)]
    adapters = (*(pair for wrapper in before for pair in wrapper.adapters), (adapter, strength))
    model.remove_wrappers_with_key(host.APPLY_MODEL, KEY)
    model.add_wrapper_with_key(host.APPLY_MODEL, KEY, Scaled(adapters))
    return model
