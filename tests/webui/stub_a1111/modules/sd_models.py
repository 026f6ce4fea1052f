"""The list of checkpoints. A1111 loads a model when the option changes; here it notes which file it would load."""
import hashlib
import os
import re

from modules import paths, shared

model_path = os.path.abspath(os.path.join(paths.models_path, "Stable-diffusion"))
checkpoints_list, checkpoint_aliases, loaded = {}, {}, []


class CheckpointInfo:
    """A title is the name and, where the file was hashed, the first ten digits of it."""

    def __init__(self, filename):
        self.filename = filename
        self.name = os.path.relpath(filename, model_path)
        with open(filename, "rb") as file:
            self.shorthash = hashlib.sha256(file.read()).hexdigest()[:10]
        self.title = f"{self.name} [{self.shorthash}]"

    def register(self):
        checkpoints_list[self.title] = self
        for alias in (self.name, self.title, self.shorthash):
            checkpoint_aliases[alias] = self


def list_models():
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    for folder, _, names in sorted(os.walk(model_path)):
        for name in sorted(names):
            if name.endswith((".safetensors", ".ckpt")):
                CheckpointInfo(os.path.join(folder, name)).register()


def get_closet_checkpoint_match(search_string):
    if not search_string:
        return None
    if search_string in checkpoint_aliases:
        return checkpoint_aliases[search_string]
    wanted = re.sub(r"\s*\[[^]]+]\s*$", "", search_string)
    found = sorted((info for info in checkpoints_list.values() if wanted in info.title), key=lambda i: len(i.title))
    return found[0] if found else None


def reload_model_weights():
    loaded.append(get_closet_checkpoint_match(shared.opts.sd_model_checkpoint).filename)


shared.opts.callbacks["sd_model_checkpoint"] = reload_model_weights
