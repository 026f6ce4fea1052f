"""Activations of few bits, emulated in floating point: Q-Diffusion, TALSQ, DGQ and plain int8 (docs/activations.md)."""
from __future__ import annotations

from .attach import Attached, quantize_activations
from .calibrate import calibrate_activations
from .file import load_ranges, save_ranges
from .ranges import Ranges
from .specs import Activations, activations_from_json, make_activations

__all__ = ["Activations", "Attached", "Ranges", "activations_from_json", "calibrate_activations", "load_ranges",
           "make_activations", "quantize_activations", "save_ranges"]
