"""The pack as the package `vqpack`, and as nothing else, in hosts that put each extension's folder first on sys.path.

Our folders `kernels` and `nodes` have names of other packages (diffusers imports a `kernels`), so the import system
must not find them there. Standard library only; preload.py and scripts/vq_webui.py load this file by its path.
"""
from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType

NAME = "vqpack"


class OnlyInside(importlib.machinery.FileFinder):
    """Finds the modules of the package `vqpack` in its folder and says of all others that they are not here."""

    def find_spec(self, fullname, target=None):
        """As the base class; None for names outside the package."""
        return super().find_spec(fullname, target) if fullname.startswith(NAME + ".") else None


def hide(*folders: str) -> None:
    """Let `import` skip the pack's folder, however sys.path or `folders` spell it. Doing it twice changes nothing.

    The host restores sys.path after each script, so taking the folder off it would not last. The finder that Python
    keeps for a folder lasts, also over importlib.invalidate_caches().
    """
    root = os.path.realpath(_root())
    for entry in {root, _root(), *folders, *(path for path in sys.path if os.path.realpath(path or ".") == root)}:
        sys.path_importer_cache[entry] = OnlyInside(entry, *_loaders())


def load(module: str) -> ModuleType:
    """`load("webui.tab")` -> that module of the pack; the package itself is made at the first call."""
    if NAME not in sys.modules:
        path = os.path.join(_root(), "__init__.py")
        spec = importlib.util.spec_from_file_location(NAME, path, submodule_search_locations=[_root()])
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.{module}")


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _loaders() -> list[tuple]:
    machinery = importlib.machinery
    return [(machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
            (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
            (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES)]
