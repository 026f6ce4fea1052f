"""The demo end to end at two rates and one prompt, and the numbers it prints."""
from __future__ import annotations

import math

import pytest
import torch
from vqpack.vq_core import demo
from vqpack.vq_core.errors import UnsupportedError


def test_demo_writes_a_picture_and_a_table(tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(demo, "STEPS", 4)
    monkeypatch.setattr(demo, "_window", lambda: 8)
    assert demo.run_demo(tmp_path / "a new folder", prompts=demo.PROMPTS[:1], rates=(4, 1)) == 0
    folder = tmp_path / "a new folder"
    assert sorted(path.name for path in folder.iterdir()) == ["demo.png", "testbed-1bit.safetensors",
                                                              "testbed-4bit.safetensors"]
    image = Image.open(folder / "demo.png")
    assert image.width > 3 * 128 and len(image.getcolors(1 << 20)) > 100
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" dB")]
    four, one = (float(line.split()[-4]) for line in lines)
    assert four > one + 3 and four > 20
    assert [line.split()[-2] for line in lines] == [f"{four:.1f}", f"{one:.1f}"]      # one prompt: median = worst
    bits = [float(line.split()[2]) for line in lines]
    assert 4 < bits[0] < 4.3 and 1 < bits[1] < 1.3


def test_psnr_is_ten_times_the_logarithm():
    reference = torch.tensor([0.0, 2.0, 1.0, 1.0])
    assert demo.latent_psnr(reference + 0.2, reference) == pytest.approx(20.0, abs=1e-4)
    assert demo.latent_psnr(reference, reference) == math.inf


def test_without_the_testbed_it_says_where_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "vqpack" / "vq_core" / "demo.py"))
    with pytest.raises(UnsupportedError, match=r"python install\.py demo"):
        demo.run_demo(tmp_path / "out")
