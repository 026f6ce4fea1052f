"""What files made inside ComfyUI say, with and without --disable-metadata: usage as cases.py."""
from __future__ import annotations

import json

from cases import CASE, FILES, ROOT  # starts ComfyUI

import comfy.cli_args  # isort: skip
from vqpack.nodes import files, quantize  # isort: skip
from vqpack.vq_core.header import WORKFLOW_KEY  # isort: skip
from vqpack.vq_core.safetensors_io import SafetensorsFile  # isort: skip


class Silent:
    """A node's progress that nobody sees."""

    def __call__(self, *stage):
        pass

    def say(self, text):
        pass

    def preview(self, picture):
        pass


def case_graph() -> dict:
    """Quantize (VQ) on the testbed, which is complete, with the flag off and on."""
    files.register_folders()
    folder = FILES / "base" / "models" / files.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for flag in (False, True):
        comfy.cli_args.args.disable_metadata = flag
        target = folder / f"flag-{flag}.safetensors"
        quantize.code(str(ROOT / "testbed" / "pipe"), target, 2.0, "uniform", "16", Silent())
        with SafetensorsFile(target) as file:
            found[str(flag)] = file.metadata.get(WORKFLOW_KEY)
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(globals()[f"case_{CASE}"]()))
