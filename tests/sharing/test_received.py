"""What somebody sees who has a file and nothing else: by Inspect, by ComfyUI's view of metadata, by plain safe_open."""
from __future__ import annotations

import hashlib
import json
import struct

import pytest
from safetensors import safe_open
from vqpack.vq_core.decompress import decompress
from vqpack.vq_core.describe import describe
from vqpack.vq_core.header import WORKFLOW_KEY, canvas_graph
from vqpack.vq_core.inspection import inspect_file
from vqpack.vq_core.quantize import quantize
from vqpack.vq_core.version import __version__

COMFYUI_READS = 1024 * 1024                # bytes of a header that ComfyUI's view of metadata takes; more is refused


@pytest.fixture(scope="module")
def complete(testbed, tmp_path_factory):
    """A file with everything that sampling needs."""
    return quantize(testbed, tmp_path_factory.mktemp("complete"), bits=2, method="uniform", text_encoder_bits=4).path


def header_of(path) -> tuple[int, dict]:
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    return length, json.loads(data[8:8 + length])["__metadata__"]


def test_plain_safe_open_shows_where_it_is_from(shared):
    with safe_open(shared, "pt") as opened:
        said = opened.metadata()
        assert any(opened.get_slice(key).get_dtype() == "U8" for key in opened.keys())
    source = json.loads(said["vqpack.source"])
    assert source["name"] == "my model.safetensors" and len(source["sha256"]) == 64
    assert said["modelspec.license"] == "CreativeML Open RAIL++-M" and said["modelspec.title"] == "My model"
    assert said["vqpack.tool"] == f"vqpack {__version__}" and json.loads(said["vqpack.bits"])["unet"] > 1
    assert "modelspec.date" not in said and "prompt" not in said


def test_comfyuis_view_can_read_it(shared, complete):
    for path in (shared, complete):
        length, said = header_of(path)
        assert length < COMFYUI_READS and all(isinstance(value, str) for value in said.values())


def test_the_hash_is_that_of_the_data(shared, complete):
    for path in (shared, complete):
        length, said = header_of(path)
        assert said["modelspec.hash_sha256"] == "0x" + hashlib.sha256(path.read_bytes()[8 + length:]).hexdigest()


def test_inspect_shows_all_of_it(shared):
    info = inspect_file(shared)
    text = describe(info)
    for wanted in ("my model.safetensors", info["source"]["sha256"], "CreativeML Open RAIL++-M",
                   f"vqpack {__version__}", f"{info['bits']['unet']:.3f}"):
        assert wanted in text, wanted


def test_a_complete_file_brings_a_graph_and_it_is_ours(complete, shared):
    _, said = header_of(complete)
    graph = json.loads(said[WORKFLOW_KEY])
    kinds = [node["type"] for node in graph["nodes"]]
    assert kinds[0] == "VQCheckpointLoader" and {"KSampler", "VAEDecode", "SaveImage"} <= set(kinds)
    assert complete.name not in said[WORKFLOW_KEY] and len(said[WORKFLOW_KEY]) < 6000
    ends = {(link[1], link[3]) for link in graph["links"]}
    assert all({a, b} <= {node["id"] for node in graph["nodes"]} for a, b in ends)
    assert WORKFLOW_KEY not in header_of(shared)[1]                  # its UNet alone cannot be sampled from
    assert canvas_graph(["unet", "vae"]) == {}


def test_no_graph_where_it_is_not_wanted_and_no_other_weights(complete, testbed, tmp_path):
    without = quantize(testbed, tmp_path, bits=2, method="uniform", text_encoder_bits=4, graph=False).path
    assert WORKFLOW_KEY not in header_of(without)[1]
    assert header_of(without)[1]["modelspec.hash_sha256"] == header_of(complete)[1]["modelspec.hash_sha256"]


def test_the_graph_stays_with_vq_files(complete, tmp_path):
    assert WORKFLOW_KEY not in header_of(decompress(complete, tmp_path / "plain.safetensors"))[1]
