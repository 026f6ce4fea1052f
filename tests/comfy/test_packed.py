"""The published archive, unpacked into the custom_nodes of a clean ComfyUI folder: no git, no compiler, no package."""
from __future__ import annotations

import importlib.util
import zipfile

import pytest

from .conftest import ROOT, make_base, observed
from .test_server import CONDITIONING

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    """What server_packed.py saw."""
    base = make_base(tmp_path_factory.mktemp("packed"), {"testing": CONDITIONING},
                     checkpoints=files / "tiny.safetensors")
    nodes = base / "custom_nodes"
    for name in ("vq-pack", "hold_stage.py"):
        (nodes / name).unlink()
    spec = importlib.util.spec_from_file_location("pack_for_comfy", ROOT / "benchmarks" / "pack.py")
    packing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packing)
    packing.pack(base / "node.zip")
    with zipfile.ZipFile(base / "node.zip") as archive:
        archive.extractall(nodes / "vqpack")
    return observed("server_packed.py", comfyui, base)


def test_it_loads_with_every_node(found):
    assert not found["import_failed"]
    assert len(found["nodes"]) >= 13


def test_it_quantizes_loads_and_samples(found):
    for what in ("sampled", "trellis", "inspected", "plain"):
        assert found[what]["end"] == "execution_success", found[what]["message"]
    assert found["files"] == ["made.safetensors", "trellis.safetensors"] and found["pictures"] == 1


def test_the_graph_that_files_bring_fits_the_hosts_nodes(found):
    kinds = sorted(node["class_type"] for node in found["canvas"].values())
    assert kinds == ["CLIPTextEncode", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "SaveImage", "VAEDecode",
                     "VQCheckpointLoader"]
    loader = next(node for node in found["canvas"].values() if node["class_type"] == "VQCheckpointLoader")
    assert loader["inputs"] == {"file": "(choose the file)", "memory_mode": "compressed", "keep_decoded": 0,
                                "activations": "16 bits"}


def test_it_adds_no_package(found):
    assert found["added"] == []
