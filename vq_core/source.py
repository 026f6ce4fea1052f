"""What is quantized: a single-file checkpoint, a UNet-only file or a diffusers folder, read one tensor at a time.

Whatever it is on disk, a Source shows LDM keys (`model.diffusion_model.*`, `conditioner.*`, `first_stage_model.*`).
A model in memory is one too: source_model.py.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .arch import UNET_PREFIX, detect, make_layers, unet_names
from .arch.detect import refuse_quantized
from .errors import FormatError, UnsupportedError
from .keymap import KeyMap, PrefixTable
from .layout import MAGIC
from .open_files import close_handle, mark_open
from .progress import Progress
from .safetensors_io import SafetensorsFile, sha256_file

CODABLE = ("F16", "BF16", "F32", "F8_E4M3", "F8_E5M2")   # dtypes a record can name (docs/format.md section 7)
CHECKED = ("unet", "te1", "te2", "vae")                  # components whose weights must be finite


@dataclass(frozen=True)
class Origin:
    """Where one LDM tensor comes from: stored tensors concatenated by rows, then transposed, then reshaped."""

    parts: tuple[tuple[SafetensorsFile, str], ...]
    shape: tuple[int, ...]
    dtype: str
    transpose: bool = False


@dataclass(frozen=True)
class Contents:
    """What a reader of one kind of input found. constants: tensors that stand in no file (prediction markers)."""

    path: Path
    files: tuple[SafetensorsFile, ...]
    origins: Mapping[str, Origin]
    metadata: Mapping[str, str] = field(default_factory=dict)
    keymap: KeyMap = field(default_factory=KeyMap)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Source:
    """An opened checkpoint. Tensors come one by one in memory of their own; the process never grows by the file's size.

    path, folder, name, stem: where it is and what it is called (file or folder name); bytes: size of its weight files;
    architecture: e.g. "sdxl"; prediction: "eps", "v", "edm" or "edm-v"; metadata: the header's texts; keymap: how its
    own keys follow from the LDM keys shown here (empty for LDM checkpoints and folders); layers: all tensors in coding
    order.
    """

    def __init__(self, contents: Contents):
        self.path, self.name = contents.path, contents.path.name
        self.stem = contents.path.stem if contents.path.is_file() else contents.path.name
        self.folder = contents.path.parent
        self.metadata, self.keymap = dict(contents.metadata), contents.keymap
        self.bytes = sum(file.header.file_bytes for file in contents.files)
        self._contents, self._constants = contents, dict(contents.constants)
        self._handles = [mark_open(file) for file in contents.files]      # no writer may replace them meanwhile
        shapes = {key: self.shape(key) for key in self.keys()}
        self.details = detect(shapes, self.name)
        self.architecture, self.prediction = self.details.name, self.details.prediction
        self.layers = tuple(self._checked_layers(shapes))
        self._components = {layer.key: layer.component for layer in self.layers}

    def _checked_layers(self, shapes: dict[str, tuple[int, ...]]):
        for layer in make_layers(shapes):
            if not layer.dense and self._origin(layer.key).dtype not in CODABLE:
                raise UnsupportedError(
                    f"'{self.name}' stores '{layer.key:.120}' as {self._origin(layer.key).dtype}: expected one of "
                    f"{', '.join(CODABLE)}; give the checkpoint it was made from")
            yield layer

    def keys(self) -> list[str]:
        """LDM keys of all tensors."""
        return [*self._contents.origins, *self._constants]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self._constants[key].shape) if key in self._constants else self._origin(key).shape

    def dtype(self, key: str) -> torch.dtype:
        """dtype of one tensor as it is stored."""
        if key in self._constants:
            return self._constants[key].dtype
        file, name = self._origin(key).parts[0]
        return file.entry(name).torch_dtype

    def load(self, key: str) -> torch.Tensor:
        """One tensor in its own dtype -> [*shape(key)]; FormatError names a model weight that is NaN or infinite."""
        if key in self._constants:
            return self._constants[key].clone()
        origin = self._origin(key)
        parts = [file.tensor(name) for file, name in origin.parts]
        tensor = parts[0] if len(parts) == 1 else _concat(parts)
        if origin.transpose:
            tensor = tensor.t().contiguous()
        tensor = tensor.view(origin.shape)
        if self._components.get(key) in CHECKED:
            check_finite(tensor, key, self.name)
        return tensor

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop (first dimension) of one tensor, reading no others where the file has it as it is."""
        origin = self._contents.origins.get(key)
        if origin is None or len(origin.parts) > 1 or origin.transpose:
            return self.load(key)[start:stop]
        (file, name), = origin.parts
        some = file.rows(name, start, stop)
        some = some.view(len(some), *origin.shape[1:])
        if self._components.get(key) in CHECKED:
            check_finite(some, key, self.name)
        return some

    def load_float(self, key: str) -> torch.Tensor:
        """One tensor in float32 -> [*shape(key)], for coding."""
        return self.load(key).float()

    def identity(self, progress: Progress | None = None) -> dict:
        """-> `vqpack.source` of the result: what it was made from, by content"""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256(progress)}

    def sha256(self, progress: Progress | None = None) -> str:
        """SHA-256 of the file; of a folder: of its weight files' names and SHA-256 sums, sorted by name."""
        if progress is not None:
            progress.start("reading the source", self.bytes, self.name)
        files = self._contents.files
        if self.path.is_file():
            return sha256_file(files[0].path, progress)
        sums = sorted(f"{f.path.relative_to(self.path).as_posix()} {sha256_file(f.path, progress)}" for f in files)
        return hashlib.sha256("\n".join(sums).encode()).hexdigest()

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            close_handle(handle)
        for file in self._contents.files:
            file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _origin(self, key: str) -> Origin:
        if key not in self._contents.origins:
            raise FormatError(f"'{self.name}' has no tensor '{key:.120}'")
        return self._contents.origins[key]


def open_source(path: str | Path) -> Source:
    """Open a checkpoint, UNet file or diffusers folder; UnsupportedError or FormatError says in a sentence why not."""
    path = Path(path).absolute()
    if path.is_dir():
        from .source_folder import read_folder
        contents = read_folder(path)
    else:
        contents = _read_file(path)
    try:
        return Source(contents)
    except BaseException:
        for file in contents.files:
            file.close()
        raise


def open_weights(path: Path) -> SafetensorsFile:
    """Open one .safetensors file; refuses by name what is another format, quantized already or made by vqpack."""
    refuse_other_formats(path)
    file = SafetensorsFile(path)
    try:
        _refuse_own_file(file)
        refuse_quantized({entry.key: entry.shape for entry in file.entries.values()}, path.name)
    except BaseException:
        file.close()
        raise
    return file


def refuse_other_formats(path: Path) -> None:
    """UnsupportedError for GGUF and pickle files (by their first bytes); FormatError where nothing can be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise FormatError(f"there is no file '{path.name}' in '{path.parent.name}'") from None
    except OSError as error:
        raise FormatError(f"cannot open '{path.name}': {error.strerror or error}") from None
    if start[:4] == b"GGUF":
        raise UnsupportedError(f"'{path.name}' is a GGUF file, already quantized: give the original .safetensors file")
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:] != b"{"):
        raise UnsupportedError(f"'{path.name}' is a pickle checkpoint (.ckpt, .pt, .bin), which can run code when "
                               f"opened: convert it to .safetensors first")


def check_finite(tensor: torch.Tensor, key: str, name: str) -> None:
    """FormatError for NaN or infinity in a floating-point tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    values = tensor.half() if tensor.element_size() == 1 else tensor      # fp8 has no isfinite; half holds all of it
    low, high = torch.aminmax(values)                                     # NaN in either if there is one anywhere
    if not (torch.isfinite(low) and torch.isfinite(high)):
        what = "NaN" if torch.isnan(low) or torch.isnan(high) else "infinite values"
        raise FormatError(f"'{key:.120}' of '{name}' contains {what}: the checkpoint is damaged, repair it or get "
                          f"another copy")


def _refuse_own_file(file: SafetensorsFile) -> None:
    name = file.path.name
    own = "vqpack.version" in file.metadata or any(key.startswith("vq.tables.") for key in file.entries)
    if not own:
        blobs = (e.key for e in file.entries.values() if e.dtype == "U8" and len(e.shape) == 1 and e.nbytes >= 64)
        own = any(bytes(file.read_bytes(key, 0, len(MAGIC)).numpy()) == MAGIC for key in blobs)
    if own:
        raise UnsupportedError(f"'{name}' is a vqpack file already: give the original checkpoint, or decompress it "
                               f"first")


def _read_file(path: Path) -> Contents:
    file = open_weights(path)
    pairs = _own_naming(file.entries)
    table = PrefixTable((own, ldm) for ldm, own in pairs)
    origins = {}
    for entry in file.entries.values():
        key = table.apply(entry.key)
        if key in origins:
            file.close()
            raise FormatError(f"'{path.name}' holds '{key:.120}' twice under two names")
        origins[key] = Origin(((file, entry.key),), entry.shape, entry.dtype)
    return Contents(path, (file,), origins, file.metadata, KeyMap(tuple(pairs)))


def _own_naming(keys: Iterable[str]) -> list[tuple[str, str]]:
    """(LDM prefix, this file's prefix) of a UNet that does not stand under "model.diffusion_model."."""
    keys = list(keys)
    if any(key.startswith(UNET_PREFIX) for key in keys):
        return []
    for prefix in ("diffusion_model.", ""):
        if prefix + "input_blocks.0.0.weight" in keys:
            return [(UNET_PREFIX + root, prefix + root) for root in unet_names.LDM_ROOTS]
    if "conv_in.weight" in keys and any(key.startswith("down_blocks.") for key in keys):
        return [(UNET_PREFIX + ldm, own) for ldm, own in unet_names.pairs_from_diffusers(keys)]
    return []


def _concat(parts: list[torch.Tensor]) -> torch.Tensor:
    """torch.cat by rows, through bytes for the 8-bit floats that some torch versions cannot concatenate."""
    if parts[0].element_size() == 1:
        return torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
    return torch.cat(parts)
