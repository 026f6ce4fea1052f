"""The page of one file: it holds the file's numbers, and nothing in a file becomes markup, runs or turns the text."""
from __future__ import annotations

from html.parser import HTMLParser

import pytest
from vqpack.vq_core.compare.file_page import make_page, write_file_page
from vqpack.vq_core.errors import VQError
from vqpack.vq_core.inspection import StoredTensor, inspect_file
from vqpack.vq_core.quantize import quantize

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\u2066\x00 & \'x\''
LONG = "M" * 1_000_000


@pytest.fixture(scope="module")
def file(testbed, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "small.safetensors"
    return quantize(testbed, out, bits=3, method="palette").path


def info_of(said: str) -> dict:
    """What inspect_file finds in a file whose every text is `said`."""
    layer = {"name": f"model.diffusion_model.{said}", "shape": [4, 8], "spec": {"kind": "palette", "bits": 3},
             "bits": 3.1, "bytes": 12400, "relative_error": 0.25}
    return {"architecture": said, "file_bytes": 5, "bits": {"coded": 3.0, "unet": 3.1, "file": 4.2}, "plan": {
        "unet": {"kind": said}}, "source": {"name": said, "sha256": said}, "tool": said, "settings": {said: said},
        "summary": {}, "modelspec": {f"modelspec.{said}": said}, "comparison": None, "layers": [layer]}


def page_of(said: str) -> str:
    info = info_of(said)
    tensor = StoredTensor(info["layers"][0]["name"], "unet", said, "palette", (4, 8), 100)
    return "".join(make_page(said, info, [tensor]))


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_hostile_texts_stay_texts():
    page, harmless = page_of(EVIL), page_of("harmless")
    assert [tag for tag, _ in Tags(page).found] == [tag for tag, _ in Tags(harmless).found]
    assert not any(name.startswith("on") for _, attributes in Tags(page).found for name in attributes)
    assert "\u202e" not in page and "\u2066" not in page and "\0" not in page
    assert page.count("&lt;script&gt;") > 5


def test_the_page_loads_and_runs_nothing_foreign():
    page = page_of(EVIL)
    policy = next(attributes["content"] for tag, attributes in Tags(page).found
                  if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not any({"src", "href", "style", "action"} & attributes.keys() for _, attributes in Tags(page).found)


def test_texts_of_a_megabyte_are_cut():
    assert len(page_of(LONG)) < len(page_of("harmless")) + 20_000


def test_the_numbers_are_the_files(file, tmp_path):
    page = write_file_page(file, tmp_path / "page.html").read_text(encoding="utf-8")
    info = inspect_file(file)
    assert f"{info['bits']['unet']:.3f}" in page and "small.safetensors" in page and "not measured on this file" in page
    assert page.count("<rect") == len(info["layers"]) and page.count('class="worst"') == 8
    worst = max(info["layers"], key=lambda layer: layer["relative_error"])
    assert f">{worst['relative_error']:.5f}<" in page
    assert page.rstrip().endswith("</html>")


def test_an_attached_comparison_is_told(file):
    info = inspect_file(file)
    metric = {"name": "latent_psnr", "title": "Latent PSNR", "unit": "dB", "digits": 1, "low": 19.0, "value": 21.5,
              "high": 24.0, "count": 8}
    info["comparison"] = {"tool": "vqpack 0", "metrics": [metric], "reference": {
        "name": "<b>original</b>", "kind": "checkpoint file", "bytes": 7, "is_source": True}, "settings": {
        "prompts": 8, "seeds": 1, "steps": 20, "prompt_source": "own", "guidance": 5.0, "size": [64, 64],
        "sampler": "euler"}, "weight_error": {}}
    page = "".join(make_page("x", info, []))
    assert "21.5 dB  [19.0, 24.0]" in page and "&lt;b&gt;original" in page and "not measured on this file" not in page


def test_what_is_no_vq_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(VQError):
        write_file_page(tmp_path / "x.safetensors", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_on_the_command_line(file, tmp_path, capsys):
    from vqpack.vq_core.cli.main import main

    assert main(["report", str(file), "-o", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out.strip().endswith("p.html") and (tmp_path / "p.html").stat().st_size > 10_000
    assert main(["report", str(tmp_path / "gone.safetensors")]) == 1
