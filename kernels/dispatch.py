"""Chooses who decodes a part. Backends declare what they need; it is checked before they are called.

Nothing falls back because a call failed: a backend either declines beforehand, with a reason that is counted, or its
error is the caller's error.
"""
from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass, fields

import torch

from . import capabilities
from .checks import check_part
from .parts import AdditivePart, LutPart, Part, TrellisPart

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FAMILIES = {LutPart: "lut", AdditivePart: "additive", TrellisPart: "trellis"}


class BackendError(ValueError):
    """No backend, or not the one asked for, can do what was asked; `reasons` maps backend names to sentences."""

    def __init__(self, message: str, reasons: dict[str, str]):
        super().__init__(message)
        self.reasons = reasons


@dataclass(frozen=True)
class Requirements:
    """What a backend needs. An empty tuple or None means anything will do."""

    families: tuple[str, ...] = tuple(FAMILIES.values())
    devices: tuple[str, ...] = ()                   # torch device types
    dtypes: tuple[torch.dtype, ...] = DTYPES
    package: str | None = None
    capability: tuple[int, int] | None = None       # CUDA compute capability, at least
    self_test: bool = False                         # module's self_test(family, device) must answer None

    def refusal(self, part: Part, dtype: torch.dtype, module: str) -> str | None:
        """The first requirement that is not met, as a sentence; None where all are met."""
        family, device = FAMILIES[type(part)], part.codes.device
        if family not in self.families:
            return f"decodes {', '.join(self.families)}, got {family}"
        if self.devices and device.type not in self.devices:
            return f"runs on {', '.join(self.devices)}, got {device}"
        if dtype not in self.dtypes:
            return f"writes {', '.join(map(str, self.dtypes))}, got {dtype}"
        if self.package and capabilities.package_version(self.package) is None:
            return f"needs {self.package}: {capabilities.package_problem(self.package)}"
        found = capabilities.compute_capability(device)
        if self.capability and found and found < self.capability:
            return f"needs compute capability {self.capability[0]}.{self.capability[1]}, got {found[0]}.{found[1]}"
        return _self_test(module, family, device) if self.self_test else None


@dataclass(frozen=True)
class Backend:
    """A module of this package with `decode(part, start, stop, out)`."""

    name: str
    module: str
    requirements: Requirements
    automatic: bool = True      # taken without being asked for


# In order of preference. Triton has dropped sm_75 (from 3.3 on); torch's gather serves such cards.
BACKENDS = (
    Backend("triton", "decode_triton", Requirements(devices=("cuda",), package="triton", capability=(8, 0),
                                                    self_test=True)),
    Backend("torch", "decode_torch", Requirements()),
    Backend("reference", "reference", Requirements(), automatic=False),
)

_lock = threading.Lock()
_fallbacks: dict[tuple[str, str], int] = {}
_self_tests: dict[tuple[str, str, str], str | None] = {}


def decode_part(part: Part, start: int = 0, stop: int | None = None, dtype: torch.dtype = torch.float32,
                backend: str | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows start..stop of a part -> [stop - start, cols] in dtype, on the device of part.codes.

    Any start and stop give the rows of the whole, bit for bit, from every backend. out: a contiguous tensor of that
    shape and dtype to write to. Raises ValueError or TypeError for a part, range or dtype that cannot be, and
    BackendError (a ValueError) with every backend's reason where none may run.
    """
    check_part(part)
    stop = part.out_features if stop is None else stop
    if not 0 <= start <= stop <= part.out_features:
        raise ValueError(f"rows must satisfy 0 <= start <= stop <= {part.out_features}, got {start} to {stop}")
    if dtype not in DTYPES:
        raise TypeError(f"weights can be {', '.join(map(str, DTYPES))}, got {dtype}")
    shape, device = [stop - start, part.channels * part.taps], part.codes.device
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=device)  # [stop - start, cols]
    elif list(out.shape) != shape or out.dtype != dtype or out.device != device or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {dtype} {shape} on {device}, "
                         f"got {out.dtype} {list(out.shape)} on {out.device}")
    chosen = choose(part, dtype, backend)
    if start < stop:
        _module(chosen.module).decode(part, start, stop, out)
    return out


def choose(part: Part, dtype: torch.dtype = torch.float32, backend: str | None = None) -> Backend:
    """The backend that decodes this part: the one asked for, or the first that does not decline."""
    if backend is not None and backend not in [known.name for known in BACKENDS]:
        raise BackendError(f"unknown backend '{backend}': expected one of "
                           f"{', '.join(known.name for known in BACKENDS)}", {})
    reasons = {}
    for candidate in BACKENDS:
        if candidate.name != backend if backend else not candidate.automatic:
            continue
        reason = candidate.requirements.refusal(part, dtype, candidate.module)
        if reason is None:
            return candidate
        reasons[candidate.name] = reason
        if part.codes.device.type in candidate.requirements.devices:  # made for this device, yet declined
            with _lock:
                _fallbacks[candidate.name, reason] = _fallbacks.get((candidate.name, reason), 0) + 1
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise BackendError(f"no backend can decode this {FAMILIES[type(part)]} part: {listed}", reasons)


def fallbacks() -> dict[tuple[str, str], int]:
    """How often a backend made for the part's device declined: (backend, reason) -> count, for reports."""
    with _lock:
        return dict(_fallbacks)


def requirements_table() -> list[dict[str, str]]:
    """One row per backend, for `doctor`: its name and each requirement in words."""
    return [{"backend": known.name, **{field.name: str(getattr(known.requirements, field.name))
                                       for field in fields(known.requirements)}} for known in BACKENDS]


def _self_test(module: str, family: str, device: torch.device) -> str | None:
    """Once per kernel, device and process: decode something small and compare it with torch."""
    key = (module, family, str(device))
    if key not in _self_tests:
        reason = _module(module).self_test(family, device)
        with _lock:
            _self_tests[key] = reason
    return _self_tests[key]


def _module(name: str):
    return importlib.import_module(f".{name}", __package__)
