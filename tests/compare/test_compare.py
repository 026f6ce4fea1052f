"""compare() end to end on the testbed: numbers that must hold, resuming, and what it refuses."""
from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from vqpack.vq_core.cli.main import build_parser, main
from vqpack.vq_core.compare import draw, run
from vqpack.vq_core.compare.models import check_together, open_checkpoint
from vqpack.vq_core.compare.run import compare
from vqpack.vq_core.errors import Interrupted, PlanError, UnsupportedError, VQError
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.source_reader import SourceReader, open_reader


def test_numbers_rank_what_was_taken_away(report):
    a, eight, two, plain = report.data["checkpoints"]
    assert a["metrics"] == {} and a["bits"]["unet"] == 16 and a["kind"] == "diffusers folder"
    assert [c["kind"] for c in (eight, two, plain)] == ["vqpack file", "vqpack file", "checkpoint file"]
    for name in ("latent_psnr", "image_psnr", "ssim", "noise_snr"):
        assert eight["metrics"][name]["value"] > two["metrics"][name]["value"], name
        assert eight["metrics"][name]["count"] == 2
    assert 0 < eight["weight_error"]["unet"] < 1e-3 < two["weight_error"]["unet"] < 1
    assert two["weight_error"]["te1"] is None                                     # it holds no text encoders
    assert "'two.safetensors' holds no first text encoder: that of 'pipe' is used." in report.data["notes"]
    assert not (report.html.parent / "compare.parts").exists()


def test_a_decompressed_file_draws_what_its_compressed_file_draws(report):
    _, eight, _, plain = report.data["checkpoints"]
    assert plain["metrics"]["latent_psnr"]["value"] == pytest.approx(eight["metrics"]["latent_psnr"]["value"], abs=0.5)
    assert plain["weight_error"]["unet"] == pytest.approx(eight["weight_error"]["unet"], rel=0.01)


def test_the_same_checkpoint_is_exact(testbed, tmp_path, quick):
    found = compare([testbed, testbed], tmp_path, **quick).data["checkpoints"][1]
    assert found["metrics"]["latent_psnr"]["value"] == math.inf and found["metrics"]["ssim"]["value"] == 1
    assert found["weight_error"]["unet"] == 0 and all(value == math.inf for value in found["steps"])
    stored = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert stored["checkpoints"][1]["metrics"]["latent_psnr"]["value"] == "inf"


def test_a_stopped_run_goes_on_where_it_stopped(testbed, files, tmp_path, quick, monkeypatch):
    calls, real = [], draw.trajectory.sample

    def sample(*args, **kwargs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args[1])
        return real(*args, **kwargs)

    monkeypatch.setattr(draw.trajectory, "sample", sample)
    paths = [testbed, files["eight"]]
    with pytest.raises(KeyboardInterrupt):
        compare(paths, tmp_path, **quick)
    assert not list(tmp_path.glob("*.html")) and len(list(tmp_path.rglob("*.npz"))) == 3
    damaged = next(tmp_path.rglob("B-0000-000.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    monkeypatch.setattr(draw.trajectory, "sample", lambda *a, **k: calls.append(a[1]) or real(*a, **k))
    done = compare(paths, tmp_path, **quick)
    assert len(calls) == 3 + 2                                                    # the damaged and the missing one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json"]
    calls.clear()
    again = compare(paths, tmp_path, **quick)
    assert again.already_there and again.html == done.html and calls == []
    other = compare(paths, tmp_path, count=1, steps=2)
    assert other.html.name == "compare-2.html" and not other.already_there
    assert compare(paths, tmp_path, count=1, steps=2).html == other.html


def test_stopping_between_pictures(testbed, files, tmp_path, quick):
    progress = Progress(should_stop=lambda: progress.stage == "drawing" and progress.done > 1.1)
    with pytest.raises(Interrupted):
        compare([testbed, files["eight"]], tmp_path, progress=progress, **quick)
    assert list(tmp_path.rglob("A-0000-000.npz"))


def test_a_second_run_in_the_same_folder_is_refused(testbed, files, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(run, "open_locked", lambda path: None)
    with pytest.raises(VQError, match="another run"):
        compare([testbed, files["eight"]], tmp_path, **quick)


def test_files_without_a_folder_beside_them_need_configs(testbed, files, tmp_path):
    found = compare([files["eight"], files["plain"]], tmp_path, count=1, steps=2, configs=testbed)
    assert found.data["checkpoints"][1]["metrics"]["latent_psnr"]["value"] > 40
    with pytest.raises(PlanError, match="--configs"):
        compare([files["eight"], files["plain"]], tmp_path, configs=tmp_path / "none")


def test_no_checkpoint_with_text_encoders(files):
    with pytest.raises(UnsupportedError, match="none of the checkpoints holds a first text encoder"):
        check_together([open_checkpoint(files["two"], letter) for letter in "AB"])


def test_other_architectures_are_refused(testbed, files, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = {key: value for key, value in load_file(files["plain"]).items() if ".output_blocks.0.1." not in key}
    save_file(tensors, tmp_path / "pruned.safetensors")
    with pytest.raises(UnsupportedError, match="'pruned.safetensors' is sdxl-like .* 'pipe' is sdxl-like") as error:
        compare([testbed, tmp_path / "pruned.safetensors"], tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options, words", [
    ({"size": (60, 64)}, "--size"), ({"size": (64, 1 << 14)}, "--size"), ({"steps": 0}, "--steps"),
    ({"seeds": 0}, "--seeds"), ({"guidance": -1.0}, "--guidance"), ({"sampler": "magic"}, "--sampler")])
def test_settings_nothing_can_draw(testbed, files, tmp_path, options, words):
    with pytest.raises(PlanError, match=words):
        compare([testbed, files["eight"]], tmp_path, **options)


def test_one_checkpoint_and_bad_ones(testbed, tmp_path):
    with pytest.raises(PlanError, match="2 to 26"):
        compare([testbed], tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    for path, words in ((tmp_path / "none.safetensors", "no file"), (tmp_path / "x.gguf", "GGUF")):
        with pytest.raises(VQError, match=words):
            compare([testbed, path], tmp_path)


def test_an_ordinary_checkpoint_reads_like_a_file_of_ours(testbed, files):
    with open_reader(testbed) as folder, open_reader(files["eight"]) as ours, open_reader(files["plain"]) as plain:
        assert isinstance(folder, SourceReader) and not isinstance(ours, SourceReader)
        names = {key for key in ours.keys() if not key.startswith("vq.")}
        assert set(folder.keys()) == set(plain.keys()) == names
        for key in sorted(names - set(ours.coded_keys()))[::40]:
            assert torch.equal(folder.tensor(key), ours.tensor(key)), key
            assert folder.entry(key).nbytes == ours.entry(key).nbytes


def test_command_line(testbed, files, tmp_path, capsys):
    arguments = ["compare", str(testbed), str(files["eight"]), "-o", str(tmp_path / "out"), "--count", "1", "--steps",
                 "2", "--size", "64x64", "--json", str(tmp_path / "copy.json")]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "reference" in said.out and "eight.safetensors" in said.out and "compare.html" in said.out
    assert "drawing" in said.err
    copied = json.loads((tmp_path / "copy.json").read_text(encoding="utf-8"))
    assert copied == json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    shutil.rmtree(tmp_path / "out")
    assert main(["compare", str(testbed), str(tmp_path / "gone"), "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_command_line_offers_the_samplers_there_are():
    parser = build_parser()
    for name in draw.trajectory.SAMPLERS:
        assert parser.parse_args(["compare", "a", "b", "-o", "c", "--sampler", name]).sampler == name
