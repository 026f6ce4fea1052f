"""Makes golden.safetensors and golden.json: one weight of every family, and the SHA-256 of what each must decode to.

    python tests/golden/make_golden.py        from the repository's root; only for a new format version

Codes, books, tables and scales are seeded random numbers, so no encoder can change these files. The expected hashes
come from kernels/reference.py alone. The committed files are frozen with version 1 of the format: a program that no
longer reads them bit by bit cannot read its users' files.
"""
from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


def load(name: str, path: Path, **options) -> None:
    """Import a file under a name of our choice; nothing is put on sys.path."""
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def sha256(tensor: torch.Tensor) -> str:
    """Of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def main() -> None:
    """Write both files."""
    load("vqpack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    load("format_samples", ROOT / "tests" / "format" / "samples.py")
    from format_samples import CASES, dense_tensors, parts_of, write_file
    from vqpack.kernels import reference

    path = write_file(FOLDER, "golden", seed=1, overwrite=True, metadata={"note": "frozen with format version 1"})
    expected = {"file": hashlib.sha256(path.read_bytes()).hexdigest(), "coded": {}, "dense": {}}
    for case in CASES:
        shape, parts = parts_of(case, seed=1)
        matrices = [reference.decode_part(part) for *_, part in parts]              # [out, taps * channels] each
        expected["coded"][f"{case}.weight"] = {
            "shape": list(shape), "specs": [kind for _, _, kind, _ in parts],
            "parts_float32": [sha256(m) for m in matrices], "parts_float16": [sha256(m.half()) for m in matrices]}
    for key, tensor in dense_tensors(1).items():
        expected["dense"][key] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "bytes": sha256(tensor)}
    text = json.dumps(expected, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (FOLDER / "golden.json").write_text(text, encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes, {len(expected['coded'])} coded weights")


if __name__ == "__main__":
    main()
