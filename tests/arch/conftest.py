"""Makes shapes.py importable as `arch_shapes`: the test run puts no folder on sys.path."""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "arch_shapes" not in sys.modules:
    spec = importlib.util.spec_from_file_location("arch_shapes", Path(__file__).with_name("shapes.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["arch_shapes"] = module
    spec.loader.exec_module(module)
