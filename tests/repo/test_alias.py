"""The alias: `vqpack` is the root folder, and the root folder is not on sys.path."""
import sys
from pathlib import Path

import vqpack
from vqpack.kernels import parts
from vqpack.vq_core import spec


def test_alias_is_the_repository(repository):
    assert Path(vqpack.__file__).parent == repository
    assert Path(spec.__file__) == repository / "vq_core" / "spec.py"
    assert parts.__name__ == "vqpack.kernels.parts"


def test_root_is_not_on_the_path(repository):
    assert repository not in {Path(entry or ".").resolve() for entry in sys.path}


def test_root_was_not_imported_under_another_name(repository):
    """pytest may look at the root's __init__.py, but sub-packages must exist once only."""
    twice = [name for name, module in list(sys.modules.items())
             if getattr(module, "__file__", None) == str(repository / "kernels" / "__init__.py")
             and name != "vqpack.kernels"]
    assert twice == []


def test_the_package_shows_its_functions():
    from vqpack.vq_core import pipeline, quantize

    assert vqpack.load_unet is pipeline.load_unet and vqpack.load_pipeline is pipeline.load_pipeline
    assert vqpack.quantize is quantize.quantize
    assert not hasattr(vqpack, "NODE_CLASS_MAPPINGS")
