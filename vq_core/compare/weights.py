"""Layer by layer without drawing: what each checkpoint stores, and how far its weights are from the reference's."""
from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from ..arch import make_layers
from ..container import Reader
from ..decompress import decode_tensor
from ..describe import spec_name
from ..inspection import spec_of
from ..progress import Progress
from ..source_reader import open_reader
from .models import Checkpoint


@dataclass(frozen=True)
class LayerRow:
    """One weight of one checkpoint."""

    name: str
    component: str                         # "unet", "te1", "te2"
    role: str
    shape: list[int]
    stored: str                            # "trellis 3", "F16", ...
    bits: float
    bytes: int
    error: float | None                    # squared error over the reference's squared norm; None: not in both


def layer_rows(checkpoint: Checkpoint, reference: Checkpoint, progress: Progress) -> list[dict]:
    """Rows of all matrices and kernels of the UNet and the text encoders, in network order."""
    same = checkpoint.path == reference.path
    with open_reader(checkpoint.path) as reader, open_reader(reference.path) as original:
        layers = [layer for layer in make_layers(checkpoint.shapes) if not layer.dense]
        progress.start(f"weights of {checkpoint.letter}", sum(layer.numel for layer in layers))
        coded, rows = frozenset(reader.coded_keys()), []
        for layer in layers:
            both = reference.shapes.get(layer.key) == layer.shape
            error = 0.0 if same else _error(reader, original, layer.key) if both else None
            nbytes = reader.entry(layer.key).nbytes
            rows.append(asdict(LayerRow(layer.key, layer.component, layer.role, list(layer.shape),
                                        _stored(reader, layer.key, coded), round(8 * nbytes / layer.numel, 4), nbytes,
                                        error)))
            progress.advance(layer.numel, layer.key)
        progress.finish()
        return rows


def mean_error(rows: list[dict], component: str) -> float | None:
    """Mean over a component's weights of the layers' relative errors; None where no layer could be compared."""
    counted = [(torch.Size(row["shape"]).numel(), row["error"]) for row in rows
               if row["component"] == component and row["error"] is not None]
    return sum(n * error for n, error in counted) / sum(n for n, _ in counted) if counted else None


def _error(reader, original, key: str) -> float:
    ours, reference = (decode_tensor(r, key, torch.float32) for r in (reader, original))
    norm, lost = float(reference.double().square().sum()), float((ours - reference).double().square().sum())
    return lost / norm if norm else lost


def _stored(reader, key: str, coded: frozenset[str]) -> str:
    if isinstance(reader, Reader) and key in coded:
        return spec_name(spec_of(reader.weight(key)))
    return reader.entry(key).dtype
