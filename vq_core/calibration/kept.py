"""What a calibration keeps on disk while it runs: recorded calls, and copies of the sums, so that it can go on."""
from __future__ import annotations

import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np

from ..errors import UnsupportedError, VQError
from ..locked_files import delete_locked, open_locked
from ..progress import Progress
from .accumulate import Sums
from .calls import Calls, load_calls, save_calls
from .settings import Picture

SNAPSHOT_SECONDS = 30.0                    # at least, between two copies of the sums on disk
SNAPSHOT_COST = 20                         # at least so many times what a copy takes: 5 % of the time


class Kept:
    """The folder of recorded calls beside the result, locked while in use."""

    def __init__(self, root: Path, fingerprint: str):
        self.root, self.folder = root, root / fingerprint[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = root / f"{fingerprint[:32]}.lock"
        self._held = open_locked(self._lock)
        if self._held is None:
            raise VQError(f"another run is making this calibration in '{root.parent}': wait for it or choose another "
                          f"name")

    def has(self, picture: Picture) -> bool:
        """Whether a picture's calls are there and whole."""
        return load_calls(self._path(picture)) is not None

    def save(self, picture: Picture, calls: Calls) -> None:
        """Keep a picture's calls."""
        save_calls(self._path(picture), calls)

    def calls(self, picture: Picture) -> Calls:
        """A picture's calls; UnsupportedError where somebody deleted or damaged them."""
        calls = load_calls(self._path(picture))
        if calls is None:
            raise UnsupportedError(f"a recorded picture is gone from '{self.root.name}': run the same command again")
        return calls

    def _path(self, picture: Picture) -> Path:
        return self.folder / f"picture-{picture.index:05d}.npz"

    def close(self) -> None:
        """Let go of it; what was recorded stays, empty folders do not."""
        delete_locked(self._lock, self._held)
        for folder in (self.folder, self.root):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def remove(self) -> None:
        """Delete what was recorded."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()


class Snapshot:
    """A copy of one sweep's sums on disk, after whole pictures, so that a stopped run goes on with the same numbers.

    progress: asked whether to stop at each group's sums; the copy before stays then.
    """

    def __init__(self, path: Path, sums: dict[int, Sums], progress: Progress):
        self.path, self.sums, self.done, self._progress = path, sums, 0, progress
        self._last, self._cost = time.monotonic(), 0.0
        self._load()

    def finished(self, pictures: int) -> None:
        """So many pictures are in the sums; saved if the last copy is old enough."""
        self.done = pictures
        now = time.monotonic()
        if now - self._last >= max(SNAPSHOT_SECONDS, SNAPSHOT_COST * self._cost):
            self._save()
            self._last, self._cost = time.monotonic(), time.monotonic() - now

    def _save(self) -> None:
        part = self.path.with_name(self.path.name + ".part")
        try:
            with zipfile.ZipFile(part, "w") as archive:        # what np.savez writes, but not in one go
                _write(archive, "done", np.array(self.done))
                for index, sums in self.sums.items():
                    self._progress.check()
                    for name, value in sums.state().items():
                        _write(archive, f"{index}.{name}", value)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        os.replace(part, self.path)

    def _load(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                done = int(file["done"])
                states = {index: self._read(file, index) for index in self.sums}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        for index, state in states.items():
            self.sums[index].restore(state)
        self.done = done

    def _read(self, file, index: int) -> dict:
        self._progress.check()
        return {name: file[f"{index}.{name}"] for name in Sums.NAMES}


def _write(archive: zipfile.ZipFile, name: str, value) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asanyarray(value), allow_pickle=False)
