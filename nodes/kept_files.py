"""Calibrations, plans, sensitivities, adapters: the folder `vqpack`, lists for the widgets, names to paths and back."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from comfy_api.latest import io

from ..vq_core.errors import FormatError
from . import files, host

FOLDER = "vqpack"
NONE = "(none)"
CALIBRATION, PLAN, SENSITIVITY = ".vqcal.safetensors", ".vqplan.json", ".vqsens.json"
ADAPTER = ".vqscales.safetensors"
_EXTENSIONS = (".safetensors", ".json")
_STOCK = ("checkpoints", "diffusion_models")
_HEAD = 4096                               # characters of a JSON file in which its kind is named
_PROMPTS = (".txt", ".csv", ".tsv")


def register_folders() -> None:
    """Add the folder key, one `vqpack` beside every folder of checkpoints and diffusion models."""
    paths, extensions = host.folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    host.folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, *_EXTENSIONS})
    for key in _STOCK:
        for root in host.folder_paths.get_folder_paths(key):
            host.folder_paths.add_model_folder_path(FOLDER, str(Path(root).parent / FOLDER))


def calibrations() -> list[str]:
    """Names of all calibrations, "(none)" first."""
    return _listed(lambda path: path.name.endswith(".safetensors") and ".vqcal" in path.name)


def adapters() -> list[str]:
    """Names of all scale adapters, "(none)" first."""
    return _listed(lambda path: path.name.endswith(".safetensors") and ".vqscales" in path.name)


def plans() -> list[str]:
    """Names of all plans, "(none)" first."""
    return _listed(lambda path: _says(path, '"vqpack_plan"'))


def sensitivities() -> list[str]:
    """Names of all files of sensitivities, "(none)" first."""
    return _listed(lambda path: _says(path, '"vqpack_sensitivity"'))


def sensitivity_paths() -> list[Path]:
    """Where those files are."""
    found = (host.folder_paths.get_full_path(FOLDER, name) for name in sensitivities()[1:])
    return [Path(path) for path in found if path]


def prompt_files() -> list[str]:
    """Names of the texts and tables in the host's input folder, "(none)" first."""
    folder = Path(host.folder_paths.get_input_directory())
    found = folder.iterdir() if folder.is_dir() else ()
    return [NONE, *sorted(path.name for path in found if path.suffix.lower() in _PROMPTS and path.is_file())]


def picture_folders() -> list[str]:
    """Folders below the host's input folder, with / between them, that hold pictures; "(none)" first."""
    from ..vq_core.tuning.images import SUFFIXES

    root = Path(host.folder_paths.get_input_directory())
    folders = sorted({path.parent for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()}
                     - {root}) if root.is_dir() else []
    return [NONE, *(folder.relative_to(root).as_posix() for folder in folders)]


def picture_folder(name: str) -> Path:
    """A folder of pictures below the input folder by its name."""
    parts = files.split_name(name, "the input folder") if name != NONE else []
    path = Path(host.folder_paths.get_input_directory()).joinpath(*parts)
    if not parts or not path.is_dir():
        raise FormatError(f"'{name}' is no folder in ComfyUI's input folder: make one there, put the subject's 3 to 10 "
                          f"pictures into it, and choose again")
    return path


def prompt_path(name: str) -> Path:
    """A file of the input folder by its name."""
    path = Path(host.folder_paths.get_input_directory()) / Path(name).name
    if not path.is_file():
        raise FormatError(f"the prompt file '{name}' is not in ComfyUI's input folder: put it there and choose again")
    return path


def kept_path(name: str | None, linked: str | None, what: str) -> Path | None:
    """The file of a widget or, before it, of a link; None where none is chosen. FormatError where it is not there."""
    name = linked or name
    if not name or name == NONE:
        return None
    parts = files.split_name(name, FOLDER)             # refuses what leads out
    found = host.folder_paths.get_full_path(FOLDER, name) if parts else None
    if found is None:
        raise FormatError(f"the {what} '{name}' is not in the folder {FOLDER}: it was moved or deleted, refresh and "
                          f"choose again")
    return Path(found)


def stamp(name: str | None, what: str) -> list:
    """What changes when a chosen file changes; [] where there is none, also where it comes by link."""
    try:
        path = kept_path(name, None, what)
        return [] if path is None else files.stamp(path)
    except (FormatError, OSError):
        return []


def output_path(origin: Path | None, name: str, default: str, ending: str) -> Path:
    """Where a result goes: `vqpack` beside the folder that `origin`, a checkpoint, lies in; it is created.

    Else, or where nothing can be written there, the first folder of the key where something can.
    """
    keys = (files.FOLDER, *_STOCK)
    roots = [Path(root) for key in keys for root in host.folder_paths.get_folder_paths(key)]
    beside = [files.root_of(origin, keys).parent / FOLDER] if origin and any(r in origin.parents for r in roots) else []
    for folder in beside:
        host.folder_paths.add_model_folder_path(FOLDER, str(folder))
    folders = [*beside, *map(Path, host.folder_paths.get_folder_paths(FOLDER))]
    folder = next((f for f in folders if files.writable(f)), folders[0])
    lower = name.strip().lower()
    ended = next((e for e in (ending, ending[ending.rindex("."):]) if lower.endswith(e)), "")
    *inside, last = files.split_name(name.strip()[:len(name.strip()) - len(ended)] or default, FOLDER)
    return files.make_folder(folder.joinpath(*inside)) / (last + ending)


def name_of(path: Path) -> str:
    """The name under which the nodes find a file, relative to its folder."""
    return str(path.relative_to(files.root_of(path, (FOLDER,))))


def calibration_inputs() -> list:
    """Chooser and link; for nodes that code or plan."""
    return [io.Combo.Input("calibration", options=calibrations(), default=NONE, optional=True,
                           tooltip="From Calibrate (VQ) or `vqpack calibrate`: weights are coded for the inputs that "
                                   "layers really get, which saves about a bit. Files are found in the folder vqpack."),
            io.String.Input("calibration_file", optional=True, force_input=True,
                            tooltip="The calibration by link, from Calibrate (VQ). Where it is linked, 'calibration' "
                                    "is not used.")]


def plan_inputs() -> list:
    """Chooser and link; for nodes that code."""
    return [io.Combo.Input("plan", options=plans(), default=NONE, optional=True,
                           tooltip="From Plan (VQ) or `vqpack plan`: bits of every layer. Replaces bits, method and "
                                   "text encoder bits. Files are found in the folder vqpack."),
            io.String.Input("plan_file", optional=True, force_input=True,
                            tooltip="The plan by link, from Plan (VQ). Where it is linked, 'plan' is not used.")]


def _listed(wanted: Callable[[Path], bool]) -> list[str]:
    paths = {name: host.folder_paths.get_full_path(FOLDER, name) for name in
             host.folder_paths.get_filename_list(FOLDER)}
    return [NONE, *sorted(name for name, path in paths.items() if path and wanted(Path(path)))]


def _says(path: Path, mark: str) -> bool:
    """Whether a JSON file names itself so at its start."""
    if path.suffix.lower() != ".json" or not os.path.isfile(path):
        return False
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return mark in file.read(_HEAD)
    except OSError:
        return False
