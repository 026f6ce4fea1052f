"""decompress: a vqpack file in, an ordinary checkpoint out, with the source's keys, shapes and dtypes."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from .container import Reader
from .errors import PlanError, VQError
from .file_names import SUFFIX, safe_stem
from .header import WORKFLOW_KEY
from .keymap import Rebuilt, keymap_from_metadata
from .plain_writer import PlainWriter
from .progress import Progress
from .safetensors_io import SafetensorsFile, dtype_name
from .writer import HASH_KEY

OUTPUT_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ORIGIN_KEY = "decompressed_from"           # hash of the vqpack file's tensor data, and the dtype asked for
CHUNK_WEIGHTS = 1 << 23                    # decoded at once: 32 MB in float32, so the peak does not follow the layer


@dataclass(frozen=True)
class _Output:
    """One tensor of the ordinary checkpoint."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    made_of: Rebuilt


def decompress(path: str | Path, output: str | Path, dtype: str | None = None, overwrite: bool = False,
               progress: Progress | None = None) -> Path:
    """Write the ordinary checkpoint behind a vqpack file -> its path.

    dtype: None gives each tensor its dtype in the source (dense tensors byte for byte), "fp16", "bf16" or "fp32" casts
    all floating-point ones. output: a file, or an existing folder. An existing file is kept and the new one numbered
    unless `overwrite`. Raises VQError, with nothing left behind.
    """
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise PlanError(f"dtype must be {', '.join(OUTPUT_DTYPES)} or left out, got '{dtype}'")
    progress = progress or Progress()
    with Reader(path, mapped=False) as reader:   # unmapped: small, and each checksum is tested
        coded, outputs = frozenset(reader.coded_keys()), _outputs(reader, dtype)
        outputs.sort(key=lambda out: -out.dtype.itemsize)     # wide types first keeps all aligned
        metadata = {key: value for key, value in reader.metadata.items()
                    if not key.startswith("vqpack.") and key != WORKFLOW_KEY}      # that graph is for VQ files
        writer = PlainWriter(target_name(path, output, dtype),
                             [(o.key, dtype_name(o.dtype), o.shape) for o in outputs],
                             metadata | _origin(reader, dtype), overwrite)
        try:
            progress.start("decompress", sum(prod(o.shape) for o in outputs))
            for out in outputs:
                for rows in _rows(reader, out, coded):
                    writer.write(rows)
                    progress.advance(rows.numel(), out.key)
            final = writer.close(progress)
        except BaseException:
            writer.abort()
            raise
    progress.finish()
    return final


def find_decompressed(path: str | Path, output: str | Path, dtype: str | None = None) -> Path | None:
    """What an earlier `decompress` with these arguments wrote, whole and under its own name or a numbered one."""
    with Reader(path, mapped=False) as reader:
        wanted = _origin(reader, dtype)
    target = target_name(path, output, dtype)
    count, candidate = 1, target
    while wanted and candidate.is_file():
        try:
            with SafetensorsFile(candidate) as file:       # refuses a file that is not whole
                if wanted.items() <= file.metadata.items():
                    return candidate
        except (VQError, OSError):
            pass
        count += 1
        candidate = target.with_name(f"{target.stem}-{count}{SUFFIX}")
    return None


def decompressed_bytes(path: str | Path, dtype: str | None = None) -> int:
    """Bytes of the tensors that `decompress` would write; reads headers only."""
    with Reader(path, mapped=False) as reader:
        return sum(prod(out.shape) * out.dtype.itemsize for out in _outputs(reader, dtype))


def target_name(path: str | Path, output: str | Path, dtype: str | None) -> Path:
    """The file that `decompress` writes if no such file is there."""
    path, output = Path(path), Path(output)
    if output.is_dir():
        return output / (safe_stem(f"{path.stem}-{dtype or 'decompressed'}") + SUFFIX)
    return output if output.suffix == SUFFIX else output.with_name(output.name + SUFFIX)


def _origin(reader: Reader, dtype: str | None) -> dict[str, str]:
    """What tells the result of this file and dtype from any other; {} for a file without the hash of its data."""
    sha256 = reader.metadata.get(HASH_KEY)
    return {ORIGIN_KEY: f"{sha256} {dtype or 'source'}"} if sha256 else {}


def decode_tensor(reader: Reader, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """One stored tensor as ordinary numbers; dtype None = the source's."""
    if key not in reader.coded_keys():
        tensor = reader.tensor(key)
        return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
    weight = reader.weight(key)
    return weight.decode(torch.float32).to(dtype or weight.source_dtype)


def _outputs(reader: Reader, dtype: str | None) -> list[_Output]:
    coded = frozenset(reader.coded_keys())
    stored = [key for key in reader.keys() if not key.startswith("vq.")]
    return [_output(reader, item, coded, dtype) for item in keymap_from_metadata(reader.metadata).rebuild(stored)]


def _output(reader: Reader, item: Rebuilt, coded: frozenset[str], dtype: str | None) -> _Output:
    shapes = [reader.layout(key).shape if key in coded else reader.entry(key).shape for key in item.stored]
    shape = tuple(shapes[0])
    if len(shapes) > 1:
        shape = (sum(s[0] for s in shapes), *shape[1:])
    first = item.stored[0]
    own = reader.layout(first).source_dtype if first in coded else reader.entry(first).torch_dtype
    cast = OUTPUT_DTYPES[dtype] if dtype is not None and own.is_floating_point else own
    return _Output(item.key, shape[::-1] if item.transpose else shape, cast, item)


def _rows(reader: Reader, out: _Output, coded: frozenset[str]) -> Iterator[torch.Tensor]:
    """The tensor's rows in order, a bounded number of weights at a time -> [rows, ...] in out.dtype"""
    if out.made_of.transpose:
        tensor = decode_tensor(reader, out.made_of.stored[0])
        yield tensor.to(out.dtype).t().contiguous()
        return
    for key in out.made_of.stored:
        if key not in coded:
            yield reader.tensor(key).to(out.dtype)
            continue
        weight = reader.weight(key)
        step = max(1, CHUNK_WEIGHTS // max(1, weight.numel // weight.shape[0]))
        for start in range(0, weight.shape[0], step):
            stop = min(start + step, weight.shape[0])
            yield weight.decode(torch.float32, start, stop).to(out.dtype)
