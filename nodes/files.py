"""Where VQ files and their sources live in ComfyUI's model folders: lists for the widgets, names to paths and back.

Results go to `vq_checkpoints`, a folder beside the one the source came from (same disk), because ComfyUI's own loaders
list everything in `checkpoints` and cannot open a VQ file. VQ files that a user put there are found all the same.
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..vq_core.errors import FormatError, PlanError
from ..vq_core.file_names import SUFFIX, safe_stem
from ..vq_core.layout import MAGIC
from . import host

FOLDER = "vq_checkpoints"
EXTENSIONS = (".safetensors", ".sft")
NONE_YET = "(no VQ file found)"
_STOCK = ("checkpoints", "diffusion_models")
_BESIDE_A_UNET = ("first_stage_model.", "conditioner.", "cond_stage_model.")     # VAE and text encoders
_LONGEST_HEADER = 1_000_000                # docs/format.md, 6: ours is never longer
_MOST_LOOKED_AT = 64                       # U8 tensors of a foreign file whose first bytes are read
_known: dict[str, tuple[int, int, bool]] = {}
_made: dict[str, Path] = {}                # inputs of a node -> what it made of them
_lost: dict[str, int] = {}


def is_unet_only(keys: Iterable[str]) -> bool:
    """Whether a VQ file with these keys holds neither VAE nor text encoders."""
    return not any(key.startswith(_BESIDE_A_UNET) for key in keys)


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
    found = _find((FOLDER, *_STOCK), name)
    if not found:
        raise FormatError(f"the VQ file '{name}' is in none of the folders {', '.join((FOLDER, *_STOCK))}: it was "
                          f"moved or deleted, refresh and choose again")
    ours = next((path for path in found if is_vq_file(path)), None)
    if ours is None:
        raise FormatError(f"'{name}' is not a VQ file: open it with ComfyUI's own loader, or make a VQ file of it with "
                          f"Quantize Checkpoint (VQ)")
    return ours


def source_path(name: str) -> Path:
    """The path of a checkpoint from its name in the widget."""
    found = _find(_STOCK, name)
    if not found:
        raise FormatError(f"the checkpoint '{name}' is in none of the folders {', '.join(_STOCK)}: it was moved or "
                          f"deleted, refresh and choose again")
    return next((path for path in found if not is_vq_file(path)), found[0])


def output_path(source: Path, name: str) -> Path:
    """Where the VQ file made of `source` goes: a folder (the file's name is made from the bits), or `name` in it.

    The folder is `vq_checkpoints` beside the source's root; where nothing can be written there, the first folder of
    ours where something can. It is created. PlanError where the name leads out of it.
    """
    root = root_of(source, _STOCK)
    beside = root.parent / FOLDER
    host.folder_paths.add_model_folder_path(FOLDER, str(beside))
    folder = next((f for f in (beside, *_roots((FOLDER,))) if writable(f)), beside)
    *inside, last = split_name(name, FOLDER) or [*source.parent.relative_to(root).parts, ""]
    folder = make_folder(folder.joinpath(*inside))
    return folder / (last + SUFFIX) if last else folder


def tuned_path(vq_file: Path, name: str) -> Path:
    """Where the file made of a VQ file goes: beside it, "-tuned" at the end, or `name` in its folder of ours.

    As output_path where it lies in one of ComfyUI's own folders, or nothing can be written beside it.
    """
    root = root_of(vq_file, (FOLDER, *_STOCK))
    name = name.strip() or str(vq_file.parent.relative_to(root) / f"{vq_file.stem}-tuned")
    if root not in _roots((FOLDER,)) or not writable(root):
        return output_path(vq_file, name)
    *inside, last = split_name(name, FOLDER)
    return make_folder(root.joinpath(*inside)) / (last + SUFFIX)


def checkpoint_path(vq_file: Path, unet_only: bool, name: str) -> Path:
    """Where the ordinary checkpoint made of a VQ file goes: a folder, or the file `name` in it; it is created.

    The folder is one that ComfyUI's own loader lists (`diffusion_models` for a UNet alone, else `checkpoints`): the
    one beside the VQ file's root, else ComfyUI's first. PlanError where the name leads out of it.
    """
    key = _STOCK[1] if unet_only else _STOCK[0]
    root, roots = root_of(vq_file, (FOLDER, *_STOCK)), _roots((key,))
    beside = [r for r in roots if r == root] or [r for r in roots if r.parent == root.parent]
    folder = sorted(beside, key=lambda r: r.name != key)[0] if beside else roots[0]
    *inside, last = split_name(name, key) or [*vq_file.parent.relative_to(root).parts, ""]
    folder = make_folder(folder.joinpath(*inside))
    return folder / (last + SUFFIX) if last else folder


def split_name(name: str, folder: str) -> list[str]:
    """`sub/name.safetensors` with either slash -> ["sub", "name"], fit for every system; [] for an empty name.

    PlanError where it is absolute or leads upwards.
    """
    name = name.strip()
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    if ".." in parts or name[:1] in ("/", "\\") or any(":" in part for part in parts):
        raise PlanError(f"expected a file name, perhaps with a subfolder, got '{name}': it must stay inside {folder}")
    if parts and parts[-1].lower().endswith(SUFFIX):
        parts[-1] = parts[-1][:-len(SUFFIX)]
    return [safe_stem(part) for part in parts]


def name_of(path: Path) -> str:
    """The name under which the loaders find a file, relative to its folder."""
    return str(path.relative_to(root_of(path, (FOLDER, *_STOCK))))


def root_of(path: Path, keys=(FOLDER, *_STOCK)) -> Path:
    """The model folder a file lies in, links not followed: of several inside each other the innermost.

    The folder of the file itself where it lies in none of them.
    """
    return max((root for root in _roots(keys) if root in path.parents), key=lambda root: len(root.parts),
               default=path.parent)


def remember_result(inputs: list, path: Path) -> None:
    """Note what a node made of these inputs."""
    _made[repr(inputs)] = path


def lost_results(inputs: list) -> int:
    """How often what a node made of these inputs was gone when it was asked again: such a node must run again."""
    key = repr(inputs)
    if key in _made and not _made[key].exists():
        del _made[key]
        _lost[key] = _lost.get(key, 0) + 1
    return _lost.get(key, 0)


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
            known = _known[str(path)] = (status.st_mtime_ns, status.st_size, _is_ours(path))
        return known[2]
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    """By our version in the metadata, or by the magic of a blob where another tool dropped the metadata."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            return False
        header = file.read(length)
        if b'"vqpack.version"' in header:
            return True
        try:
            entries = json.loads(header) if b'"U8"' in header else {}
            starts = [entry["data_offsets"][0] for key, entry in entries.items()
                      if key != "__metadata__" and entry["dtype"] == "U8"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return False
        return any(_bytes_at(file, 8 + length + start) == MAGIC for start in starts[:_MOST_LOOKED_AT]
                   if isinstance(start, int) and start >= 0)


def _bytes_at(file, offset: int) -> bytes:
    file.seek(offset)
    return file.read(len(MAGIC))


def writable(folder: Path) -> bool:
    """Whether the system says that files can be made there, or in the nearest folder above that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def make_folder(folder: Path) -> Path:
    """A folder, created where it is not there; PlanError in one sentence where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"cannot make the folder '{folder}' for the result ({error.strerror or error}): make it "
                        f"yourself, or let this system's user write there") from None
    return folder


def _roots(keys) -> list[Path]:
    return [Path(folder) for key in keys for folder in host.folder_paths.get_folder_paths(key)]


def _names(key: str) -> list[str]:
    return [name for name in host.folder_paths.get_filename_list(key) if name.lower().endswith(EXTENSIONS)]


def _path(key: str, name: str) -> Path:
    return Path(host.folder_paths.get_full_path(key, name) or name)


def _find(keys, name: str) -> list[Path]:
    """What ComfyUI takes a name for under each of the keys; slashes of either kind, nothing outside the folders."""
    if os.path.isabs(name) or os.path.splitdrive(name)[0] or ".." in re.split(r"[/\\]", name):
        return []
    paths = [host.folder_paths.get_full_path(key, spelling) for key in keys
             for spelling in dict.fromkeys((name, name.replace("\\", "/")))]
    return [Path(path) for path in paths if path]
