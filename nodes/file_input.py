"""The inputs `file` and `file_name` of every node that reads a VQ file: list, check before the run, caching."""
from __future__ import annotations

from comfy_api.latest import io

from ..vq_core.errors import FormatError
from . import files

_FILE = "The VQ file. Files are found in vq_checkpoints, checkpoints and diffusion_models."
_FILE_NAME = "The file name by link, e.g. from Quantize Checkpoint (VQ). Where it is linked, 'file' is not used."


def file_input():
    """The widget; first of the required inputs."""
    return io.Combo.Input("file", options=files.vq_files(), tooltip=_FILE)


def file_name_input():
    """The link; first of the optional inputs."""
    return io.String.Input("file_name", optional=True, force_input=True, tooltip=_FILE_NAME)


class VQFileNode(io.ComfyNode):
    """Validation and caching by these two inputs."""

    @classmethod
    def validate_inputs(cls, file, input_types):
        """Before the run: the chosen file exists. A linked name may not exist yet and is checked when it arrives."""
        if "file_name" in input_types:
            return True
        try:
            files.vq_path(file)
        except FormatError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, file_name=None, **_others):
        """Run again when the file changed: path, time and size, not a hash of gigabytes."""
        try:
            return files.stamp(files.vq_path(file_name or file))
        except (FormatError, OSError):
            return []                      # linked: the node before this one decides
