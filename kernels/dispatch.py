"""Chooses who decodes a part. Backends declare what they need; it is checked before they are called.

Nothing falls back because a call failed: a backend either declines beforehand, with a reason that is counted, or its
error is the caller's error. linear.py multiplies with coded parts, custom_ops.py shows both to torch.compile.
"""
from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from . import capabilities
from .checks import check_part
from .integers import int8_refusal
from .parts import AdditivePart, LutPart, Part, TrellisPart

WEIGHTS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*WEIGHTS, torch.int8)     # int8: the integers themselves
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
    version: tuple[int, int] | None = None          # of the package, at least
    widest: int | None = None                       # columns of a part: its kernels count inside a tile in 32 bits
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
        if self.version and _numbers(capabilities.package_version(self.package)) < self.version:
            return (f"needs {self.package} {'.'.join(map(str, self.version))} or newer, got "
                    f"{capabilities.package_version(self.package)}")
        if self.widest and max(part.channels * part.taps, _entries(part) // 64) > self.widest:
            return f"counts up to {self.widest} columns and {64 * self.widest} entries, the part has more"
        found = capabilities.compute_capability(device)
        if self.capability and found and found < self.capability:
            return f"needs compute capability {self.capability[0]}.{self.capability[1]}, got {found[0]}.{found[1]}"
        return _self_test(module, family, device) if self.self_test else None


@dataclass(frozen=True)
class Backend:
    """A module of this package with `decode(part, start, stop, out)`, out [stop - start, taps, channels], strided."""

    name: str
    module: str
    requirements: Requirements
    automatic: bool = True      # taken without being asked for


# In order of preference. Triton has dropped sm_75 with 3.3, which brought the gather from shared memory: torch's gather
# serves such cards.
BACKENDS = (
    Backend("triton", "decode_triton", Requirements(devices=("cuda",), package="triton", version=(3, 3),
                                                    widest=2**24, capability=(8, 0), self_test=True)),
    Backend("torch", "decode_torch", Requirements()),
    Backend("reference", "reference", Requirements(), automatic=False),
)

_lock = threading.Lock()
_fallbacks: dict[tuple[str, str], int] = {}
_self_tests: dict[tuple[str, str, str], str | None] = {}


def decode_part(part: Part, start: int = 0, stop: int | None = None, dtype: torch.dtype = torch.float32,
                backend: str | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows start..stop of a part -> [stop - start, cols] in dtype, on the device of part.codes.

    Any start and stop give the rows of the whole, bit for bit, from every backend. torch.int8 asks for the integers
    before scales, and before the rotation is undone; ValueError where the part's tables allow others than int8 holds.
    out: where to write, of that dtype and device, [rows, cols] or [rows, taps, channels], its last stride 1 and its
    rows and taps apart: a range of columns of a wider matrix will do. Raises ValueError or TypeError for a part, range
    or dtype that cannot be, BackendError (a ValueError) with every backend's reason where none may run, and
    torch.cuda.OutOfMemoryError with the size that was missing.
    """
    check_part(part)
    stop = part.out_features if stop is None else stop
    if not 0 <= start <= stop <= part.out_features:
        raise ValueError(f"rows must satisfy 0 <= start <= stop <= {part.out_features}, got {start} to {stop}")
    _check_dtype(part, dtype)
    chosen = choose(part, dtype, backend)
    try:
        if out is None:
            out = torch.empty(stop - start, part.channels * part.taps, dtype=dtype, device=part.codes.device)
        maps = _maps(out, part, stop - start, dtype)                        # [rows, taps, channels]
        if start < stop:
            _module(chosen.module).decode(part, start, stop, maps)
    except torch.cuda.OutOfMemoryError as error:
        raise torch.cuda.OutOfMemoryError(_too_large(part, stop - start, dtype)) from error
    return out


def decode_group(parts: Sequence[Part], outs: Sequence[torch.Tensor], backend: str | None = None) -> None:
    """Decode several whole parts, each to its `out` (as decode_part's): what shares an input, such as q, k and v.

    Where one backend takes them all and can, parts of one shape and spec are one launch.
    """
    for part, out in zip(parts, outs, strict=True):
        check_part(part)
        _check_dtype(part, out.dtype)
    maps = [_maps(out, part, part.out_features, out.dtype) for part, out in zip(parts, outs)]
    chosen = [_module(choose(part, out.dtype, backend).module) for part, out in zip(parts, outs)]
    grouped = getattr(chosen[0], "decode_group", None) if len(set(chosen)) == 1 else None
    if grouped is not None:
        grouped(parts, maps)
        return
    for module, part, here in zip(chosen, parts, maps):
        module.decode(part, 0, part.out_features, here)


def _check_dtype(part: Part, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"weights can be {', '.join(map(str, DTYPES))}, got {dtype}")
    refusal = int8_refusal(part) if dtype == torch.int8 else None
    if refusal:
        raise ValueError(f"this {FAMILIES[type(part)]} part cannot be decoded to int8: {refusal}")


def _maps(out: torch.Tensor, part: Part, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """out as [rows, taps, channels]; ValueError where it is not what decode_part may write to."""
    shape, device = (rows, part.taps, part.channels), part.codes.device
    fits = tuple(out.shape) in (shape, (rows, part.taps * part.channels)) and out.dtype == dtype
    if fits and out.device == device and (out.stride(-1) == 1 or out.shape[-1] == 1):
        maps = out if out.ndim == 3 else out.unflatten(1, shape[1:])
        row, tap, _ = maps.stride()
        taken = (part.taps - 1) * tap + part.channels                       # elements from a row's first to its last
        if (part.taps == 1 or tap >= part.channels) and (rows < 2 or row >= taken):
            return maps
    raise ValueError(f"out must be {dtype} {[rows, part.taps * part.channels]} or {list(shape)} on {device} with a "
                     f"last stride of 1 and no overlap, got {out.dtype} {list(out.shape)} with strides "
                     f"{list(out.stride())} on {out.device}")


def _too_large(part: Part, rows: int, dtype: torch.dtype) -> str:
    return (f"out of memory on {part.codes.device} while decoding {rows} rows of {part.channels * part.taps} weights "
            f"to {dtype} ({rows * part.channels * part.taps * dtype.itemsize / 2**20:.1f} MB): free memory, or decode "
            f"fewer rows at once")


def choose(part: Part, dtype: torch.dtype = torch.float32, backend: str | None = None) -> Backend:
    """The backend that decodes this part: the one asked for, or the first that does not decline."""
    if backend is not None and backend not in [known.name for known in BACKENDS]:
        raise BackendError(f"unknown backend '{backend}': expected one of "
                           f"{', '.join(known.name for known in BACKENDS)}", {})
    reasons = {}
    for candidate in BACKENDS:
        if candidate.name != backend if backend else not candidate.automatic:
            continue
        reason = refusal(candidate, part, dtype, candidate.name)
        if reason is None:
            return candidate
        reasons[candidate.name] = reason
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise BackendError(f"no backend can decode this {FAMILIES[type(part)]} part: {listed}", reasons)


def refusal(backend: Backend, part: Part, dtype: torch.dtype, name: str) -> str | None:
    """Why a backend may not run, None where it may; counted under that name where it is made for the part's device."""
    reason = backend.requirements.refusal(part, dtype, backend.module)
    if reason and part.codes.device.type in backend.requirements.devices:
        with _lock:
            _fallbacks[name, reason] = _fallbacks.get((name, reason), 0) + 1
    return reason


def fallbacks() -> dict[tuple[str, str], int]:
    """How often a backend made for the part's device declined: (backend, reason) -> count, for reports."""
    with _lock:
        return dict(_fallbacks)


def requirements_table() -> list[dict[str, str]]:
    """One row per backend, for `doctor`: its name and each requirement in words."""
    return [{"backend": known.name, **{field.name: str(getattr(known.requirements, field.name))
                                       for field in fields(known.requirements)}} for known in BACKENDS]


def _self_test(module: str, kernel: str, device: torch.device) -> str | None:
    """Once per kernel, device and process: run it on something small and compare it with torch."""
    key = (module, kernel, str(device))
    if key not in _self_tests:
        try:
            reason = _module(module).self_test(kernel, device)
        except (ImportError, AttributeError) as error:      # a Triton that imports, but is not the one we know
            reason = f"cannot be used here: {type(error).__name__}: {error}"
        with _lock:
            _self_tests[key] = reason
    return _self_tests[key]


def _entries(part: Part) -> int:
    return part.codebooks.numel() if isinstance(part, AdditivePart) else 0


def _numbers(version: str) -> tuple[int, ...]:
    """(major, minor) of "3.6.0+git1"; nothing is older than a version without numbers."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])


def _module(name: str):
    return importlib.import_module(f".{name}", __package__)
