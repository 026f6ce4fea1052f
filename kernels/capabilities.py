"""What this machine offers: torch, devices, optional accelerators. Asked at first use, never at import."""
from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
from pathlib import Path

import torch


@functools.cache
def package_version(name: str) -> str | None:
    """Version of an optional package ("triton", "numba"), None where it is absent or cannot be imported."""
    return _probe(name)[0]


@functools.cache
def package_problem(name: str) -> str | None:
    """Why an optional package cannot be used, None where it can."""
    return _probe(name)[1]


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """(major, minor) of a CUDA device, None for anything else."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def devices() -> list[str]:
    """One line for each device torch can use."""
    lines = [f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        kind = "hip" if torch.version.hip else "cuda"
        lines.append(f"{kind}:{index} {properties.name}, capability {properties.major}.{properties.minor}, "
                     f"{properties.total_memory / 2**30:.1f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps")
    return lines


def cpu_name() -> str:
    """Model of the processor and those of its instruction sets that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:                        # Windows, macOS
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(known)})" if known else name


def table() -> dict[str, str]:
    """Everything `doctor` prints, name -> value."""
    rows = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}",
            "torch": torch.__version__}
    for name in ("triton", "numba"):
        rows[name] = package_version(name) or package_problem(name)
    rows.update({f"device {index}": line for index, line in enumerate(devices())})
    return rows


def forget() -> None:
    """Probe again at the next question (for tests)."""
    package_version.cache_clear()
    package_problem.cache_clear()


def _probe(name: str) -> tuple[str | None, str | None]:
    if importlib.util.find_spec(name) is None:
        return None, "not installed"
    try:
        return getattr(importlib.import_module(name), "__version__", "unknown"), None
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a wheel built for another numpy or libc
        return None, f"installed, but its import fails: {error}"
