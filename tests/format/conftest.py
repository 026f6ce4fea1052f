"""Makes the helpers of these tests importable: the test run puts no folder on sys.path."""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
for name, path in (("format_samples", HERE / "samples.py"), ("format_mutations", HERE / "mutations.py"),
                   ("independent_reader", HERE / "independent_reader.py"),
                   ("arch_shapes", HERE.parent / "arch" / "shapes.py")):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
