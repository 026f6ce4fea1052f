"""Starts a stub of a host as that host starts, with this pack as an extension, and presses the tab's buttons.

usage: drive.py ROOT EXTENSION CASE in the host's folder; prints one line `FOUND {json}`. Not imported by pytest.
"""
from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

sys.path[0] = os.getcwd()                  # where webui.py lies
import gradio  # noqa: E402
import torch  # noqa: E402, F401 - the hosts have it before they load extensions

EXTENSION = sys.argv[1]


def load_module(path):
    spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start() -> dict:
    """Preload, scripts, tabs: what a host does before its page is there; sys.path as A1111 1.10 and Forge leave it."""
    from modules import script_callbacks, sd_models

    sd_models.list_models()
    if importlib.util.find_spec("modules_forge"):
        import modules_forge.main_entry  # noqa: F401
    before, started = set(sys.modules), time.perf_counter()
    if "no preload" not in sys.argv:
        load_module(os.path.join(EXTENSION, "preload.py")).preload(None)
    sys.path = [EXTENSION, *sys.path]
    kept = sys.path
    sys.path = [EXTENSION, *sys.path]
    load_module(os.path.join(EXTENSION, "scripts", "vq_webui.py"))
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    sys.path = kept
    tabs = script_callbacks.ui_tabs_callback()
    return {"seconds": time.perf_counter() - started, "imported": sorted(new - set(sys.stdlib_module_names)),
            "tabs": [(type(blocks).__name__, title, key) for blocks, title, key in tabs],
            "on_path": sys.path.count(EXTENSION)}


def press(name: str, **values) -> str:
    for key, value in values.items():
        gradio.components[f"vqpack_{key}"].value = value
    gradio.components[f"vqpack_{name}"].press()
    return gradio.components["vqpack_result"].value


def names() -> dict:
    """Where the names of our folders are found."""
    importlib.invalidate_caches()
    return {name: getattr(importlib.util.find_spec(name), "origin", None) for name in ("kernels", "nodes", "vq_core")}


def diffusers() -> dict:
    """Whether diffusers still works, and which `kernels` it would get."""
    import diffusers

    import kernels

    return {"diffusers": diffusers.__version__, "mark": kernels.MARK,
            "ours": sorted(name for name in sys.modules if name.startswith("vqpack."))[:3]}


def work() -> dict:
    """Quantize, inspect, decompress, decompress and select."""
    from modules import sd_models, shared

    shown, copies = gradio.components, Path(sd_models.model_path) / "vq-decompressed"
    found = {"about": shown[None].value, "sources": shown["vqpack_source"].choices}
    found["nothing chosen"] = press("inspect")
    found["quantized"] = press("quantize", source="plain.safetensors", bits="4", method="uniform", text_bits="16")
    press("refresh")
    found["files"] = shown["vqpack_file"].choices
    found["inspected"] = press("inspect", file=found["files"][0])
    found["selected"] = press("select")
    found["loaded"] = [os.path.relpath(path, sd_models.model_path) for path in sd_models.loaded]
    found["option"], found["saved"] = shared.opts.sd_model_checkpoint, shared.opts.saved
    found["copies"] = sorted(path.name for path in copies.iterdir())
    found["plain"] = press("decompress", dtype="bf16")
    found["progress"] = sorted({text.split()[0] for text in shown["vqpack_select"].fn.__defaults__[0].seen})
    return found


def more_work() -> dict:
    """After that: the same again, errors, and what is deleted for room."""
    from modules import sd_models

    shown, copies, found = gradio.components, Path(sd_models.model_path) / "vq-decompressed", {}
    first, stamp = shown["vqpack_file"].value, next(copies.iterdir()).stat().st_size
    found["again"], found["selected again"] = press("quantize"), press("select")
    found["no such rate"] = press("quantize", bits="2.5")
    press("quantize", bits="2")
    press("refresh")
    second, = set(shown["vqpack_file"].choices) - {first}
    (copies / "mine.safetensors").write_bytes(Path(sd_models.model_path, "plain.safetensors").read_bytes())
    found["no room"] = press("select", file=second, limit=1.5 * stamp / 1e9)
    found["kept"] = sorted(path.name for path in copies.iterdir())
    press("select", limit=2.5 * stamp / 1e9)
    found["two"] = sorted(path.name for path in copies.iterdir())
    third = Path("models/VQ/third.safetensors")
    third.write_bytes(Path("models/VQ", second).read_bytes())
    found["third"] = press("select", file=third.name)
    found["after third"] = sorted(path.name for path in copies.iterdir())
    sd_models.list_models = lambda: None
    found["not listed"] = press("select", file=first)
    third.unlink()
    found["gone"] = press("select", file=third.name)
    return found


def main() -> None:
    found = {**start(), "found": names()}
    for case in sys.argv[2].split("+"):
        found.update({"diffusers": diffusers, "work": work, "more": more_work}[case]())
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
