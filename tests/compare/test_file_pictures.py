"""Pictures on the page of one file: the numbers beside each pair, the slider, and texts that stay texts."""
from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace

import pytest
from vqpack.vq_core.adapters.file import base_id
from vqpack.vq_core.compare import gallery
from vqpack.vq_core.compare.file_page import make_page
from vqpack.vq_core.compare.file_pictures import drawn_here, of_comparison, section, summary_line
from vqpack.vq_core.compare.gallery_record import Run, Side
from vqpack.vq_core.compare.output import read_json
from vqpack.vq_core.compare.pictures import figures_of, make_png
from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import FormatError

from .test_file_page import Tags
from .test_gallery import RUN, SETTINGS, UNET, kept, pair

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\u2066\x00\n'


def test_a_file_is_known_by_its_header_whatever_is_written_into_it(files, report, tmp_path):
    from vqpack.vq_core.compare.attach import attach

    def of(path):
        with Reader(path) as reader:
            return gallery.unet_id(reader), base_id(reader)

    attached = attach(files["eight"], report.json, tmp_path / "attached.safetensors")
    assert of(files["eight"]) == of(attached) and len({*of(attached)}) == 1
    assert of(files["two"])[0] != of(attached)[0]
    gallery.keep(tmp_path / "root", of(attached)[0], RUN, [pair()])
    (drawing,) = drawn_here(tmp_path / "root", files["eight"])
    assert [found.b for found in drawing.pairs] == [make_png(pair()[1])]
    assert drawn_here(tmp_path / "root", files["two"]) == []


def shown(tmp_path, monkeypatch, run: Run = RUN) -> str:
    """The section of a run that was kept."""
    monkeypatch.setattr("vqpack.vq_core.compare.file_pictures.unet_id", lambda reader: UNET)
    monkeypatch.setattr("vqpack.vq_core.compare.file_pictures.Reader", lambda path: open(os.devnull, "rb"))
    gallery.keep(tmp_path, UNET, run, [pair(), pair(3)])
    return "".join(section(drawn_here(tmp_path, "any")))


def test_the_page_shows_pairs_with_their_numbers_and_the_slider(tmp_path, monkeypatch):
    page = shown(tmp_path, monkeypatch)
    assert "Latent PSNR 21.5 dB, Picture PSNR 30.2 dB, SSIM 0.500" in page and "Latent PSNR ∞ dB" in page
    assert "original.safetensors" in page and "48 × 32 pixels, 20 steps, euler, normal, cfg 5.5" in page
    assert f"seed {2**64 - 1}" in page and "in this ComfyUI" in page
    assert "On B was a LoRA, merge or other patch on 3 weights; LoRA by hook." in page and "On A was" not in page
    tags = Tags(page).found
    assert sum(tag == "figure" for tag, _ in tags) == 4
    assert ("input", {"type": "range", "min": "0", "max": "100", "value": "50",
                      "aria-label": "How much of each picture"}) in tags
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    assert figures_of(tmp_path / "page.html", "B") == [make_png(pair()[1]), make_png(pair(3)[1])]


def test_hostile_texts_stay_texts(tmp_path, monkeypatch):
    evil = replace(RUN, a=Side(EVIL, 1, (EVIL,)), settings=replace(SETTINGS, sampler=EVIL, scheduler=EVIL), tool=EVIL)
    harmless = replace(RUN, a=Side("x", 1, ("x",)))
    page = shown(tmp_path / "evil", monkeypatch, evil)
    names = [tag for tag, _ in Tags(page).found]
    assert names == [tag for tag, _ in Tags(shown(tmp_path / "good", monkeypatch, harmless)).found]
    assert not any(name.startswith("on") for _, attributes in Tags(page).found for name in attributes)
    assert "&lt;script&gt;" in page and not re.search("[\0\u202e\u2066]", page)


def test_pictures_that_are_gone_are_told(tmp_path, monkeypatch):
    shown(tmp_path, monkeypatch)
    (run,) = kept(tmp_path)
    (tmp_path / UNET / f"{run.pictures[0][0]}.png").unlink()
    (drawing,) = drawn_here(tmp_path, "any")
    assert len(drawing.pairs) == 1 and drawing.pairs[0].title == "Picture 2"
    assert "1 picture of each can no longer be read." in drawing.notes


def test_a_page_with_pictures_says_no_more_that_nothing_was_measured(tmp_path, monkeypatch):
    shown(tmp_path, monkeypatch)
    info = {"architecture": "x", "file_bytes": 5, "bits": {"coded": 3.0, "unet": 3.1, "file": 4.2}, "plan": {},
            "source": {}, "tool": None, "settings": {}, "summary": {}, "modelspec": {}, "comparison": None,
            "layers": []}
    page = "".join(make_page("x", info, [], drawn_here(tmp_path, "any")))
    assert "not measured on this file" not in page and page.count("<figure>") == 4 and page.count('id="view"') == 1
    assert "not measured on this file" in "".join(make_page("x", info, []))


def test_one_line_for_the_panel():
    assert summary_line(RUN, "original.safetensors") == "Latent PSNR ∞ dB, 2 pictures, LoRA or other patches on"
    plain = replace(RUN, b=Side("x"), settings=replace(SETTINGS, count=1), values={"latent_psnr": [-1.5]})
    assert summary_line(plain, "other") == "Latent PSNR −1.5 dB against original.safetensors, 1 picture"
    unknown = replace(plain, a=Side(""))
    assert summary_line(unknown, "x") == "Latent PSNR −1.5 dB against a model whose file is not known, 1 picture"


def test_the_pictures_of_a_comparison(report, files):
    drawing = of_comparison(files["two"], report.html.parent)
    assert [found.b for found in drawing.pairs] == figures_of(report.html, "C")
    assert [found.a for found in drawing.pairs] == figures_of(report.html, "A")
    row = report.data["pictures"][0]
    assert drawing.pairs[0].title == f"{row['prompt']} (seed {row['seed']})"
    assert f"Latent PSNR {row['values']['C']['latent_psnr']:.1f} dB" in drawing.pairs[0].said
    assert drawing == of_comparison(files["two"], report.json)


def test_a_comparison_of_many_pictures_of_which_some_are_identical(report, files, tmp_path):
    """JSON says "inf" of them; the page has MOST_SHOWN of them."""
    data = read_json(report.json)
    row = data["pictures"][0]
    row["values"]["C"]["latent_psnr"] = "inf"
    data["pictures"] = [row] * 50
    figures = [f'src="data:image/png;base64,AAAA"></button><figcaption><span class="key k0">{letter}</span>'
               for letter in "AC"]
    (tmp_path / "compare.html").write_text("".join(figures * 40), encoding="utf-8")
    (tmp_path / "compare.json").write_text(json.dumps(data), encoding="utf-8")
    drawing = of_comparison(files["two"], tmp_path)
    assert len(drawing.pairs) == 40 and "40 of 50 pictures are shown" in drawing.notes[0]
    assert math.isinf(float(row["values"]["C"]["latent_psnr"])) and "Latent PSNR ∞ dB" in drawing.pairs[0].said


def test_a_comparison_that_does_not_fit_is_refused_in_one_sentence(report, files, tmp_path, capsys):
    from vqpack.vq_core.cli.main import main

    shutil.copy(report.json, tmp_path / "compare.json")
    with pytest.raises(FormatError, match="does not hold the pictures"):                     # no page
        of_comparison(files["two"], tmp_path)
    (tmp_path / "compare.html").write_text("<html>", encoding="utf-8")
    with pytest.raises(FormatError, match="does not hold the pictures"):
        of_comparison(files["two"], tmp_path)
    page = tmp_path / "page.html"
    assert main(["report", str(files["plain"]), "-o", str(page), "--comparison", str(report.html.parent)]) == 1
    assert not page.exists() and capsys.readouterr().err.count("\n") == 1
    assert main(["report", str(files["two"]), "-o", str(page), "--comparison", str(report.html.parent)]) == 0
    assert page.read_text(encoding="utf-8").count("<figure>") == 2 * len(report.data["pictures"])
