"""Pictures of Compare (VQ) for the reports of VQ files, in the host's private folder, which it serves to nobody."""
from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ..vq_core.compare import gallery
from ..vq_core.compare.gallery_record import Run, Settings, Side
from . import files, host, live
from .scales import KEY
from .shown import about_file

FOLDER = "comparisons"


def keep(model_a, model_b, settings: Settings, values: Mapping[str, Sequence[float]],
         pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Keep what two models drew where B comes from a VQ file; where it cannot be kept the log says why.

    pictures: of A and B [n, height, width, 3], 0 to 1.
    """
    root, unet = _root(), getattr(model_b.model, "vq_base", None)
    if root is None or unet is None:
        return
    pairs = [tuple(map(_eight_bits, pair)) for pair in zip(*(x[:gallery.MOST_PICTURES] for x in pictures))]
    try:
        gallery.keep(root, unet, Run(_side(model_a), _side(model_b), settings, values), pairs)
    except OSError as error:
        logging.getLogger(__name__).warning("vqpack: the report of '%s' will not have these pictures, they cannot be "
                                            "kept: %s", model_b.model.vq_name, error.strerror or error)


def about(model) -> dict:
    """For the page (web/): the VQ file a MODEL comes from, {} where it is none or no longer listed."""
    path = getattr(model.model, "vq_path", None)
    if path is None:
        return {}
    name = files.name_of(path)
    return about_file(name) if name in files.vq_files() else {}


def drawings(path: Path) -> list:
    """The pictures for a VQ file's report, newest first."""
    from ..vq_core.compare.file_pictures import drawn_here

    root = _root()
    return [] if root is None else drawn_here(root, path)


def compared(checkpoint: str, results: Iterable) -> dict | None:
    """{file, lines} of the newest run with the first of these files that has one, best against the checkpoint."""
    from ..vq_core.compare.file_pictures import summary_line

    root = _root()
    found = [(run.a.name != checkpoint, result.file, run) for result in results if root and result.unet
             for run in gallery.runs(root, result.unet)]
    if not found:
        return None
    _, file, run = min(found, key=lambda one: one[0])
    return {"file": file, "lines": [summary_line(run, checkpoint)]}


def _root() -> Path | None:
    """Where runs are kept; None where the host has no folder of this kind."""
    private = getattr(host.folder_paths, "get_system_user_directory", None)
    return None if private is None else Path(private("vqpack")) / FOLDER


def _side(model) -> Side:
    path = live.source_file(model)
    name = getattr(model.model, "vq_name", None) or (path.name if path else "")
    scales = ["a scale adapter"] if model.get_wrappers(host.APPLY_MODEL, KEY) else []
    return Side(name, len(model.patches), tuple([*scales, *live.left_out(model)]))


def _eight_bits(picture: torch.Tensor) -> torch.Tensor:
    """[height, width, 3], 0 to 1 -> uint8, on the CPU; a broken model's NaN is black"""
    return (picture.nan_to_num(0).clamp(0, 1) * 255).round().to("cpu", torch.uint8).contiguous()
