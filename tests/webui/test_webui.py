"""The tab in stubs of A1111, Forge and Forge-Neo: start, quantize, inspect, decompress, select."""
from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOSTS = ("a1111", "forge", "forge_neo")
BAR_SECONDS = 0.3


@pytest.fixture(scope="session")
def checkpoint(testbed, tmp_path_factory):
    """The testbed as a single ordinary file."""
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.quantize import quantize

    folder = tmp_path_factory.mktemp("plain")
    return decompress(quantize(testbed, folder / "eight", bits=8, method="uniform", text_encoder_bits=16).path,
                      folder / "plain.safetensors")


def make_host(kind: str, folder: Path, checkpoint: Path) -> Path:
    """A host's folder with a model, a stub of its interface, and this pack as an extension."""
    shutil.copytree(HERE / "stub_a1111", folder)
    if kind != "a1111":
        shutil.copytree(HERE / f"stub_{kind}", folder, dirs_exist_ok=True)
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    shutil.copy(checkpoint, models / "plain.safetensors")
    (folder / "extensions").mkdir()
    (folder / "extensions" / "sd-webui-vqpack").symlink_to(ROOT, target_is_directory=True)
    site = folder / "site" / "kernels"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text('MARK = "the package of that name"\n', encoding="utf-8")
    return folder


def drive(host: Path, case: str, *more: str) -> dict:
    paths = os.pathsep.join([str(host / "site"), str(HERE / "stub_gradio")])
    done = subprocess.run([sys.executable, str(HERE / "drive.py"), str(host / "extensions" / "sd-webui-vqpack"), case,
                           *more], capture_output=True, text=True, cwd=host, check=False,
                          env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert done.returncode == 0 and lines, done.stderr[-4000:]
    return {**json.loads(lines[-1][6:]), "errors": done.stderr}


@pytest.fixture(scope="module")
def work(checkpoint, tmp_path_factory):
    """work(kind) -> what the buttons did; in A1111 more, for the rest is the same everywhere."""
    @functools.cache
    def run(kind: str) -> dict:
        host = make_host(kind, tmp_path_factory.mktemp("host") / kind, checkpoint)
        return drive(host, "work+more" if kind == "a1111" else "work")
    return run


@pytest.fixture(params=HOSTS)
def worked(request, work):
    """-> (kind, what the buttons did)"""
    return request.param, work(request.param)


@pytest.fixture
def more(work):
    """What was done in A1111."""
    return work("a1111")


def test_start_costs_little_and_imports_nothing(worked):
    _, found = worked
    assert found["tabs"] == [["Blocks", "VQ", "vqpack"]] and found["imported"] == []
    assert found["seconds"] <= BAR_SECONDS


def test_our_folders_are_not_importable(worked):
    _, found = worked
    assert found["on_path"] == 1                                    # the host left our folder there
    assert found["found"]["nodes"] is None and found["found"]["vq_core"] is None
    assert found["found"]["kernels"].endswith(os.path.join("site", "kernels", "__init__.py"))


def test_diffusers_finds_its_own_kernels(checkpoint, tmp_path):
    """Also where the extension was switched on without a restart, so that preload.py never ran."""
    host = make_host("a1111", tmp_path / "a1111", checkpoint)
    found = drive(host, "diffusers", "no preload")
    assert found["mark"] == "the package of that name" and found["found"]["kernels"].startswith(str(host / "site"))
    assert found["diffusers"] and found["ours"] and found["on_path"] == 1


def test_quantize_inspect_decompress(worked):
    _, found = worked
    assert found["sources"] == ["plain.safetensors"] and found["nothing chosen"].startswith("no VQ file chosen")
    assert "bits a weight of the UNet" in found["quantized"]
    assert [name.startswith("plain-vq") for name in found["files"]] == [True]
    assert "source: plain.safetensors (sha256 " in found["inspected"] and "worst layers:" in found["inspected"]
    assert "-bf16.safetensors" in found["plain"]
    assert {"decompress"} <= set(found["progress"])


def test_decompress_and_select(worked):
    kind, found = worked
    first = found["copies"][0]
    assert found["copies"] == [first] and first.endswith("-decompressed.safetensors")
    assert found["loaded"] == [os.path.join("vq-decompressed", first)]
    assert first in found["selected"]
    assert found["option"].endswith(".safetensors" if kind != "a1111" else "]") and found["saved"] >= 1


def test_copies_are_managed_by_size(more):
    found, first = more, more["copies"][0]
    assert first in found["selected again"]
    assert "does not fit" in found["no room"] and found["kept"] == sorted([first, "mine.safetensors"])
    assert len(found["two"]) == 3 and first in found["two"]
    assert first not in found["after third"] and "mine.safetensors" in found["after third"]
    assert len(found["after third"]) == 3


def test_what_goes_wrong_is_said(more):
    found = more
    assert "was there already" in found["again"] and "2.5" in found["no such rate"]
    assert "does not list it" in found["not listed"] and found["gone"].startswith("no VQ file chosen, or it is gone")
    assert "Traceback" not in found["errors"]


def test_the_tab_says_what_each_host_can_do(worked):
    kind, found = worked
    assert {"a1111": "A1111 has no place", "forge": "Forge's loader", "forge_neo": "Forge-Neo has the tensor class"}[
        kind] in found["about"]
    assert "GPU memory is not" in found["about"]
