"""tune() on the testbed: the held-out error falls, codes stay, the file is an ordinary one; stopping and bad input."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import Interrupted, UnsupportedError, VQError
from vqpack.vq_core.inspection import file_bits, inspect_file
from vqpack.vq_core.layout import Kind
from vqpack.vq_core.pipeline import load_unet
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.tuning import loop as loops
from vqpack.vq_core.tuning import run
from vqpack.vq_core.tuning.masters import Trained
from vqpack.vq_core.tuning.student import Student
from vqpack.vq_core.verify import verify_file
from vqpack.vq_core.weight import section_views


def test_held_out_error_falls_and_codes_stay(coarse, tuned):
    assert tuned.after <= 0.9 * tuned.before and tuned.history[-1][0] == tuned.steps == 6
    with Reader(coarse) as before, Reader(tuned.path) as after:
        changed = 0
        for key in before.coded_keys():
            old, new = before.weight(key), after.weight(key)
            for index in range(len(old.layout.parts)):
                was, now = (section_views(w.layout, index, w.blob) for w in (old, new))
                assert torch.equal(was[Kind.codes], now[Kind.codes])
                changed += not torch.equal(was[Kind.row_scales], now[Kind.row_scales])
        assert changed > 100
        assert [key for key in after.keys() if key.startswith("vq.tables.")] != [
            key for key in before.keys() if key.startswith("vq.tables.")]              # the trained table, alone
        assert after.file_bytes - before.file_bytes < 2000


def test_the_file_is_an_ordinary_one(coarse, tuned):
    assert verify_file(tuned.path) == []
    said = inspect_file(tuned.path)
    assert said["settings"]["tuning"]["trained"]["scales"] > 10000 and said["settings"]["tuning"]["steps"] > 0
    assert said["settings"]["tuning"]["after"] == pytest.approx(tuned.after, rel=1e-4)
    assert said["source"] == inspect_file(coarse)["source"] and len(said["layers"]) == 117
    with Reader(tuned.path) as reader:
        assert file_bits(reader) == said["bits"] == tuned.bits
    errors = [layer["relative_error"] for layer in said["layers"]]
    assert 0.03 < min(errors) and max(errors) < 0.5 and errors != [x["relative_error"] for x in
                                                                  inspect_file(coarse)["layers"]]


def test_what_is_said_is_what_the_file_does(coarse, tuned, testbed, lessons):
    """The error of an ordinary UNet loaded from the file, on the held-out calls drawn again."""
    for path, stated in ((coarse, tuned.before), (tuned.path, tuned.after)):
        unet, found = load_unet(path, configs=testbed), []
        for call in lessons.held_out:
            batch = lessons.batch([call])
            with torch.no_grad():
                found.append(float((batch.ask(unet) - batch.answers).square().mean()) / lessons.power())
        assert sum(found) / len(found) == pytest.approx(stated, rel=2e-3)


def test_a_stopped_run_goes_on_to_the_same_bytes(coarse, tuned, testbed, quick, tmp_path):
    stages = []

    def stop() -> bool:
        return stages.count("tuning") > 4              # while it looks at the held-out pictures after the third step

    listening = Progress(lambda stage, *_: stages.append(stage), stop, interval=0.0)
    with pytest.raises(Interrupted):
        run.tune(coarse, testbed, tmp_path / "tuned", progress=listening, **quick)
    kept = [path.suffix for path in (tmp_path / "tuned.tuning").iterdir() if path.is_file()]
    assert not (tmp_path / "tuned.safetensors").exists() and kept == [".npz"]
    notes, looks = [], []
    again = run.tune(coarse, testbed, tmp_path / "tuned", tell=notes.append, show=looks.append, **quick)
    assert any("Going on after step 3" in note for note in notes) and again.history == tuned.history
    assert again.path.read_bytes() == tuned.path.read_bytes()      # looking on changes nothing
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]
    assert looks[-1].history == again.history and looks[-1].steps == 6
    pictures = list(looks[-1].pictures.values())       # by the original, before, now
    assert len(pictures) == 3 and not any(torch.equal(a, b) for a, b in zip(pictures, pictures[1:]))


def test_a_finished_run_is_found_again(coarse, tuned, testbed, quick):
    made = tuned.path.stat().st_mtime_ns
    again = run.tune(coarse, testbed, tuned.path, **quick)
    assert again.already_there and again.path == tuned.path and again.steps == 6 and not again.history
    assert again.gain == pytest.approx(tuned.gain, abs=1e-3) and tuned.path.stat().st_mtime_ns == made
    assert not list(tuned.path.parent.glob("*.tuning"))


def test_a_diverging_run_keeps_the_best(coarse, testbed, quick, lessons, tmp_path, monkeypatch):
    wild = replace(quick["tuning"], rate=300.0, steps=4, checks=4)
    student = Student(coarse, Trained(), "cpu", testbed)
    first = student.values()
    loop = loops.Loop(student, lessons, wild, 3.0, Progress(), tmp_path / "state.npz")
    course = loop.run()
    assert "times the error at the start" in course.stopped and course.step < 4
    assert all(torch.equal(first[name], value) for name, value in student.values().items())
    # the same rates for a student that is said to need a millionth of them
    monkeypatch.setattr(loops, "gentler", lambda error: 1e-6)
    loop = loops.Loop(student, lessons, wild, 3.0, Progress(), tmp_path / "gentle.npz")
    assert not loop.run().stopped and loop.course.rate == 1e-6
    # a loss that is not a number
    monkeypatch.setattr(loops.Loop, "_ask", lambda self, batch: batch.ask(self.student.unet) * float("nan"))
    loop = loops.Loop(student, lessons, quick["tuning"], 3.0, Progress(), tmp_path / "other.npz")
    loop.course.history.append((0, 1.0))
    assert "not finite" in loop.run().stopped


def test_nothing_is_written_where_nothing_got_better(coarse, testbed, quick, tmp_path):
    with pytest.raises(VQError, match="did not lower the error"):
        run.tune(coarse, testbed, tmp_path / "x", **quick | {"prompts": quick["prompts"][:2], "steps": 1, "guidance": 1,
                                                             "tuning": replace(quick["tuning"], steps=1, rate=300.0)})
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(("arguments", "said"), [
    (["--steps", "0"], "--steps must be 1"), (["--minutes", "nan"], "--minutes must be"),
    (["--train", "scales,codes"], "got 'codes'"), (["--finish"], "no stopped run"),
    (["--steps", "1", "-o", "none/x"], "does not exist"), (["--steps", "1", "--count", "0"], "--count must be"),
    (["--steps", "1", "--sampler-steps", "0"], "--sampler-steps must be"),
    (["--steps", "1", "--size", "64x65"], "multiples")])
def test_bad_input_is_one_sentence(coarse, testbed, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", str(coarse), "--teacher", str(testbed), "-o", "x", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not list(tmp_path.iterdir())


def test_teachers_that_cannot_teach_are_refused(coarse, testbed, quick, tmp_path, monkeypatch):
    with pytest.raises(UnsupportedError, match="ordinary checkpoint"):
        run.tune(testbed, testbed, tmp_path / "x", **quick)
    seen = run.open_checkpoint(testbed, "A")
    other = replace(seen, architecture=replace(seen.architecture, prediction="v"))
    monkeypatch.setattr(run, "open_checkpoint", lambda path, letter: other if letter == "A" else seen_file)
    seen_file = replace(seen, kind="vqpack file")
    with pytest.raises(UnsupportedError, match="predicts 'v'"):
        run.tune(coarse, testbed, tmp_path / "x", **quick)
    smaller = {key: shape for key, shape in seen.shapes.items() if "output_blocks.5" not in key}
    other = replace(seen, shapes=smaller)
    with pytest.raises(UnsupportedError, match="must be the checkpoint the file was made from"):
        run.tune(coarse, testbed, tmp_path / "x", **quick)
    assert not list(tmp_path.iterdir())


def test_the_command(coarse, testbed, captions, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("\n".join(captions[:2]))
    code = main(["tune", str(coarse), "--teacher", str(testbed), "--prompts", str(tmp_path / "p.txt"), "--steps", "2",
                 "--sampler-steps", "2", "--cfg", "1", "--size", "64x64", "--train", "scales,norms", "--rank",
                 "2", "-o", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")])
    said = capsys.readouterr().out
    assert code == 0 and "Learning takes at most" in said and "held-out error" in said
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["after"] < result["before"] and verify_file(tmp_path / "out.safetensors") == []
    with Reader(tmp_path / "out.safetensors") as reader:
        assert {reader.layout(key).rank for key in reader.coded_keys()} == {2} and file_bits(reader)["coded"] > 2.4
