"""A vqpack file of the testbed made without `quantize`: uniform 8-bit codes, everything else as it is."""
from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def write_file(testbed):
    """write_file(target, keep=...) -> path; keep: which layers are in the file at all."""
    from vqpack.vq_core.arch import layers
    from vqpack.vq_core.container import Writer
    from vqpack.vq_core.encode import encode_weight
    from vqpack.vq_core.source import open_source
    from vqpack.vq_core.spec import UniformSpec
    from vqpack.vq_core.text_encoders import stored_items

    def write(target, keep=lambda layer: True):
        with open_source(testbed) as source, Writer(target) as writer:
            for item in stored_items(source, layers(source)):
                layer = item.layer
                if not keep(layer):
                    continue
                if layer.dense:
                    writer.add(layer.key, item.load(source))
                else:
                    coded = encode_weight(item.load_float(source), UniformSpec(8), key=layer.key, splits=layer.splits,
                                          source_dtype=source.dtype(item.source_key))
                    writer.add_blob(layer.key, coded.weight.blob)
            return writer.close({"vqpack.architecture": source.architecture})

    return write


@pytest.fixture(scope="session")
def small_file(write_file, tmp_path_factory):
    """The whole testbed."""
    return write_file(tmp_path_factory.mktemp("small") / "testbed.safetensors")
