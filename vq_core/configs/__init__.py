"""Configurations and tokenizer of SDXL and its relatives, so that a pipeline is built without any network.

A JSON file says what tensor shapes do not; everything else is read from the file's own shapes (unet.py).
"""
from __future__ import annotations

import json
from pathlib import Path

from ..errors import FormatError

HERE = Path(__file__).resolve().parent
FILES = {"unet": "unet/config.json", "vae": "vae/config.json", "text_encoder": "text_encoder/config.json",
         "text_encoder_2": "text_encoder_2/config.json", "scheduler": "scheduler/scheduler_config.json",
         "pipeline": "model_index.json"}   # where a diffusers folder keeps them


def read_config(name: str, folder: Path | None = None) -> dict:
    """The configuration of one component: from a diffusers folder if it has one, else SDXL's own."""
    path = folder / FILES[name] if folder is not None else HERE / f"{name}.json"
    if folder is not None and not path.is_file():
        path = HERE / f"{name}.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"cannot read the configuration '{path.name}' of '{path.parent.name}': {error}") from None
