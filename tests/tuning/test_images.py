"""Learning from pictures: what is read and named, buckets, targets of the loss, a run on a folder with bad files."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from vqpack.vq_core.calibration.settings import pictures, preset_settings
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.errors import FormatError, PlanError, UnsupportedError
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.tuning import run
from vqpack.vq_core.tuning.image_lessons import DRAWS, EMPTY_EVERY, ImageLessons, mixed
from vqpack.vq_core.tuning.images import bucket, fitted, pixels, read_folder
from vqpack.vq_core.tuning.lessons import ADDED, TEXT


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture()
def folder(tmp_path):
    """Five pictures of four modes, two that are none."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    Pillow.fromarray(noise(64, 64)).save(root / "a_red-ring.png")
    Pillow.fromarray(noise(48, 96)).save(root / "b.jpg")
    Pillow.fromarray(noise(64, 64, 4)).save(root / "c.png")
    Pillow.fromarray(noise(70, 61)[..., 0]).save(root / "d.bmp")
    Pillow.fromarray(noise(64, 64)).convert("P").save(root / "more" / "e.GIF")
    (root / "b.txt").write_text("\ufeffa large  blue star\non a plain white background", encoding="utf-8")
    (root / "c.txt").write_text(" ")
    (root / "broken.png").write_bytes((root / "a_red-ring.png").read_bytes()[:300])
    (root / "notes.jpeg").write_text("no picture")
    return root


def test_good_files_are_read_and_bad_ones_named(folder):
    found, notes = read_folder(folder, 64 * 64, 16, Progress())
    assert [image.name for image in found] == ["a_red-ring.png", "b.jpg", "c.png", "d.bmp", "more/e.GIF"]
    assert [image.caption for image in found] == ["a red ring", "a large blue star on a plain white background", "c",
                                                  "d", "e"]
    assert notes == ["2 files could not be read as pictures and were left out: broken.png, notes.jpeg."]
    assert found[1].bucket == (48, 96) and found[3].bucket == (64, 64) and found[3].size == (70, 61)
    for image in found:
        picture, (top, left) = fitted(image)
        assert tuple(picture.shape[1:]) == image.bucket and float(picture.abs().max()) <= 1
        assert top >= 0 and left >= 0
    assert fitted(found[3])[1] == (4, 0)                               # 70 x 61 -> 73 x 64, cut in the middle
    for name in ("a_red-ring.png", "b.jpg", "c.png", "d.bmp"):
        (folder / name).unlink()
    with pytest.raises(FormatError, match="holds 1 pictures that can be read"):
        read_folder(folder, 64 * 64, 16, Progress())
    with pytest.raises(FormatError, match="must be a folder"):
        read_folder(folder / "b.txt", 64 * 64, 16, Progress())


def test_every_mode_becomes_upright_rgb(tmp_path):
    rgba = noise(8, 9, 4)
    rgba[..., 3] = np.where(np.arange(9) < 4, 0, 255)
    Pillow.fromarray(rgba).save(tmp_path / "rgba.png")
    seen = pixels(tmp_path / "rgba.png")
    assert (seen[:, :4] == 255).all() and (seen[:, 4:] == rgba[:, 4:, :3]).all()       # transparent is white
    gray = noise(8, 9, 1)[..., 0]
    Pillow.fromarray(gray).save(tmp_path / "gray.png")
    assert (pixels(tmp_path / "gray.png") == gray[..., None]).all()
    Pillow.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (pixels(tmp_path / "deep.png") == gray[..., None]).all()
    palette = Pillow.fromarray(noise(8, 9)).convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((2, 3)))
    assert (pixels(tmp_path / "p.png")[3, 2] == 255).all()
    rgb = noise(8, 9)
    exif = Pillow.Exif()
    exif[0x0112] = 6                                                   # turned by the camera
    Pillow.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert (pixels(tmp_path / "turned.png") == np.rot90(rgb, -1)).all()
    Pillow.fromarray(noise(8, 9)).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert pixels(tmp_path / "cmyk.tif").shape == (8, 9, 3)


def test_buckets_keep_area_and_shape():
    for height, width in ((1000, 1000), (3000, 2000), (600, 800), (100, 5000), (5000, 100)):
        tall, wide = bucket(height, width, 1024 * 1024, 32)
        assert tall % 32 == wide % 32 == 0 and 0.9 < tall * wide / 1024**2 < 1.1
        asked = min(2.0, max(0.5, height / width))
        assert tall / wide == pytest.approx(asked, rel=0.06)


def test_targets_of_the_loss():
    clean, random = torch.randn(4, 6, 6), torch.randn(4, 6, 6)
    alpha = torch.tensor(0.36)
    seen, target = mixed(clean, random, alpha, velocity=False)
    assert torch.equal(target, random)
    torch.testing.assert_close(seen, 0.6 * clean + 0.8 * random)
    same, velocity = mixed(clean, random, alpha, velocity=True)
    torch.testing.assert_close(velocity, 0.6 * random - 0.8 * clean)
    # what diffusers' schedulers make of the answer is the clean picture
    torch.testing.assert_close(0.6 * same - 0.8 * velocity, clean)
    torch.testing.assert_close((seen - 0.8 * target) / 0.6, clean)


class Scheduler:
    """What a noise schedule is asked for."""

    def __init__(self, kind):
        self.config, self.alphas_cumprod = {"prediction_type": kind}, torch.linspace(0.999, 0.001, 1000)


@pytest.fixture()
def toy(tmp_path):
    """Three encoded pictures of two buckets, without any model."""
    settings = preset_settings("base", (64, 64), held_out_share=0.2)
    lessons = ImageLessons(tmp_path, pictures(("a", "b", "c"), settings), [None] * 3)
    for index in range(3):
        width = 16 if index == 1 else 12
        values = {"latents": torch.randn(4, 12, width), "text": torch.ones(5, 7), "pooled": torch.ones(3),
                  "empty_text": torch.zeros(5, 7), "empty_pooled": torch.zeros(3), "time_ids": torch.arange(6.0)}
        lessons._save(index, values)
    return lessons


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_draws_are_the_same_again_and_cover_all_levels(toy, kind):
    toy.schedule(Scheduler(kind), "toy")
    toy.sort_out("toy")
    assert not toy.missing() and len(toy.train) == 2 * DRAWS and len(toy.held_out) == 4
    batches = list(toy.batches(toy.train, 8))
    assert sum(len(batch.levels) for batch in batches) == 2 * DRAWS
    again = list(toy.batches(toy.train, 8))
    assert all(torch.equal(a.samples, b.samples) and torch.equal(a.answers, b.answers) for a, b in zip(batches, again))
    levels = torch.cat([batch.levels for batch in batches])
    assert torch.histc(levels, DRAWS, 0, 1000).min() >= 1
    empty = torch.cat([batch.fixed[TEXT][:, 0, 0] == 0 for batch in batches])
    assert int(empty.sum()) == 2 * (DRAWS // EMPTY_EVERY)
    batch = batches[0]
    assert batch.answers.shape[1] == 1 and batch.fixed[f"{ADDED}time_ids"].shape == (8, 6)
    alpha = toy.alphas[batch.timesteps].view(-1, 1, 1, 1)
    said = batch.answers[:, 0]
    clean = alpha.sqrt() * batch.samples - (1 - alpha).sqrt() * said if kind == "v_prediction" else \
        (batch.samples - (1 - alpha).sqrt() * said) / alpha.sqrt()
    kept = torch.stack([toy._get(index)["latents"] for index, _ in toy.train[:8]])
    torch.testing.assert_close(clean, kept, rtol=1e-2, atol=1e-2)
    assert toy.power() == pytest.approx(1.0, rel=0.25)


def test_schedules_of_another_kind_are_refused(toy):
    for scheduler in (Scheduler("sample"), type("EDM", (), {"config": {}})()):
        with pytest.raises(UnsupportedError, match="schedule of its own kind"):
            toy.schedule(scheduler, "toy")


def scenes_in(repository, root, count=5):
    """Pictures the testbed can draw."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("testbed_scenes", repository / "testbed" / "scenes.py")
    scenes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenes)
    root.mkdir()
    for index in range(count):
        picture, caption, _ = scenes.scene(6, index)
        Pillow.fromarray(np.asarray(picture)).save(root / f"{index}.png")
        (root / f"{index}.txt").write_text(caption)
    (root / "bad.png").write_text("none")
    return root


def test_the_command_learns_from_pictures(coarse, testbed, repository, tmp_path, capsys):
    root = scenes_in(repository, tmp_path / "scenes")
    code = main(["tune", str(coarse), "--teacher", str(testbed), "--images", str(root), "--steps", "4", "--rate", "5",
                 "-o", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")])
    said = capsys.readouterr().out
    assert code == 0 and "1 file could not be read as pictures and was left out: bad.png." in said
    assert "of other pictures judge" in said
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["after"] < result["before"] < 2
    assert [path.name for path in tmp_path.glob("out*")] == ["out.safetensors"]


@pytest.mark.parametrize(("changes", "said"), [
    ({"preset": "lcm"}, "draw in few steps"), ({"prompts": ["x"]}, "its own captions"), ({"count": 2}, "--count"),
    ({"loss": "guided"}, "--loss and --trajectory"), ({"trajectory": "mixed"}, "--loss and --trajectory")])
def test_what_does_not_go_with_pictures_is_one_sentence(coarse, testbed, quick, tmp_path, changes, said):
    kept = {name: value for name, value in quick.items() if name not in ("prompts", "tuning", "steps", "guidance")}
    own = {name: changes[name] for name in ("loss", "trajectory") if name in changes}
    given = {name: value for name, value in changes.items() if name not in own}
    with pytest.raises(PlanError, match=said):
        run.tune(coarse, testbed, tmp_path / "x", images=tmp_path, tuning=replace(quick["tuning"], **own),
                 **kept, **given)
