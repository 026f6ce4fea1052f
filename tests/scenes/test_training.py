"""train_testbed.py: every preset runs from nothing to a pipeline in two steps, and goes on after a pause."""
from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture
def run(tmp_path, monkeypatch):
    """train_testbed.py with arguments, its cache of drawn scenes kept out of the repository."""
    from scenes import train_testbed

    monkeypatch.setattr(train_testbed, "ROOT", tmp_path)
    return lambda preset, out, *more: train_testbed.main(["--preset", preset, "--device", "cpu", "-o", str(out), *more])


def check(out, preset: str, millions: tuple[float, float]) -> None:
    """What a finished run leaves: it has drawn its samples with the stored pipeline, so that loads again."""
    report = json.loads((out / "training.json").read_text())
    assert report["preset"] == preset and report["smoke"]
    assert max(report["files"].values()) <= 16 * 2**20 and sum(report["files"].values()) < 64e6
    assert millions[0] < report["denoiser_parameters"] / 1e6 < millions[1]
    assert 0 <= report["alignment"]["match"] <= 1
    assert (out / "losses.png").stat().st_size and (out / "samples.png").stat().st_size


@pytest.mark.parametrize("preset, millions", [("wide", (25, 30)), ("lcm", (6.9, 7.1)), ("dit", (25, 30))])
def test_two_steps_make_a_pipeline(run, testbed, tmp_path, preset, millions):
    assert run(preset, tmp_path, "--smoke", "--teacher", str(testbed)) == 0
    check(tmp_path, preset, millions)


def test_a_paused_run_from_nothing_ends_like_an_unbroken_one(run, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("testbed", whole, "--smoke") == 0
    check(whole, "testbed", (6.9, 7.1))
    for stage in ("vae", "denoiser"):                                  # each pauses after its first step of two
        assert run("testbed", broken, "--smoke", "--minutes", "0") == 3
        assert f"{stage}: paused after step 1 of 2" in capsys.readouterr().out
        assert not (broken / "pipe").exists()
    assert run("testbed", broken, "--smoke") == 0
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = (load_file(next((out / "pipe" / part).glob("*.safetensors"))) for out in (whole, broken))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_other_settings_is_refused(run, tmp_path, capsys):
    assert run("testbed", tmp_path, "--smoke", "--minutes", "0") == 3
    assert run("testbed", tmp_path, "--smoke", "--seed", "1") == 1
    assert "or another folder" in capsys.readouterr().err


def test_a_student_needs_a_teacher(run, tmp_path, capsys):
    assert run("lcm", tmp_path, "--smoke") == 2
    assert "--teacher" in capsys.readouterr().err
