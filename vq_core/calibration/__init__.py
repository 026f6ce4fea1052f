"""Calibration: what a model's layers see and what their outputs are worth, from prompts alone (docs/calibration.md)."""
from __future__ import annotations

from .file import Calibration

__all__ = ["Calibration"]
