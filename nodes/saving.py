"""A loaded VQ model into a VQ file: which weights are still coded, which a patch changed. (The node: save.py.)"""
from __future__ import annotations

from pathlib import Path

from ..vq_core.errors import UnsupportedError
from ..vq_core.file_names import SUFFIX, safe_stem
from ..vq_core.progress import Progress
from ..vq_core.save_model import Origin, SaveResult, read_origin, save_model
from . import host
from .live import Live, live, output_path, source_file


def save(model, clip, vae, name: str, progress: Progress) -> SaveResult:
    """Write MODEL, CLIP and VAE (the latter two may be None) as they are; UnsupportedError without a coded weight.

    Weights with patches are written dense, with the values the host's CheckpointSave gives them.
    """
    graph = live(model, clip, vae)
    coded = {key: (weight, weight.coded()) for key, weight in graph.all_weights()}
    coded = {key: pair for key, pair in coded.items() if pair[1] is not None}
    blobs = {key: blob for key, (weight, blob) in coded.items() if not weight.patches}
    if not blobs:
        raise UnsupportedError(_nothing_coded(graph, bool(coded)))
    output = output_path(model, name)
    path = output / f"{safe_stem(graph.name)}{SUFFIX}" if output.is_dir() else output
    patched = {key: blob for key, (weight, blob) in coded.items() if weight.patches}
    with graph.source(model, path.parent) as source:
        return save_model(source, blobs, patched, _origin(model, clip, blobs, progress), path, progress,
                          host.writes_metadata())


def _nothing_coded(graph: Live, patched: bool) -> str:
    why = ("every coded weight is changed by a LoRA or merge" if patched else
           "it has no coded weight (a model of another loader, or the memory mode 'decoded')")
    return f"'{graph.name}' cannot be saved as it is: {why}; use Quantize Model (VQ) to make a VQ file of it"


def _origin(model, clip, blobs, progress: Progress) -> Origin:
    """What the model's own file, and that of the text encoders, says about these blobs."""
    paths = [source_file(patcher) for patcher in (model, *([] if clip is None else [clip.patcher]))]
    known = dict.fromkeys(path for path in paths if isinstance(path, Path))
    found = [read_origin(path, blobs, progress) for path in known]
    rows = {key: row for origin in reversed(found) for key, row in origin.rows.items()}
    return Origin(found[0].metadata if found else {}, rows)
