"""Called by A1111 and Forge before any script of an extension runs: hides our folders from `import`."""
import importlib.util
import os


def preload(parser):
    """Adds no option."""
    folder = os.path.dirname(__file__)
    spec = importlib.util.spec_from_file_location("vqpack_alias", os.path.join(folder, "webui", "alias.py"))
    alias = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alias)
    alias.hide(folder)
