"""Options and command line."""
import os
from types import SimpleNamespace

from modules import paths

config_filename = os.path.join(paths.script_path, "config.json")
cmd_opts = SimpleNamespace(ckpt_dir=None)


class Options:
    """Known options; setting one that changed calls who asked for it, and takes it back where that fails."""

    def __init__(self):
        self.data, self.callbacks, self.saved = {"sd_model_checkpoint": None}, {}, 0

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    def set(self, key, value, is_api=False, run_callbacks=True):
        if key not in self.data:
            raise KeyError(key)
        old = self.data[key]
        if old == value:
            return False
        self.data[key] = value
        try:
            self.callbacks.get(key, lambda: None)()
        except Exception:
            self.data[key] = old
            return False
        return True

    def save(self, filename):
        self.saved += 1


opts = Options()
