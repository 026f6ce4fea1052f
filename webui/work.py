"""What the tab's buttons do: names from its lists in, one text out. No Gradio here."""
from __future__ import annotations

import threading
from pathlib import Path

from ..vq_core.errors import VQError
from ..vq_core.progress import Progress
from . import host

EXTENSIONS = (".safetensors", ".sft")
STOP = threading.Event()                   # of the one job that runs; the button "Stop" sets it
_BUSY = threading.Lock()


def vq_files(look_into_checkpoints: bool = False) -> dict[str, Path]:
    """Names for the list -> files: all in the VQ folder, and VQ files among the host's checkpoints where asked for."""
    folder = host.vq_folder()
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))
             if path.suffix.lower() in EXTENSIONS}
    if look_into_checkpoints:
        for root in host.checkpoint_folders():
            found.update({path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*"))
                          if path.suffix.lower() in EXTENSIONS and _is_vq(path)})
    return found


def sources() -> dict[str, Path]:
    """The host's checkpoints that can be quantized."""
    return {name: path for name, path in host.checkpoints().items() if path.suffix.lower() in EXTENSIONS}


def inspect(name: str) -> str:
    """What a VQ file holds and what it lost."""
    from ..vq_core.container import Reader
    from ..vq_core.describe import describe
    from ..vq_core.file_report import describe_report
    from ..vq_core.inspection import inspect_file, stored_tensors

    path = _file(name)
    info = inspect_file(path)
    with Reader(path) as reader:
        return f"{path.name}\n{describe(info)}\n\n{describe_report(info, stored_tensors(reader))}"


def quantize(name: str, bits: float, method: str, text_encoder_bits: int, progress: Progress) -> str:
    """A checkpoint of the host -> a file in the VQ folder."""
    from ..vq_core.describe import size
    from ..vq_core.provenance import license_note_of
    from ..vq_core.quantize import quantize as run

    source = sources().get(name)
    if source is None:
        raise VQError("no checkpoint chosen, or it is gone: refresh the lists and choose again")
    result = run(source, host.vq_folder(), bits=float(bits), method=method, text_encoder_bits=int(text_encoder_bits),
                 progress=progress)
    note = license_note_of(result.path)
    return (f"{result.path.name}: {size(result.file_bytes)}, {result.bits['unet']:.2f} bits a weight of the UNet"
            f"{', was there already' if result.already_there else ''}\n{result.path}" + (f"\n{note}" if note else ""))


def decompress(name: str, dtype: str | None, progress: Progress) -> str:
    """A VQ file -> an ordinary checkpoint in the host's folder, which the user manages."""
    from ..vq_core.decompress import decompress as run
    from ..vq_core.decompress import find_decompressed

    path, folder = _file(name), host.checkpoint_folders()[0]
    made = find_decompressed(path, folder, dtype) or run(path, folder, dtype=dtype, progress=progress)
    return f"{made}\nRefresh the list of checkpoints to see it."


def decompress_and_select(name: str, limit_gb: float, progress: Progress) -> str:
    """A VQ file becomes the chosen checkpoint, by a decompressed copy that is deleted again when room is needed."""
    from . import copies

    folder = host.checkpoint_folders()[0] / copies.FOLDER
    chosen = host.selected()
    made = copies.copy_of(_file(name), folder, int(limit_gb * 1e9), [chosen] if chosen else [], progress)
    return f"chosen: {host.select(made)}\nIts weights are those of {name}, decompressed into {made}"


def run(job, tell) -> str:
    """One job at a time: job(Progress) -> its text, or one sentence that says what went wrong. tell: see Progress."""
    if not _BUSY.acquire(blocking=False):
        return "another job of this tab is running: wait for it or stop it"
    try:
        STOP.clear()
        return job(Progress(tell, STOP.is_set))
    except VQError as error:
        return f"{error}"
    except OSError as error:
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    except MemoryError:
        return "out of memory: close other programs and try again"
    finally:
        _BUSY.release()


def _file(name: str) -> Path:
    found = vq_files().get(name) or vq_files(look_into_checkpoints=True).get(name)
    if found is None:
        raise VQError(f"no VQ file chosen, or it is gone: put one into '{host.vq_folder()}' and refresh the lists")
    return found


def _is_vq(path: Path) -> bool:
    from ..vq_core.safetensors_io import SafetensorsFile

    try:
        with SafetensorsFile(path) as file:
            return "vqpack.version" in file.metadata
    except (VQError, OSError):
        return False
