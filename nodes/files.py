"""Where VQ files and their sources live in ComfyUI's model folders: lists for the widgets, names to paths and back.

Results go to `vq_checkpoints`, a folder beside the one the source came from (same disk), because ComfyUI's own loaders
list everything in `checkpoints` and cannot open a VQ file. VQ files that a user put there are found all the same.
"""
from __future__ import annotations

import os
import re
from pathlib import Path

from ..vq_core.errors import FormatError, PlanError
from ..vq_core.file_names import safe_stem
from . import host

FOLDER = "vq_checkpoints"
EXTENSIONS = (".safetensors", ".sft")
NONE_YET = "(no VQ file found)"
_STOCK = ("checkpoints", "diffusion_models")
_LONGEST_HEADER = 1_000_000                # docs/format.md, 6: ours is never longer
_known: dict[str, tuple[int, int, bool]] = {}


def register_folders() -> None:
    """Add our folder key, one `vq_checkpoints` beside every folder of checkpoints and diffusion models."""
    paths, extensions = host.folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    # extra_model_paths.yaml may have made the key, without extensions: every file would be listed
    host.folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, *EXTENSIONS})
    for root in _roots(_STOCK):
        host.folder_paths.add_model_folder_path(FOLDER, str(root.parent / FOLDER))


def vq_files() -> list[str]:
    """Names of all VQ files, relative to their folders; a single explaining entry where there is none."""
    names = {name for key in (FOLDER, *_STOCK) for name in _names(key) if is_vq_file(_path(key, name))}
    return sorted(names) or [NONE_YET]


def source_files() -> list[str]:
    """Names of checkpoints and diffusion models that could be quantized."""
    return sorted({name for key in _STOCK for name in _names(key) if not is_vq_file(_path(key, name))})


def vq_path(name: str | None) -> Path:
    """The path of a VQ file from its name in a widget or link; FormatError in one sentence where there is none."""
    if not name or name == NONE_YET:
        raise FormatError(f"no VQ file chosen: make one with Quantize Checkpoint (VQ), or put one into the folder "
                          f"{FOLDER} and refresh")
    path = _find((FOLDER, *_STOCK), name)
    if path is None:
        raise FormatError(f"the VQ file '{name}' is in none of the folders {', '.join((FOLDER, *_STOCK))}: it was "
                          f"moved or deleted, refresh and choose again")
    if not is_vq_file(path):
        raise FormatError(f"'{name}' is not a VQ file: open it with ComfyUI's own loader, or make a VQ file of it with "
                          f"Quantize Checkpoint (VQ)")
    return path


def source_path(name: str) -> Path:
    """The path of a checkpoint from its name in the widget."""
    path = _find(_STOCK, name)
    if path is None:
        raise FormatError(f"the checkpoint '{name}' is in none of the folders {', '.join(_STOCK)}: it was moved or "
                          f"deleted, refresh and choose again")
    return path


def output_path(source: Path, name: str) -> Path:
    """Where the result of `source` goes: a folder (the file's name is made from the bits), or the file `name` in it.

    The folder is created. PlanError where the name leads out of it.
    """
    root = next(root for root in _roots(_STOCK) if root in source.parents)
    folder = root.parent / FOLDER
    host.folder_paths.add_model_folder_path(FOLDER, str(folder))
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part]
    if ".." in parts or (name.strip()[:1] in ("/", "\\")) or any(":" in part for part in parts):
        raise PlanError(f"expected a file name, perhaps with a subfolder, got '{name}': it must stay inside {FOLDER}")
    *inside, last = [safe_stem(part) for part in parts] or [*source.parent.relative_to(root).parts, ""]
    folder = folder.joinpath(*inside)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"cannot make the folder '{folder.name}' for the result: {error.strerror or error}") from None
    return folder / (last.removesuffix(".safetensors") + ".safetensors") if last else folder


def name_of(path: Path) -> str:
    """The name under which the loaders find a file, relative to its folder."""
    for root in _roots((FOLDER, *_STOCK)):
        if root in path.parents:
            return str(path.relative_to(root))
    return path.name


def stamp(path: Path) -> list:
    """What changes when a file changes: path, time and size; reads nothing of it."""
    status = path.stat()
    return [str(path), status.st_mtime_ns, status.st_size]


def is_vq_file(path: Path) -> bool:
    """Whether a file's header names our format; reads the header only, and only when the file changed."""
    try:
        status = os.stat(path)
        known = _known.get(str(path))
        if known is None or known[:2] != (status.st_mtime_ns, status.st_size):
            known = _known[str(path)] = (status.st_mtime_ns, status.st_size, _has_our_version(path))
        return known[2]
    except OSError:
        return False


def _has_our_version(path: Path) -> bool:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length <= _LONGEST_HEADER and b'"vqpack.version"' in file.read(length)


def _roots(keys) -> list[Path]:
    return [Path(folder) for key in keys for folder in host.folder_paths.get_folder_paths(key)]


def _names(key: str) -> list[str]:
    return [name for name in host.folder_paths.get_filename_list(key) if name.lower().endswith(EXTENSIONS)]


def _path(key: str, name: str) -> Path:
    return Path(host.folder_paths.get_full_path(key, name) or name)


def _find(keys, name: str) -> Path | None:
    paths = (host.folder_paths.get_full_path(key, name.replace("\\", os.sep)) for key in keys)
    return next((Path(path) for path in paths if path), None)
