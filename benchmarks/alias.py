"""Makes the repository importable as `vqpack` for scripts in a clone; names machine and commit for results."""
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def load_vqpack():
    """Import the root folder as the package `vqpack` without putting it on sys.path."""
    if "vqpack" not in sys.modules:
        spec = importlib.util.spec_from_file_location("vqpack", ROOT / "__init__.py",
                                                      submodule_search_locations=[str(ROOT)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["vqpack"] = module
        spec.loader.exec_module(module)
    return sys.modules["vqpack"]


def machine() -> dict:
    """Processor, cores, Python, torch and commit of this run; no names of hosts, users or folders."""
    import torch

    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "commit": commit.stdout.strip()}


def _cpu_name() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in flags.splitlines() if line.startswith("model name")), "")
    known = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if f" {f}" in flags]
    return f"{name} ({', '.join(known)})"
