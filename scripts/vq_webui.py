"""A1111, Forge and Forge-Neo run this file at every start: it registers the tab VQ and imports nothing else."""
import importlib.util
import os


def _alias():
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = importlib.util.spec_from_file_location("vqpack_alias", os.path.join(folder, "webui", "alias.py"))
    alias = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alias)
    alias.hide(folder)
    return alias


def _tabs():
    return _alias().load("webui.tab").make_tabs()


def _register():
    _alias()
    from modules import script_callbacks

    script_callbacks.on_ui_tabs(_tabs)


_register()
