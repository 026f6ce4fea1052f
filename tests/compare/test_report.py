"""The page by itself: nothing foreign runs or turns the text, nothing is loaded, tables and chart hold the numbers."""
from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from vqpack.vq_core.compare import report as report_module
from vqpack.vq_core.compare.markup import cell, interval, number, text
from vqpack.vq_core.compare.output import plain, read_json, write_text
from vqpack.vq_core.compare.report import write_report

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x00 & \'x\''
VALUES = {"latent_psnr": 21.5, "image_psnr": math.inf, "ssim": 0.9, "steps": [30.0, 21.5]}


def checkpoint(letter: str, name: str, found: dict, steps: list[float]) -> dict:
    return {"letter": letter, "name": name, "kind": "vqpack file", "architecture": "sdxl", "prediction": "eps",
            "file_bytes": 1234567, "bits": {"coded": 3.0, "unet": 3.1, "file": 4.2},
            "texts": {"modelspec.title": EVIL, "modelspec.author": EVIL}, "metrics": found, "steps": steps,
            "weight_error": {"unet": 0.01, "te1": None, "te2": None}}


@pytest.fixture
def data():
    """A report of two prompts whose every text is hostile."""
    found = {"latent_psnr": {"low": 19.0, "value": 21.5, "high": 24.0, "count": 2},
             "ssim": {"low": 0.8, "value": 0.9, "high": 0.95, "count": 2}}
    layer = {"name": f"model.{EVIL}", "component": "unet", "role": "conv1", "shape": [4, 8], "stored": "trellis 3",
             "bits": 3.1, "bytes": 12400, "error": 0.01}
    return {"complete": False, "not_drawn": [EVIL], "notes": [EVIL], "tool": "vqpack 0", "seconds": 3.0,
            "settings": {"prompts": ["a", "b"], "seeds": 1, "size": [64, 64], "steps": 2, "guidance": 3.0,
                         "sampler": "model", "device": "cpu", "prompt_file": EVIL, "torch": "2"},
            "checkpoints": [checkpoint("A", EVIL, {}, []), checkpoint("B", EVIL, found, [30.0, 21.5]),
                            checkpoint("C", "same", found, [math.inf, math.inf])],
            "metrics": [{"name": "latent_psnr", "title": "Latent PSNR", "unit": "dB", "statistic": "median",
                         "digits": 1, "meaning": "m", "higher_is_better": True},
                        {"name": "ssim", "title": "SSIM", "unit": "", "statistic": "mean", "digits": 3, "meaning": "m",
                         "higher_is_better": True}],
            "differences": [{"of": "C", "minus": "B", "metrics": {"latent_psnr": {
                "low": 1.0, "value": 2.0, "high": 3.0, "count": 2, "excludes_zero": True}}}],
            "pictures": [{"prompt": EVIL, "seed": 1000 + i, "index": [i, 0], "values": {"B": VALUES, "C": VALUES}}
                         for i in range(2)],
            "layers": {"A": [{**layer, "error": None}], "B": [layer], "C": []}}


@pytest.fixture
def page(data, tmp_path):
    write_report(tmp_path / "r.html", data, lambda *_: torch.full((64, 64, 3), 77, dtype=torch.uint8))
    return (tmp_path / "r.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, texts, and whether tags close in order."""

    EMPTY = {"meta", "img", "input", "line", "polyline", "br", "link"}

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.texts, self.open, self.closed_in_order = [], [], [], True
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.closed_in_order &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_hostile_texts_stay_texts(page):
    parsed = Page(page)
    assert parsed.closed_in_order and parsed.open == []
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") or name == "style" for name in attrs)]
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in parsed.tags
               if tag == "img" and "src" in attrs)
    assert sum("<script>alert(1)</script>" in text for text in parsed.texts) > 8      # shown, not run
    assert "\x00" not in page


def test_nothing_is_loaded_and_only_our_script_may_run(page):
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"<script>.*</script>", "", page, flags=re.S))
    policy = next(attrs["content"] for tag, attrs in Page(page).tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy


def test_tables_and_chart(page):
    parsed = Page(page)
    words = " ".join(parsed.texts)
    for expected in ("21.5", "19.0 to 24.0", "C closer", "Not finished", "1.2 MB", "12,400", "seed 1001", "∞"):
        assert expected in words, expected
    lines = [attrs for tag, attrs in parsed.tags if tag == "polyline"]
    assert len(lines) == 1 and lines[0]["class"] == "l1"                              # C is equal: no curve
    assert sum(tag == "figure" for tag, _ in parsed.tags) == 6


def test_many_pictures_show_the_worst_and_some(data):
    many = [{**data["pictures"][0], "index": [i, 0], "values": {"B": {**VALUES, "latent_psnr": 100.0 - i}}}
            for i in range(200)]
    shown, note = report_module.shown_rows(many)
    assert len(shown) == report_module.MOST_SHOWN and "of 200 pictures" in note
    indices = [row["index"][0] for row in shown]
    assert indices == sorted(indices) and set(range(180, 200)) <= set(indices) and min(indices) < 20


def test_numbers_and_cells():
    assert [number(v, 1) for v in (1.25, math.inf, -math.inf, math.nan, None, -2.0)] == [
        "1.2", "∞", "−∞", "–", "–", "−2.0"]
    assert interval({"low": 1.0, "high": 2.0, "count": 1}, 1) == "one prompt"
    assert 'data-v="1e+300"' in cell("∞", math.inf) and 'data-v=""' in cell("–")
    assert text("<\x07\ud800>") == "&lt;\ufffd\ufffd&gt;" and len(text("x" * 9999)) < 4100


def test_result_files_are_whole_or_the_old_ones(tmp_path):
    path = tmp_path / "r.html"
    write_text(path, ["old"])

    def pieces():
        yield "new"
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_text(path, pieces())
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]
    assert read_json(path) == {} and read_json(tmp_path / "none") == {}
    assert plain({"a": [math.inf, -math.inf, math.nan, 1.5, (2,)]}) == {"a": ["inf", "-inf", None, 1.5, [2]]}


def test_a_real_report_is_self_contained(report):
    page = report.html.read_text(encoding="utf-8")
    parsed = Page(page)
    assert parsed.closed_in_order and parsed.open == []
    assert sum(tag == "img" and "src" in attrs and len(attrs["src"]) > 200 for tag, attrs in parsed.tags) == 4 * 2
    rows = [attrs for tag, attrs in parsed.tags if tag == "td" and attrs.get("class") == "layer"]
    assert len(rows) == len(report.data["layers"]["A"]) > 50
