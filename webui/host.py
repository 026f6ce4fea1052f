"""The only file that imports what A1111 and its descendants offer; how they differ is settled here by looking."""
from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

from ..vq_core.errors import VQError

FOLDER = "VQ"                              # under the host's models; its own lists cannot open our files


def kind() -> str:
    """"Forge-Neo", "Forge" or "A1111"."""
    if importlib.util.find_spec("modules_forge") is None:
        return "A1111"
    neo = importlib.util.find_spec("backend") is not None and importlib.util.find_spec("backend.quant_ops") is not None
    return "Forge-Neo" if neo else "Forge"


def vq_folder() -> Path:
    """Where VQ files go; made if need be."""
    from modules import paths

    folder = Path(paths.models_path) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint_folders() -> list[Path]:
    """Where the host looks for checkpoints; the first one is where a new one goes."""
    from modules import sd_models, shared

    options = shared.cmd_opts
    own = [getattr(options, "ckpt_dir", None), *(getattr(options, "ckpt_dirs", None) or [])]
    return [Path(folder) for folder in dict.fromkeys([*filter(None, own), sd_models.model_path])]


def checkpoints() -> dict[str, Path]:
    """The host's list: name in its own drop-down -> file."""
    from modules import sd_models

    return {info.name: Path(info.filename) for info in list(sd_models.checkpoints_list.values())}


def selected() -> Path | None:
    """The file of the checkpoint that is chosen now."""
    from modules import sd_models, shared

    info = sd_models.get_closet_checkpoint_match(getattr(shared.opts, "sd_model_checkpoint", None) or "")
    return None if info is None else Path(info.filename)


def select(path: Path) -> str:
    """Make a checkpoint file the chosen one, as if it were picked from the host's drop-down -> its name there.

    A1111 loads it now, Forge with the next picture. VQError where the host does not list the file or keeps another.
    """
    from modules import sd_models

    sd_models.list_models()
    info = next((i for i in list(sd_models.checkpoints_list.values()) if _same(i.filename, path)), None)
    if info is None:
        raise VQError(f"'{path.name}' was written, but this program does not list it: expected it to look into "
                      f"'{path.parent}'; choose the file by hand after refreshing the list")
    _choose(info)
    if not _same(selected() or "", path):
        raise VQError(f"'{path.name}' was written, but this program did not take it: choose it in the list of "
                      f"checkpoints; the console says why")
    return info.name


def _choose(info) -> None:
    from modules import shared

    if importlib.util.find_spec("modules_forge") is None:
        shared.opts.set("sd_model_checkpoint", info.title)
        shared.opts.save(shared.config_filename)
        return
    from modules_forge import main_entry

    change = main_entry.checkpoint_change            # Neo wants the preset too; None leaves the presets as they are
    change(info.name, *([None] if "preset" in inspect.signature(change).parameters else []))


def _same(one, other) -> bool:
    return bool(str(one)) and Path(one).resolve() == Path(other).resolve()
