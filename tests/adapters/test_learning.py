"""Runs that make adapters: a subject from pictures, several, the class kept, recovery, stopping, bad input."""
from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from vqpack.vq_core.adapters.attach import apply_adapters
from vqpack.vq_core.adapters.drawing import Prompted, Sampler
from vqpack.vq_core.adapters.file import load_adapter
from vqpack.vq_core.adapters.personalize import defaults, personalize
from vqpack.vq_core.adapters.settings import Scaling
from vqpack.vq_core.adapters.subject import DRAWS, JUDGED_DRAWS, Prior, SubjectLessons, read_subjects
from vqpack.vq_core.calibration.settings import preset_settings
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.errors import FormatError, Interrupted, PlanError, UnsupportedError, VQError
from vqpack.vq_core.pipeline import load_unet
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.tuning import loop as loops
from vqpack.vq_core.tuning.job import NothingGained
from vqpack.vq_core.tuning.run import tune
from vqpack.vq_core.tuning.settings import Tuning

QUICK = {"size": (64, 64), "device": "cpu", "steps": 3, "guidance": 3.0}
PROMPT = "a large red circle on a plain blue background"


def quick(**changes):
    given = {"steps": 4, "batch": 2, "together": 2, "warmup": 1, "checks": 2, "held_out_calls": 8, "rate": 2.0}
    return defaults(**given | changes)


@pytest.fixture()
def subject(w4, testbed, five, tmp_path):
    """subject(...) -> the result of a short run on them"""
    def run(output="made", images=five, tuning=None, folder=tmp_path, **more):
        arguments = {"configs": testbed, "tuning": tuning or quick(), "previews": [], **QUICK, **more}
        return personalize(w4, images, folder / output, **arguments)
    return run


@pytest.fixture(scope="module")
def learned(w4, testbed, five, tmp_path_factory):
    """(result, looks, notes) of one run that several tests read."""
    looks, notes, folder = [], [], tmp_path_factory.mktemp("learned")
    result = personalize(w4, five, folder / "made", configs=testbed, tuning=quick(), previews=[PROMPT],
                         show=looks.append, tell=notes.append, **QUICK)
    return result, looks, notes


def test_a_subject_is_learned_and_the_file_stays(w4, testbed, subject, called, learned):
    result, looks, notes = learned
    before = hashlib.sha256(w4.read_bytes()).hexdigest()
    adapter = load_adapter(result.path)
    assert result.path.name == "made.vqscales.safetensors" and adapter.experts == 2 and result.after < result.before
    assert sum("Learning takes at most" in note and "VAE and text encoders" in note for note in notes) == 1
    assert notes.index(next(n for n in notes if "Learning takes" in n)) == 0                # before anything else
    assert b"background" not in result.path.read_bytes()               # no caption
    assert adapter.facts["learned_from"] == "images" and adapter.facts["of"] == 4
    assert not list(result.path.parent.glob("*.tuning"))
    assert looks[0].now.shape == (1, 4, 16, 16) and torch.equal(looks[0].before, looks[0].now)
    assert not torch.equal(looks[-1].before, looks[-1].now) and looks[-1].history == result.history
    plain, unet = (load_unet(w4, torch.float32, decode="per_call", configs=testbed) for _ in range(2))
    apply_adapters(unet, w4, result.path, configs=testbed)
    with torch.no_grad():
        assert not torch.equal(called(unet, [500.0]), called(plain, [500.0]))
    again = subject(folder=result.path.parent)
    assert hashlib.sha256(w4.read_bytes()).hexdigest() == before
    assert again.already_there and again.path == result.path and again.steps == 4


def test_a_stopped_run_goes_on_to_the_same_bytes(subject, learned, tmp_path):
    whole, stages = learned[0], []
    listening = Progress(lambda stage, *_: stages.append(stage), lambda: stages.count("tuning") > 4, interval=0.0)
    with pytest.raises(Interrupted):
        subject("stopped", progress=listening)
    kept = tmp_path / "stopped.vqscales.tuning"
    assert [path.suffix for path in kept.iterdir() if path.is_file()] == [".npz"]
    assert not list(tmp_path.glob("stopped*.safetensors"))
    notes = []
    again = subject("stopped", tell=notes.append)
    assert any("Going on after step" in note for note in notes) and again.history == whole.history
    assert again.path.read_bytes() == whole.path.read_bytes() and not kept.exists()


def test_previews_are_drawn_as_diffusers_draws(w4, testbed):
    """Euler in our own words against diffusers' pipeline, whatever the prediction."""
    from vqpack.vq_core.pipeline import load_pipeline, quiet

    quiet()
    pipe = load_pipeline(w4, torch.float32, configs=testbed)
    pipe.set_progress_bar_config(disable=True)
    sampler = Sampler(pipe.scheduler, "x", 6, 3.0, (16, 16))
    ours = sampler.draw(pipe.unet, [Prompted.of(pipe, PROMPT, (64, 64))], [5], Progress())
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5))[None]
    sizes = {"original_size": (64, 64), "target_size": (64, 64)}
    start = noise * (1 + sampler.sigmas[0]**2).sqrt() / pipe.scheduler.init_noise_sigma
    theirs = pipe(PROMPT, height=64, width=64, num_inference_steps=6, guidance_scale=3.0, latents=start,
                  output_type="latent", **sizes).images
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-3


def test_several_subjects_and_the_class_share_the_lessons(pictures, testbed):
    settings = preset_settings("base", (64, 64))
    first, second = pictures(6, "a"), pictures(3, "b", captions=False, first=9)
    found = read_subjects([(first, None), (second, "a small zwx")], Prior("a star", 16, 0.5), settings, 16, Progress())
    own = [image for image in found.images if image is not None]
    assert [p.prompt for p in found.pictures[6:12]] == ["a small zwx"] * 6 and len(own) == 6 + 2 * 3
    held = [p.index for p in found.pictures if p.held_out]
    assert held[0] == 3 and held[1:4] == [9, 10, 11] and len(held) == 4 + 2        # one of six, noise, of the class
    assert len({p.seed for p in found.pictures}) == len(found.pictures)
    assert len(found.notes) == 1 and "'b' holds 3 pictures" in found.notes[0]
    lessons = SubjectLessons(None, found, None, None, Progress())
    counts = {p.index: lessons.draws(p) for p in found.pictures}
    of_class = sum(counts[p.index] for p in found.pictures if not p.held_out and found.images[p.index] is None)
    assert counts[0] == DRAWS and counts[3] == JUDGED_DRAWS
    assert of_class == pytest.approx(0.5 * DRAWS * 8, rel=0.02)


def test_the_class_is_drawn_by_the_model_as_it_is(subject, w4, testbed):
    notes = []
    result = subject(prior=Prior(PROMPT, 2), tell=notes.append)
    assert load_adapter(result.path).facts["prior"]
    assert "held-out pictures and noise judge" in " ".join(notes)


@pytest.mark.parametrize(("count", "words"), [(1, "holds 1 picture, too few"), (2, "3 to 10 are better"),
                                              (3, "too few for one that only judges")])
def test_few_pictures_are_told(pictures, count, words):
    found = read_subjects([(pictures(count), None)], None, preset_settings("base", (64, 64)), 16, Progress())
    assert words in found.notes[0] and len(found.pictures) == 2 * count


def test_odd_files_among_good_ones(subject, pictures, scenes, testbed):
    folder, notes = pictures(4, "odd"), []
    pixels, caption, _ = scenes.scene(6, 20)
    pixels = np.asarray(pixels)
    Image.fromarray(pixels[:41, :63]).convert("LA").save(folder / "gray.png")
    Image.fromarray(np.tile(pixels, (1, 3, 1))).convert("P").save(folder / "wide.gif")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:300])
    (folder / "notes.jpeg").write_text("no picture")
    result = subject("odd", images=[(folder, caption)], tell=notes.append, source=testbed,
                     tuning=quick(rate=1.0))
    assert "2 files could not be read as pictures and were left out: broken.png, notes.jpeg." in notes
    assert load_adapter(result.path).facts["pictures"] == 6


def test_a_diverging_loss_keeps_the_best(subject, monkeypatch, tmp_path):
    notes = []
    with pytest.raises(NothingGained, match="nothing was written"):
        subject("wild", tuning=quick(steps=6, rate=900.0, checks=6), tell=notes.append)
    assert any("times the error at the start" in note or "not finite" in note for note in notes)
    assert not list(tmp_path.glob("wild*.safetensors"))
    asked, calls = loops.Loop._ask, []

    def ask(self, batch):
        calls.append(torch.is_grad_enabled())
        return asked(self, batch) * (float("nan") if calls.count(True) > 3 else 1.0)
    monkeypatch.setattr(loops.Loop, "_ask", ask)
    kept = subject("nan", tuning=quick(steps=8, checks=8), tell=notes.append)
    assert "not finite at step 4" in notes[-1] and load_adapter(kept.path).facts["of"] == 3 and kept.after < kept.before


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"preset": "lightning"}, PlanError, "in few steps"),
    ({"tuning": quick(scaling=Scaling(0))}, PlanError, "--experts"),
    ({"tuning": quick(scaling=Scaling(2, "in"))}, PlanError, "--scales"),
    ({"tuning": quick(flips=0.1)}, PlanError, "codes flip"), ({"prior": Prior(" ")}, PlanError, "--prior must say"),
    ({"prior": Prior("a", 1)}, PlanError, "--prior-count"), ({"size": (60, 60)}, PlanError, "--size")])
def test_one_sentence_for_bad_settings(subject, change, error, words):
    with pytest.raises(error, match=words) as said:
        subject("bad", **change)
    assert "\n" not in str(said.value)


def test_one_sentence_for_bad_files(subject, mixed, testbed, pictures, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for images, words in ((empty, "holds 0 pictures"), (tmp_path / "none", "must be a folder"),
                          (pictures(2, "bare", captions=False), "nothing says what '0.png' shows")):
        with pytest.raises(FormatError, match=words):
            subject("bad", images=images)
    with pytest.raises(UnsupportedError, match="none of the checkpoints holds a"):
        personalize(mixed, pictures(4, "more"), tmp_path / "x", configs=testbed, tuning=quick(), **QUICK)
    with pytest.raises(UnsupportedError, match="ordinary checkpoint"):
        personalize(testbed, tmp_path, tmp_path / "x", tuning=quick(), **QUICK)
    with pytest.raises(VQError, match="does not exist"):
        subject("gone/x")


def test_recovery_is_the_same_adapter_on_the_teachers_loss(mixed, testbed, scenes, tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(scenes.scene(6, i)[1] for i in range(4)))
    code = main(["tune", str(mixed), "--teacher", str(testbed), "--prompts", str(captions), "--adapter", "--steps", "4",
                 "--experts", "1", "--rate", "2", "--sampler-steps", "3", "--cfg", "3", "--size", "64x64", "-o",
                 str(tmp_path / "fixed"), "--json", str(tmp_path / "r.json"), "--device", "cpu"])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and found["after"] < found["before"] and "fixed.vqscales.safetensors" in said
    adapter = load_adapter(tmp_path / "fixed.vqscales.safetensors")
    assert adapter.experts == 1 and adapter.facts["learned_from"] == "teacher"
    assert main(["merge", str(mixed), str(tmp_path / "fixed.vqscales.safetensors"), "-o", str(tmp_path)]) == 0
    assert (tmp_path / "mixed-fixed.safetensors").is_file()
    with pytest.raises(PlanError, match="an adapter holds scales and nothing else"):
        tune(mixed, testbed, tmp_path / "x", tuning=Tuning(steps=1, flips=0.1, scaling=Scaling(), trained=replace(
            Tuning().trained, codes=True)))


def test_the_command_learns_two_subjects_and_draws_them(w4, testbed, pictures, tmp_path, capsys):
    first, second = pictures(4, "a"), pictures(2, "b", captions=False, first=7)
    code = main(["personalize", str(w4), "--images", str(first), "--prompt", PROMPT, "--images", str(second),
                 "--prompt", "a small zwx on a plain red background", "--steps", "2", "--batch", "2", "--size", "64x64",
                 "--sampler-steps", "2", "--rate", "2", "--configs", str(testbed), "-o", str(tmp_path / "two"),
                 "--device", "cpu"])
    said = capsys.readouterr().out
    assert code == 0 and "two.vqscales.safetensors" in said and "'b' holds 2 pictures" in said
    drawn = sorted(path.name for path in (tmp_path / "two.vqscales.previews").iterdir())
    assert drawn[:2] == ["00000-1.png", "00000-2.png"] and "before-1.png" in drawn and "00002-2.png" in drawn
    assert Image.open(tmp_path / "two.vqscales.previews" / "00002-2.png").size == (64, 64)
    assert main(["personalize", str(w4), "--images", str(first), "--images", str(second), "--prompt", "x"]) == 1
    assert "each --images needs its --prompt" in capsys.readouterr().err
