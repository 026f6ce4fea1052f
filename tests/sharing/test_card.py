"""card: a page made from the file alone, with the hashes that sites compute, the license, and no foreign markup."""
from __future__ import annotations

import hashlib
import json
import re
import struct

import pytest
from vqpack.vq_core.card import NAME, SHEET, write_card
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.errors import FormatError, VQError
from vqpack.vq_core.inspection import inspect_file
from vqpack.vq_core.provenance import LICENSE_KEY, LOST, file_hashes, license_note
from vqpack.vq_core.version import __version__

EVIL = "<img src=x onerror=alert(1)>\n# heading | [x](http://evil) `code` \u202e\x1b[2J"


def page(path, folder, **options) -> str:
    return write_card(path, folder, **options).read_text(encoding="utf-8")


def test_hashes_are_those_of_model_sites(shared):
    data = shared.read_bytes()
    behind = data[8 + struct.unpack_from("<Q", data)[0]:]
    hashes = file_hashes(shared)
    assert hashes.auto_v2 == hashlib.sha256(data).hexdigest()[:10]
    assert hashes.auto_v3 == hashlib.sha256(behind).hexdigest()[:12]
    assert inspect_file(shared)["modelspec"]["modelspec.hash_sha256"] == f"0x{hashes.data_sha256}"


def test_what_the_page_says(shared, tmp_path):
    text, info, hashes = page(shared, tmp_path), inspect_file(shared), file_hashes(shared)
    for wanted in (hashes.sha256, hashes.auto_v2, hashes.auto_v3, info["source"]["sha256"], "my model",
                   f"{info['bits']['unet']:.3f}", "base_model_relation: quantized", "CreativeML Open RAIL++-M",
                   f"weights quantized by vqpack {__version__}", "forbid re-uploading", "vqpack decompress",
                   "Load Checkpoint (VQ)", "| UNet, convolution |"):
        assert wanted in text, wanted
    assert "seems to forbid" not in text and "warning" not in text and SHEET not in text
    assert page(shared, tmp_path, overwrite=True) == text


def test_an_existing_page_is_kept(shared, tmp_path):
    (tmp_path / NAME).write_text("mine", encoding="utf-8")
    assert write_card(shared, tmp_path).name == "README-2.md"
    assert (tmp_path / NAME).read_text(encoding="utf-8") == "mine"
    assert write_card(shared, tmp_path / "page").name == "page.md"
    with pytest.raises(VQError, match="cannot write"):
        write_card(shared, tmp_path / "none" / "page.md")


@pytest.mark.parametrize(("text", "forbids"), [
    ("CC BY-NC-ND 4.0", True), ("No derivatives", True), ("no merges, no re-upload", True), ("NoDerivatives", True),
    ("You may not redistribute this model", True), ("Derivatives are not permitted", True),
    ("Sharing of merges is prohibited", True), ("CreativeML Open RAIL++-M", False), ("Apache-2.0", False),
    ("Fair AI Public License 1.0-SD", False), ("MIT: modify, merge and distribute freely", False), ("", False)])
def test_licenses_that_forbid_it_are_told(text, forbids):
    assert bool(license_note({LICENSE_KEY: text})) == forbids


def test_a_forbidding_license_is_said_and_nothing_is_blocked(edited, capsys):
    path = edited(lambda m: m.update({LICENSE_KEY: "CC BY-NC-ND 4.0"}))
    assert main(["card", str(path)]) == 0
    assert "note: the license seems to forbid" in capsys.readouterr().out
    text = (path.parent / NAME).read_text(encoding="utf-8")
    assert "**Here the license seems to forbid" in text and "CC BY-NC-ND 4.0" in text
    assert main(["inspect", str(path)]) == 0
    assert "seems to forbid" in capsys.readouterr().out


def test_quantizing_a_source_with_such_a_license_says_it(testbed, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    unet = load_file(testbed / "unet" / "diffusion_pytorch_model.safetensors")
    source = tmp_path / "source.safetensors"
    save_file(unet, source, {LICENSE_KEY: "no merges"})
    assert main(["quantize", str(source), "--method", "uniform", "--bits", "2", "-o", str(tmp_path / "out")]) == 0
    assert "note: the license seems to forbid" in capsys.readouterr().out


def test_lost_metadata_is_said(edited, tmp_path, capsys):
    path = edited(lambda m: m.clear())
    text = page(path, tmp_path)
    assert LOST in text and "made from | not known" in text and "states no license" in text
    assert "| UNet, convolution |" in text                       # the report is a tensor and still there
    assert main(["inspect", str(path)]) == 0
    assert LOST in capsys.readouterr().out


def test_a_newer_version_is_refused_with_both_numbers(edited, tmp_path):
    path = edited(lambda m: m.update({"vqpack.version": "2"}))
    with pytest.raises(FormatError, match="format version '2', this program reads version 1"):
        write_card(path, tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_a_hash_that_does_not_match_is_said(edited, tmp_path):
    path = edited(lambda m: m.update({"modelspec.hash_sha256": "0x" + "1" * 64}))
    assert "is not the hash of the data" in page(path, tmp_path)


@pytest.mark.parametrize("value", [EVIL, "1", '{"name": ["x"], "bytes": "many", "sha256": 5}', "[]"])
def test_foreign_text_stays_text(edited, tmp_path, value):
    hostile = {"name": EVIL, "bytes": 5, "sha256": EVIL}

    def change(metadata):
        metadata.update({LICENSE_KEY: EVIL, "vqpack.tool": EVIL, "vqpack.architecture": EVIL,
                         "vqpack.source": json.dumps(hostile) if value is EVIL else value})
    text = page(edited(change), tmp_path)
    assert "<img" not in text and "\x1b" not in text and "\u202e" not in text
    assert "[x](http" not in re.sub(r"`[^`\n]*`", "", text) and "\n# heading" not in text    # a code span is no link


def test_pictures_of_a_comparison(produced, secrets, shared, tmp_path):
    from PIL import Image

    _, prompts = secrets
    path = write_card(produced / "attached.safetensors", tmp_path, comparison=produced / "report" / "compare.html")
    text = path.read_text(encoding="utf-8")
    assert f"]({SHEET})" in text and "| Latent PSNR |" in text and not any(prompt in text for prompt in prompts)
    with Image.open(tmp_path / SHEET) as picture:
        assert picture.size == (64, 128) and not picture.info                # one prompt, two checkpoints of 64 pixels
    again = write_card(produced / "attached.safetensors", tmp_path, comparison=produced / "report")
    assert again.name == "README-2.md" and "](comparison-2.png)" in again.read_text(encoding="utf-8")
    with pytest.raises(FormatError, match="says nothing of"):
        write_card(shared, tmp_path, comparison=produced / "report" / "compare.json")
