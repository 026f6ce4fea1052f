"""Small files of the testbed to compare, and quick settings."""
from __future__ import annotations

import pytest

QUICK = {"count": 2, "steps": 3}


@pytest.fixture(scope="session")
def quick():
    """Arguments of compare() that draw two prompts in three steps."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def files(testbed, tmp_path_factory):
    """Four files made of the testbed: 8 bits whole, 2 bits UNet only, and the first one decompressed."""
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.quantize import quantize

    folder = tmp_path_factory.mktemp("files")
    eight = quantize(testbed, folder / "eight.safetensors", bits=8, method="uniform", text_encoder_bits=16).path
    two = quantize(testbed, folder / "two.safetensors", bits=2, method="uniform", parts=("unet",)).path
    return {"eight": eight, "two": two, "plain": decompress(eight, folder / "plain.safetensors")}


@pytest.fixture(scope="session")
def report(testbed, files, tmp_path_factory, quick):
    """One finished comparison: the folder against 8 bits, 2 bits without encoders, and the decompressed file."""
    from vqpack.vq_core.compare.run import compare

    folder = tmp_path_factory.mktemp("report") / "a new folder"
    return compare([testbed, files["eight"], files["two"], files["plain"]], folder, **quick)
