"""Architectures as data: families, layers in coding order, key names of other tools."""
from __future__ import annotations

from . import clip_names, unet_names, vae_names
from .detect import Architecture, detect
from .layer import Layer, coding_order, component_of, make_layer, make_layers
from .unet import UNET_PREFIX, UNet, read_unet

__all__ = ["UNET_PREFIX", "Architecture", "Layer", "UNet", "clip_names", "coding_order", "component_of", "detect",
           "layers", "make_layer", "make_layers", "read_unet", "unet_names", "vae_names"]


def layers(source) -> list[Layer]:
    """All tensors of a Source (anything with keys() and shape(key)), in coding order."""
    return make_layers({key: tuple(source.shape(key)) for key in source.keys()})
