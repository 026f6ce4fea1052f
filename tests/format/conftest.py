"""Makes samples.py importable as `format_samples`: the test run puts no folder on sys.path."""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "format_samples" not in sys.modules:
    spec = importlib.util.spec_from_file_location("format_samples", Path(__file__).with_name("samples.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["format_samples"] = module
    spec.loader.exec_module(module)
