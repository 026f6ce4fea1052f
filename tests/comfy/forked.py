"""A process that has imported what ComfyUI imports, from which each case starts as a fork: usage forked.py.

Three of the four seconds before a case begins are these imports. ComfyUI itself is not among them: it reads its command
line while it is imported, and each case has one of its own. Reads lines [folder, stdout, stderr, script, arguments...],
files that take what the script writes, and answers each with its exit code.
"""
from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import traceback

IMPORTS = ("torch", "torchvision", "torchaudio", "transformers.models.clip.tokenization_clip", "torchsde", "av",
           "aiohttp", "comfy_kitchen", "scipy.integrate", "scipy.optimize", "PIL.Image", "psutil", "safetensors.torch")


def main() -> None:
    for name in IMPORTS:
        with contextlib.suppress(ImportError, OSError):      # a host that needs it says so itself
            importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(*json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(folder: str, out: str, err: str, script: str, *arguments: str) -> int:
    """In the fork: as if `python script arguments` had been called in that folder."""
    os.chdir(folder)
    for descriptor, path in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
