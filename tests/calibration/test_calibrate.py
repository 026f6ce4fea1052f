"""calibrate() and its command on the testbed: sharing, sweeps, resuming, bad input."""
from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from vqpack.vq_core.calibration import Calibration, kept
from vqpack.vq_core.calibration.run import calibrate
from vqpack.vq_core.errors import FormatError, Interrupted, PlanError, UnsupportedError, VQError
from vqpack.vq_core.progress import Progress

PREFIX = "model.diffusion_model."


@pytest.fixture
def again(testbed, captions, quick, tmp_path):
    """calibrate() as `small` was made, under the same name elsewhere; arguments replace."""
    def run(**options):
        prompts = options.pop("prompts", [captions(i) for i in range(4)])
        return calibrate(testbed, tmp_path / "small", prompts=prompts, **{**quick, **options})

    return run


def test_layers_with_one_input_share_a_gram(small):
    with Calibration(small.path) as found:
        shared = [{key.removeprefix(PREFIX) for key in keys} for keys in found.shared().values()]
        block = "input_blocks.3.1.transformer_blocks.0."
        assert {f"{block}attn1.to_{name}.weight" for name in "qkv"} in shared
        text = next(keys for keys in shared if f"{block}attn2.to_k.weight" in keys)
        assert text == {key.removeprefix(PREFIX) for key in found.layers
                        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
        assert {f"{block}attn2.to_q.weight"} in shared and not found.unreached()
        assert Counter(group.text for group in found.groups) == {True: 1, False: len(found.groups) - 1}
        assert {group.blocks for group in found.groups} == {1, 9}


def test_counts_are_what_was_asked_for(small):
    """Three calibration pictures and one held out, two steps, two halves; text once a picture."""
    with Calibration(small.path) as found:
        assert (found.count, found.held_out) == (4, 1)
        text = next(group for group in found.groups if group.text)
        assert (text.count, text.held_out_count) == (3 * 2 * 40, 1 * 2 * 40)
        first = found.groups[found.layers[f"{PREFIX}input_blocks.1.0.in_layers.2.weight"].group]
        assert (first.count, first.held_out_count) == (3 * 2 * 256, 2 * 256)          # 256 of 2 x 256 positions
        counts = found.interval_counts()
        assert not counts[found.groups.index(text)].any()
        assert all(row.sum() in (0, group.count + group.held_out_count) for row, group in zip(counts, found.groups))


def test_grams_are_means_over_the_recorded_calls(small, pipe, captions, quick):
    """Against the inputs of two layers, taken by hooks of the test's own while the pictures are drawn again."""
    from vqpack.vq_core import trajectory

    paths = {"down_blocks.1.attentions.0.proj_in": "input_blocks.3.1.proj_in.weight",
             "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k":
                 "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"}
    inputs = {path: [] for path in paths}
    for path, seen in inputs.items():
        pipe.unet.get_submodule(path).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
    with Calibration(small.path) as found:
        held = {1: False, 2: True}
        for index, held_out in held.items():
            for seen in inputs.values():
                seen.clear()
            trajectory.sample(pipe, [captions(index)], [index], 2, 3.0, (64, 64), decode=False)
            for path, key in paths.items():
                seen = inputs[path][:1] if path.endswith("to_k") else inputs[path]
                x = torch.cat([part.flatten(0, -2) for part in seen]).double()
                if held_out:               # the only one
                    gram = found.gram(PREFIX + key)
                    torch.testing.assert_close(gram.held_out[0].double(), x.t() @ x / len(x), rtol=1e-3,
                                               atol=1e-4 * float((x * x).mean()))


def test_several_sweeps_and_any_number_of_threads_give_the_same_file(small, again):
    with Calibration(small.path) as found:
        total = sum(8 * group.blocks * group.size ** 2 for group in found.groups)
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(2, before))
    try:
        result = again(memory=total // 2)
        assert torch.get_num_threads() == 3 - min(2, before)
    finally:
        torch.set_num_threads(before)
    assert any("sweeps" in note for note in result.notes)
    assert result.path.read_bytes() == small.path.read_bytes()
    assert [path.name for path in result.path.parent.iterdir()] == [result.path.name]


def test_it_asks_often_whether_to_stop(small_run):
    assert small_run[1] < 2.0              # of processor time; what is seen is less than half of that


def test_a_run_stopped_in_every_stage_gives_the_same_file(small, again, monkeypatch):
    monkeypatch.setattr(kept, "SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr(kept, "SNAPSHOT_COST", 0)

    def totals(stop=None) -> dict[str, float]:
        found = {}
        progress = Progress(lambda name, _, total, *__: found.__setitem__(name, total), interval=0.0)
        if stop:
            progress._should_stop = lambda: progress.stage == stop[0] and progress.done >= stop[1]
            with pytest.raises(Interrupted):
                again(progress=progress)
        else:
            assert again(progress=progress).path.read_bytes() == small.path.read_bytes()
        return found

    assert totals(("drawing", 1.5))["drawing"] == 4
    found = totals(("capturing", 2.6))
    assert (found["drawing"], found["capturing"]) == (3, 4)
    found = totals(("sensitivities", 0.0))
    assert (found["drawing"], found["capturing"]) == (1, 2)        # 1: nothing to draw
    assert "capturing" not in totals(("writing the file", 1.0))
    assert "sensitivities" not in totals()


def test_the_same_run_is_already_there(small, testbed, captions, quick):
    result = calibrate(testbed, small.path, prompts=[captions(i) for i in range(4)], **quick)
    assert result.already_there and result.path == small.path


def test_one_prompt_holds_out_another_seed_and_other_tokens(again, captions):
    result = again(prompts=[captions(0)], sensitivity=False, steps=1, timesteps=1)
    with Calibration(result.path) as found:
        text = next(group for group in found.groups if group.text)
        assert (found.count, found.held_out, text.count, text.held_out_count) == (2, 1, 40, 40)
        gram = found.gram(next(iter(found.layers)))
        assert gram.held_out_count and not torch.equal(gram.blocks, gram.held_out)
        assert found.sensitivity(next(iter(found.layers))) is None and found.noise_power is None


def test_window_takes_its_timesteps_only(again):
    result = again(window=(0, 400), sensitivity=False, prompts=["a", "on"])
    with Calibration(result.path) as found:
        counts = found.interval_counts().sum(0)
        assert counts[0] and not counts[1:].any()


def test_unguided_presets_have_one_half(again):
    result = again(preset="turbo", guidance=None, steps=1, timesteps=1, sensitivity=False, prompts=["a", "on"])
    with Calibration(result.path) as found:
        text = next(group for group in found.groups if group.text)
        assert text.count == 40 and found.settings["sampler"] == "euler" and found.settings["guidance"] == 1.0


def test_nan_steps_are_left_out_or_refused(again, monkeypatch):
    from vqpack.vq_core.calibration import calls

    answers = iter([True, False] + [True] * 6)
    monkeypatch.setattr(calls, "_is_finite", lambda output: next(answers, True))
    result = again(sensitivity=False)
    assert any(note.startswith("1 steps gave NaN") for note in result.notes)
    with Calibration(result.path) as found:
        assert found.facts["left_out"] == 1 and next(g for g in found.groups if not g.text).count == 5 * 256
    monkeypatch.setattr(calls, "_is_finite", lambda output: False)
    with pytest.raises(UnsupportedError, match="at every looked-at step"):
        again(seed=7)


def test_layers_never_reached_are_told(again, monkeypatch):
    from vqpack.vq_core.calibration import teacher

    find = teacher.find_groups
    monkeypatch.setattr(teacher, "find_groups", lambda *args: (find(*args)[0][1:], ["x"]))
    result = again(sensitivity=False, steps=1, timesteps=1)
    assert any("never reached" in note and "'x'" in note for note in result.notes)
    with Calibration(result.path) as found:
        assert found.unreached() == [next(iter(found.layers))] and found.gram(found.unreached()[0]) is None


def test_out_of_memory_keeps_what_was_drawn(again, monkeypatch, tmp_path):
    from vqpack.vq_core.calibration import capture

    def fail(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(capture, "Sums", fail)
    with pytest.raises(VQError, match="out of memory while capturing: what was captured is kept.*--memory"):
        again()
    assert len(list((tmp_path / "small.vqcal.parts").rglob("picture-*.npz"))) == 4
    assert not (tmp_path / "small.vqcal.safetensors").exists()


def test_bad_input_is_refused_in_a_sentence(again, testbed, tmp_path, quick):
    empty, unet = tmp_path / "empty.txt", testbed / "unet"
    empty.write_text("\n")
    for prompts in (empty, [], [" "]):
        with pytest.raises(FormatError, match="prompt"):
            again(prompts=prompts)
    with pytest.raises(UnsupportedError, match="holds no first text encoder"):
        calibrate(unet, tmp_path / "x", prompts=["a"], configs=testbed, **quick)
    with pytest.raises(PlanError, match="allow more memory"):
        again(memory=1000)
    with pytest.raises(PlanError, match="no step of this sampler lies in the window 0:0.5"):
        again(window=(0, 0.5))
    with pytest.raises(PlanError, match="is a folder"):
        calibrate(testbed, tmp_path, prompts=["a"], **quick)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".safetensors")]


def test_command_line(testbed, tmp_path, captions, capsys):
    from vqpack.vq_core.cli.main import main

    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{captions(0)}\n{' '.join(['red circle'] * 5000)}\n")
    command = ["calibrate", str(testbed), "--prompts", str(prompts), "--steps", "2", "--timesteps", "2", "--cfg", "3",
               "--size", "64x64", "--memory", "64M", "--device", "cpu", "--no-sensitivity", "-o", str(tmp_path / "cal")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "1 prompts are longer than the 40 tokens" in out and "coded layers share" in out and " sweeps " in out
    assert "cal.vqcal.safetensors" in out
    with Calibration(tmp_path / "cal.vqcal.safetensors") as found:
        assert found.count == 2 and captions(0) not in str(found.facts) and os.fspath(tmp_path) not in str(found.facts)
    assert main(command) == 0 and "already there" in capsys.readouterr().out
    assert main([*command[:2], "--prompts", str(tmp_path / "no.txt"), "-o", str(tmp_path / "cal")]) == 1
    assert "no.txt" in capsys.readouterr().err
    for wrong in (["--memory", "much"], ["--window", "5"], ["--preset", "sd"], ["--sampler", "x"]):
        with pytest.raises(SystemExit):
            main([*command, *wrong])


def test_command_knows_all_names():
    from vqpack.vq_core import trajectory
    from vqpack.vq_core.calibration.settings import PRESETS
    from vqpack.vq_core.cli import calibrate as command

    assert command.PRESETS == tuple(PRESETS)
    assert command.SAMPLERS == tuple(trajectory.SAMPLERS) and command.SCHEDULERS == tuple(trajectory.SCHEDULERS)
