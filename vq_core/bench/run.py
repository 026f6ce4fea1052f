"""Runs the benchmark part by part; what fails is a row that says so, and the rest goes on."""
from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from ...kernels import capabilities
from ..cost_model import dtype_name
from ..errors import PlanError
from ..progress import Progress
from ..version import __version__
from . import ceilings, decode_rates, layers
from .workload import CONVS, LINEARS, SELF_ATTENTION, TOKENS, LinearShape, scaled

PARTS = ("ceilings", "decode", "linears", "groups", "convs", "tokens")
_PATH = re.compile(r"(?:[A-Za-z]:\\|\\\\|(?<![\w.])/)\S+")


@dataclass(frozen=True)
class Settings:
    """What is measured and for how long."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    by: int = 1                            # sides, channels and tokens are divided by it
    seconds: float = 0.3                   # for one row
    parts: tuple[str, ...] = PARTS

    @property
    def label(self) -> str:
        """What must be said beside every number."""
        size = "SDXL's own shapes" if self.by == 1 else f"SDXL's shapes divided by {self.by}: not SDXL's speed"
        return f"{dtype_name(self.dtype)} on {self.device}, {size}"


def make_settings(device: str | None = None, quick: bool = False) -> Settings:
    """On a GPU fp16 and the true shapes; on a CPU float32, quick with shapes of a quarter."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PlanError(f"expected a device that torch can use, got '{device}': {_first_line(error)}") from None
    accelerated = torch.device(device).type != "cpu"
    return Settings(device, torch.float16 if accelerated else torch.float32, 4 if quick and not accelerated else 1,
                    0.05 if quick else 0.3)


def run(settings: Settings, progress: Progress | None = None) -> dict:
    """-> {"vqpack", "machine", "settings", one list of rows for each part}; plain values, no names, no paths."""
    progress = progress or Progress()
    found = {"vqpack": __version__, "machine": machine(settings.device), "label": settings.label,
             "settings": {**asdict(settings), "dtype": dtype_name(settings.dtype), "parts": list(settings.parts)}}
    plan = {"ceilings": lambda: ceilings.rows(settings), "decode": lambda: decode_rates.rows(settings),
            "linears": lambda: _each(LINEARS, settings, layers.linear_rows),
            "groups": lambda: _each(SELF_ATTENTION, settings, layers.group_rows),
            "convs": lambda: _each(CONVS, settings, layers.conv_rows), "tokens": lambda: _token_rows(settings)}
    progress.start("bench", len(settings.parts))
    with torch.inference_mode():
        for part in settings.parts:
            found[part] = list(guarded(plan[part], progress))
            progress.advance(1, part)
    progress.finish()
    return found


def guarded(make: Callable[[], Iterator[dict]], progress: Progress | None = None) -> Iterator[dict]:
    """The rows of `make`, and where it fails one more row that says why; interruptions get through."""
    try:
        for row in make():
            if progress is not None:
                progress.check()
            yield row
    except (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError, OSError, MemoryError,
            AttributeError, KeyError, AssertionError) as error:
        yield {"error": _first_line(error)}


def machine(device: str) -> dict:
    """Hardware and versions; the names of hosts, users and folders are in none of them."""
    rows = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
            "torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
            "triton": capabilities.package_version("triton"), "numba": capabilities.package_version("numba"),
            "threads": torch.get_num_threads()}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        rows |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}",
                 "processors": properties.multi_processor_count, "memory_bytes": properties.total_memory,
                 "l2_bytes": getattr(properties, "L2_cache_size", None)}
    else:
        rows["cpu"] = capabilities.cpu_name()
    return rows


def _each(shapes, settings: Settings, make) -> Iterator[dict]:
    for shape in shapes:
        small = shape if settings.by == 1 else scaled(shape, settings.by)
        yield from guarded(lambda small=small: make(small, settings))


def _token_rows(settings: Settings) -> Iterator[dict]:
    """The sweep over tokens, on the shape with most of the weights."""
    shape = scaled(LINEARS[0], settings.by)
    for tokens in TOKENS:
        one = LinearShape(f"{shape.name}, {tokens} tokens", tokens, *shape.shape, shape.count)
        yield from guarded(lambda one=one: layers.linear_rows(one, settings, lora=False))


def _first_line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {_PATH.sub('...', text)}"[:300]

