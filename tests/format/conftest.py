"""Makes samples.py and mutations.py importable as `format_samples` and `format_mutations`.

The test run puts no folder on sys.path.
"""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name in ("samples", "mutations"):
    if f"format_{name}" not in sys.modules:
        spec = importlib.util.spec_from_file_location(f"format_{name}", Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"format_{name}"] = module
        spec.loader.exec_module(module)
