"""What the pack's page asks the server: read-only routes under /vqpack.

A name is taken if and only if the host's own list has it; nothing else becomes a path. Work happens beside the server's
loop, so that it answers other requests meanwhile.
"""
from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..vq_core.errors import VQError
from ..vq_core.file_names import safe_stem
from . import files, gallery, host, kept_files
from .jobs import job
from .quantize import METHODS, TEXT_ENCODER_BITS

PREFIX = "/vqpack"
_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"      # in a header's file name
_LONGEST = 1024                            # characters of one value; the host's own names are file names


@dataclass(frozen=True)
class Page:
    """An HTML page; saved_as: a file name where the browser is to save it."""

    text: str
    saved_as: str = ""

    def headers(self) -> dict[str, str]:
        """Its own origin cannot be reached from it, even where it is opened outside our frame."""
        name = "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in self.saved_as.encode("utf-8", "replace"))
        saved = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"} if name else {}
        return {"Content-Security-Policy": "sandbox allow-scripts", "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store", **saved}


class NotListed(VQError):
    """A name that is in none of the host's lists."""


def register() -> None:
    """Add the routes to the host's server, once; none where ComfyUI runs as a library."""
    running = host.server()
    if running is None:
        return
    known = {getattr(route, "path", None) for route in running.routes}
    for name, answer in (("estimate", estimate), ("speed", speed), ("sample", sample), ("report", report),
                         ("prompts", prompts), ("job", job)):
        if f"{PREFIX}/{name}" not in known:            # else a second copy of the pack is installed
            running.routes.get(f"{PREFIX}/{name}")(_handler(answer))
    if not running.app.on_startup.frozen:
        running.app.on_startup.append(_warm_up)


async def _warm_up(_app) -> None:
    """Import what the first estimate needs beside the server, which has started: 0.1 s that nobody waits for."""
    threading.Thread(target=_import_estimates, name="vqpack imports", daemon=True).start()


def _import_estimates() -> None:
    for name in ("predict", "earlier_results", "own_error"):
        importlib.import_module(f"..vq_core.{name}", __package__)


def estimate(query: Mapping[str, str]) -> dict:
    """What quantizing would give: prediction of size, memory, error and time, and what earlier results say.

    query: checkpoint; bits, method, text_encoder_bits, parts, calibration, plan where they are not the node's defaults.
    """
    from ..vq_core.collector import resting

    with resting():
        return _estimate(query)


def _estimate(query: Mapping[str, str]) -> dict:
    from ..vq_core.coding_time import known_speed
    from ..vq_core.plan import PARTS
    from ..vq_core.predict import predict, read_outline

    path, plan = source(query), chosen_plan(query)
    parts = tuple(part for part in PARTS if part in query.get("parts", ",".join(PARTS)).split(","))
    calibrated = listed(query.get("calibration"), kept_files.calibrations()) is not None
    outline, device = read_outline(path), str(host.compute_device())
    found = predict(outline, plan, parts, calibrated=calibrated)
    rate = known_speed(plan.unet, device)
    memory = found.memory
    return {"checkpoint": path.name, "source_bytes": found.source_bytes, "file_bytes": found.file_bytes,
            "unet_bits": found.unet_bits, "device": device,
            "memory": {"peak": memory.peak, "weights": memory.weights, "scratch": memory.scratch,
                       "activations": memory.activations},
            "error": found.error, "measured": None, "calibrated": calibrated,
            "seconds": found.seconds(outline, plan, rate, parts, calibrated) if rate else None,
            **_sampled(outline, path, plan), **_earlier(path, found.source_bytes, plan)}


def speed(query: Mapping[str, str]) -> dict:
    """Weights a second this machine codes at a rate, measured now where it was not; None while the host is busy."""
    from ..vq_core.coding_time import known_speed, speed_of

    spec, device = chosen_plan(query).unet, str(host.compute_device())
    if known_speed(spec, device) is None and host.busy():
        return {"weights_per_second": None, "busy": True}
    return {"weights_per_second": speed_of(spec, device), "busy": False}


def sample(query: Mapping[str, str]) -> dict:
    """Look at rows of the checkpoint's own layers, once for each plan; not, and no further, while the host is busy."""
    from ..vq_core.errors import Interrupted
    from ..vq_core.own_error import sample_of
    from ..vq_core.predict import read_outline
    from ..vq_core.progress import Progress

    path, plan = source(query), chosen_plan(query)
    outline = read_outline(path)
    try:
        sample_of(path, plan, _sensitivity(outline), Progress(should_stop=host.busy))
    except Interrupted:
        return {"busy": True}
    return {"busy": False}


def report(query: Mapping[str, str]) -> Page:
    """The HTML report of a VQ file; query: file, download where it is to be saved."""
    from ..vq_core.compare.file_page import file_page

    name = listed(query.get("file"), files.vq_files())
    if name is None or name == files.NONE_YET:
        raise NotListed("expected the name of a VQ file, got none")
    path = files.vq_path(name)
    page = file_page(path, gallery.drawings(path))
    return Page("".join(page), f"{safe_stem(path.stem)}-report.html" if query.get("download") else "")


def prompts(_query: Mapping[str, str]) -> dict:
    """The built-in lists of prompts: {"sets": [{name, prompts}]}."""
    from ..vq_core.compare.prompt_sets import SETS

    return {"sets": [{"name": name, "prompts": list(texts)} for name, texts in SETS.items()]}


def source(query: Mapping[str, str]) -> Path:
    """The checkpoint that is asked for."""
    name = listed(query.get("checkpoint"), files.source_files())
    if name is None:
        raise NotListed("expected the name of a checkpoint, got none")
    return files.source_path(name)


def listed(name: str | None, names: list[str]) -> str | None:
    """The name where the host's list has it, None for none; NotListed else."""
    if not name or name == kept_files.NONE:
        return None
    if name not in names:
        raise NotListed(f"'{name:.80}' is in none of ComfyUI's lists: refresh and choose again")
    return name


def chosen_plan(query: Mapping[str, str]):
    """The plan behind a node's widgets."""
    from ..vq_core.plan import load_plan, make_plan

    name = listed(query.get("plan"), kept_files.plans())
    if name is not None:
        return load_plan(kept_files.kept_path(name, None, "plan"))
    method, bits = query.get("method", METHODS[0]), query.get("text_encoder_bits", TEXT_ENCODER_BITS[0])
    if method not in METHODS or bits not in TEXT_ENCODER_BITS:
        raise NotListed(f"expected one of {', '.join(METHODS)} and text encoders at {', '.join(TEXT_ENCODER_BITS)} "
                        f"bits, got '{method:.40}' and '{bits:.40}'")
    return make_plan(_number(query.get("bits", "3")), method, int(bits))


def _sampled(outline, path: Path, plan) -> dict:
    """"sampled": what a sample of the checkpoint's own layers said, or null; "to_sample": one may be taken."""
    from ..vq_core.own_error import can_sample, known_sample

    weighed = _sensitivity(outline)
    found = known_sample(path, plan, weighed)
    if found is None:
        coded = (layer for layer in outline.source.layers if layer.component == "unet")
        return {"sampled": None, "to_sample": can_sample({plan.spec_for(layer) for layer in coded})}
    told = {"error": found.weights.error, "deviation": found.weights.deviation, "layers": len(found.layers),
            "of": found.of, "snr": found.snr, "sensitivity": None}
    if found.picture is not None:
        told |= {"picture": found.picture.error, "sensitivity": weighed.name, "snr_deviation": found.snr_deviation}
    return {"sampled": told, "to_sample": False}


def _sensitivity(outline) -> Path | None:
    """The file that says what this checkpoint's layers do to the picture, None where the host lists none that fits."""
    from ..vq_core.planning.sensitivity import fitting

    known = outline.source
    return fitting(kept_files.sensitivity_paths(), known.architecture, outline.coded_shapes, known.name, known.bytes)


def _earlier(path: Path, nbytes: int, plan) -> dict:
    """"measured": {file, error} at this very plan; "compared": {file, lines}, what pictures of any rate said.

    A comparison attached to a file goes before what Compare (VQ) drew here: it has more prompts.
    """
    from ..vq_core.describe import comparison_lines
    from ..vq_core.earlier_results import results_of

    names = [name for name in files.vq_files() if name != files.NONE_YET]
    results, out = results_of(path.name, nbytes, [files.vq_path(name) for name in names]), {}
    same = next((r for r in results if r.plan == plan.to_json() and r.unet_error is not None), None)
    if same is not None:
        out["measured"] = {"file": same.file, "error": same.unet_error}
    seen = next((r for r in results if r.comparison), None)
    out["compared"] = gallery.compared(path.name, results) if seen is None else {
        "file": seen.file, "lines": comparison_lines(seen.comparison)[1:]}
    return out


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise NotListed(f"expected bits as a number, got '{text:.40}'") from None


def _handler(answer: Callable[[Mapping[str, str]], dict | Page]):
    """A route's coroutine: JSON or a page, or one sentence with status 404 (not listed) or 400."""
    from aiohttp import web

    async def handle(request):
        query = dict(request.query)
        try:
            if any(len(value) > _LONGEST for value in query.values()):
                raise NotListed(f"expected at most {_LONGEST} characters in one value")
            found = await asyncio.get_running_loop().run_in_executor(None, answer, query)
        except VQError as error:
            return web.json_response({"error": str(error)}, status=404 if isinstance(error, NotListed) else 400)
        except OSError as error:
            return web.json_response({"error": f"cannot read it: {error.strerror or error}"}, status=400)
        if isinstance(found, Page):
            return web.Response(text=found.text, content_type="text/html", headers=found.headers())
        return web.json_response(found, headers={"Cache-Control": "no-store"})

    return handle
