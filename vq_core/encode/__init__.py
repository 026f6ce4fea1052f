"""Encoders: one weight and a spec in, one blob and its measured error out."""
from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ...kernels.dispatch import decode_part
from ...kernels.packing import pack_codes
from ..errors import FormatError
from ..gram import Gram, output_error
from ..progress import Progress
from ..record import build_blob, parse_blob, read_layout
from ..spec import Spec
from ..tables import table_by_id
from ..weight import CodedWeight
from ..workers import Stoppable, as_done
from .ranges import carried_over


@dataclass(frozen=True)
class EncodedWeight:
    """One coded weight: its blob, what it lost, and the shared tables it needs."""

    weight: CodedWeight                    # its blob is what a file stores
    relative_error: float                  # squared error over squared norm of the weight
    tables: tuple[int, ...]                # ids of shared tables
    output_error: float | None = None      # squared error over square of the outputs, where a gram was given


def encoder_for(kind: str):
    """The function that codes one matrix with this kind of spec."""
    if kind == "trellis":
        from .trellis import encode_trellis as encode
    elif kind == "additive":
        from .additive import encode_additive as encode
    elif kind == "product":
        from .product import encode_product as encode
    elif kind == "palette":
        from .palette import encode_palette as encode
    else:
        from .uniform import encode_uniform as encode
    return encode


def to_matrix(weight: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Input channels start..stop of [out, in] or [out, in, kh, kw] as the coded matrix [out, taps * channels]."""
    part = weight[:, start:stop]
    if part.dim() == 4:
        part = part.permute(0, 2, 3, 1)    # [out_features, kh, kw, channels]
    return part.reshape(part.shape[0], -1).contiguous()


def from_matrix(matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of to_matrix for all channels of a weight of this shape."""
    if len(shape) == 2:
        return matrix
    out, channels, height, width = shape
    return matrix.view(out, height, width, channels).permute(0, 3, 1, 2)


def encode_weight(weight: torch.Tensor, spec: Spec, *, key: str = "", source_dtype: torch.dtype = torch.float16,
                  splits: tuple[int, ...] = (), seed: int = 0, device: str | None = None, progress=None,
                  gram: Gram | None = None, target: torch.Tensor | None = None, **options) -> EncodedWeight:
    """Code one weight, float32 [out, in] or [out, in, kh, kw].

    splits: sizes of the input-channel ranges coded apart (Q-Diffusion's split shortcut); () = one range.
        With a gram later ranges make up for the errors of earlier ones.
    gram: of the layer's inputs, by which errors are weighed and corrected; None = data-free.
    target: coded in place of the weight, of the same shape; the relative error stays that of the weight.
    Raises FormatError naming the key where the weight holds NaN or Inf.
    """
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise FormatError(f"expected finite weights, got {bad} NaN or Inf values in '{key}'; repair the checkpoint or "
                          f"leave the layer as it is with --skip")
    encode, channels, aim = encoder_for(spec.kind), weight.shape[1], weight if target is None else target
    taps = weight[0, 0].numel()
    edges = [0]
    for size in splits or (channels,):
        edges.append(edges[-1] + size)
    parts, lost = [], weight.new_zeros(weight.shape[0], taps, 0)                    # of earlier ranges
    for start, stop in zip(edges, edges[1:], strict=False):
        matrix = to_matrix(aim, start, stop)
        wanted = matrix
        if gram is not None:
            options["gram"] = gram.split(start, stop, channels)
            if start:
                wanted = matrix + carried_over(lost.flatten(1), gram, start, stop, channels)
        part = encode(wanted, spec, channels=stop - start, taps=taps, seed=seed, device=device, progress=progress,
                      **options)
        parts.append((start, stop, spec.kind, part))
        if gram is not None and stop < channels:
            missed = (matrix - decode_part(part)).view(len(matrix), taps, -1)       # [out, taps, channels]
            lost = torch.cat([lost, missed], 2)
    return _measured(build_blob(tuple(weight.shape), source_dtype, parts), key, weight, aim, gram)


def with_codes(coded: CodedWeight, codes: list[torch.Tensor], weight: torch.Tensor, *, key: str = "",
               gram: Gram | None = None, target: torch.Tensor | None = None) -> EncodedWeight:
    """A uniform weight with other codes, int32 [out, cols] of each range; all else as in encode_weight."""
    parts = [(start, stop, kind, replace(part, codes=pack_codes(new, part.bits)))
             for (start, stop, kind, part), new in zip(coded.parts, codes, strict=True)]
    blob = build_blob(coded.shape, coded.source_dtype, parts)
    return _measured(blob, key, weight, weight if target is None else target, gram)


def _measured(blob: torch.Tensor, key: str, weight: torch.Tensor, aim: torch.Tensor, gram: Gram | None
              ) -> EncodedWeight:
    tables = tuple(sorted({part.table_id for part in read_layout(blob, key).parts if part.kind == "trellis"}))
    coded = parse_blob(blob, {i: table_by_id(i) for i in tables}, key)
    outputs = None if gram is None else relative_output_error(aim, coded, gram)
    return EncodedWeight(coded, relative_error(weight, coded), tables, outputs)


def relative_output_error(weight: torch.Tensor, coded, gram: Gram) -> float:
    """Squared error of the outputs over their square, for inputs with this gram (all of them)."""
    blocks, channels = gram.all_inputs().float(), weight.shape[1]
    decoded = to_matrix(coded.decode(torch.float32), 0, channels)
    original = to_matrix(weight.float(), 0, channels)
    norm = float(output_error(original, blocks).sum())
    return float(output_error(original - decoded, blocks).sum()) / norm if norm else 0.0


def relative_error(weight: torch.Tensor, coded, rows: int = 1024) -> float:
    """Squared error over squared norm, computed in row chunks; 0 for an all-zero weight coded exactly."""
    lost = norm = 0.0
    for start in range(0, weight.shape[0], rows):
        original = weight[start:start + rows].float()                               # [rows, in, ...]
        decoded = coded.decode(torch.float32, start, start + original.shape[0])
        lost += _square_sum(original - decoded)
        norm += _square_sum(original)
    return lost / norm if norm else lost


def _square_sum(values: torch.Tensor) -> float:
    """Sum of squares by numpy: its order, unlike torch's, does not depend on the number of threads."""
    return float(np.square(values.numpy()).sum(dtype=np.float64))


def estimate_speed(spec: Spec, device: str, workers: int, progress: Progress | None = None) -> float | None:
    """Weights per second this machine codes with a spec, all workers at once; None for dense.

    Measured on a matrix of 1280 x 1024; a smaller one where that would take too long. On 1280 x 256 plain torch is four
    times slower a weight. progress: is asked whether to stop.
    """
    if spec.kind == "dense":
        return None
    encode, rows, seconds = encoder_for(spec.kind), 1280, 0.0
    matrix = torch.randn(rows, 1024, generator=torch.Generator().manual_seed(0))    # [rows, most columns]
    for cols in (32, 256, 1024):                     # the first compiles what has to be
        part, started = matrix[:, :cols].contiguous(), time.monotonic()
        stoppable = Stoppable(progress or Progress())
        job = partial(encode, part, spec, channels=cols, taps=1, device=device, progress=stoppable)
        list(as_done(lambda _, job=job: job(), range(workers), workers, stoppable))
        seconds = max(time.monotonic() - started, 1e-6)
        if cols > 32 and seconds > 4:
            break
    return workers * part.numel() / seconds
