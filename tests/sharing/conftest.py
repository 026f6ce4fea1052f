"""Small files to share, made of the testbed once."""
from __future__ import annotations

import json
import struct

import pytest


@pytest.fixture(scope="session")
def shared(testbed, tmp_path_factory):
    """The testbed's UNet at 4 bits with a title and a license, its VAE left out."""
    from safetensors.torch import load_file, save_file
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.quantize import quantize

    folder = tmp_path_factory.mktemp("shared")
    plain = decompress(quantize(testbed, folder / "first", bits=8, method="uniform", parts=("unet",)).path,
                       folder / "plain.safetensors")
    source = folder / "my model.safetensors"
    save_file(load_file(plain), source, {"modelspec.title": "My model", "modelspec.license": "CreativeML Open RAIL++-M",
                                         "modelspec.date": "2024-02-03", "prompt": "a secret"})
    return quantize(source, folder / "shared", bits=4, method="uniform").path


@pytest.fixture
def edited(shared, tmp_path):
    """edited(change) -> a copy of `shared` whose metadata change(dict) has changed; the checksums stay."""
    def edit(change, name: str = "edited.safetensors"):
        data = shared.read_bytes()
        end = 8 + struct.unpack_from("<Q", data)[0]
        header = json.loads(data[8:end])
        change(header["__metadata__"])
        text = json.dumps(header, ensure_ascii=False).encode()
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])
        return path
    return edit
