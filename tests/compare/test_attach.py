"""attach(): the short form goes into a copy of exactly the file that was measured, everything else stays as it was."""
from __future__ import annotations

import copy
import json
import shutil

import pytest
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.compare.attach import attach
from vqpack.vq_core.compare.short import KEY, MAX_BYTES
from vqpack.vq_core.container import Reader
from vqpack.vq_core.describe import describe
from vqpack.vq_core.errors import FormatError, VQError
from vqpack.vq_core.inspection import REPORT_KEY, content_id, inspect_file, pack_report, read_report, read_result
from vqpack.vq_core.verify import verify_file

CHANGED = {"vqpack.bits", "vqpack.crc32", "vqpack.header_crc32", "modelspec.hash_sha256"}
EVIL = "<img src=x onerror=alert(1)>\u202e\x1b[2J\nsecond line" + "x" * 500


@pytest.fixture
def eight(files, tmp_path):
    """The measured file in a folder of its own."""
    return shutil.copy(files["eight"], tmp_path / "model.safetensors")


@pytest.fixture
def said(report):
    """A comparison's JSON to change."""
    return json.loads(report.json.read_text(encoding="utf-8"))


@pytest.fixture
def write(tmp_path):
    def write(data, name: str = "compare.json"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return path
    return write


def test_only_report_and_checksums_change(eight, report):
    before = eight.read_bytes()
    made = attach(eight, report.json)
    assert made.name == "model-2.safetensors" and eight.read_bytes() == before
    assert sorted(path.name for path in made.parent.iterdir()) == ["model-2.safetensors", "model.safetensors"]
    assert verify_file(made) == []
    with Reader(eight) as old, Reader(made) as new:
        assert new.keys() == old.keys() and content_id(new) == content_id(old)
        for key in set(old.keys()) - {REPORT_KEY}:
            assert new.entry(key).dtype == old.entry(key).dtype
            assert bytes(new.raw(key).numpy()) == bytes(old.raw(key).numpy()), key
        assert {k for k in old.metadata if old.metadata[k] != new.metadata[k]} == CHANGED
        kept = read_report(new)
        assert kept.pop(KEY) and kept == read_report(old)
    assert read_result(made)["identity"] == read_result(eight)["identity"]       # quantize still finds it done


def test_the_same_bytes_again_and_on_top_of_itself(eight, report, tmp_path):
    first = attach(eight, report.json.parent, tmp_path / "a.safetensors")        # a folder is as good as its file
    assert attach(eight, report.json, tmp_path / "b").read_bytes() == first.read_bytes()
    assert attach(first, report.json, tmp_path / "c.safetensors").read_bytes() == first.read_bytes()
    assert attach(eight, report.json, overwrite=True) == eight and eight.read_bytes() == first.read_bytes()


def test_what_is_kept(eight, report, said, testbed):
    short = inspect_file(attach(eight, report.json))["comparison"]
    measured = said["checkpoints"][1]
    assert short["settings"] == {"prompts": 2, "prompt_source": "built-in", "seeds": 1, "steps": 3, "sampler": "model",
                                 "guidance": 3.0, "size": [64, 64]}
    assert short["reference"]["is_source"] and short["reference"]["name"] == testbed.name
    assert len(short["reference"]["sha256"]) == 64
    for metric in short["metrics"]:
        found = measured["metrics"][metric["name"]]
        assert metric["count"] == 2 and metric["low"] <= metric["value"] <= metric["high"]
        assert [metric["low"], metric["value"]] == pytest.approx([found["low"], found["value"]], abs=1e-6)
    assert {"latent_psnr", "image_psnr", "ssim", "noise_snr"} <= {metric["name"] for metric in short["metrics"]}
    text = json.dumps(short)
    assert not any(prompt in text for prompt in said["settings"]["prompts"]) and str(report.json.parent) not in text
    assert len(text) < 2000


def test_own_prompts_leave_no_trace(testbed, files, tmp_path):
    from vqpack.vq_core.compare.run import compare

    secret = tmp_path / "my secret list.txt"
    secret.write_text("a red circle\n", encoding="utf-8")
    done = compare([files["eight"], files["two"], testbed], tmp_path / "out", prompts=secret, steps=2, configs=testbed)
    made = attach(files["two"], done.json, tmp_path)
    short = inspect_file(made)["comparison"]
    assert short["settings"]["prompt_source"] == "own" and short["settings"]["prompts"] == 1
    assert short["reference"]["sha256"] is None and not short["reference"]["is_source"]     # a vqpack file
    assert "secret" not in json.dumps(short) and "circle" not in json.dumps(short)
    shown = describe(inspect_file(made))
    assert "1 own prompt, 1 seed each" in shown and "(one prompt)" in shown
    with pytest.raises(FormatError, match="says nothing of this file"):                      # A is the reference
        attach(files["eight"], done.json, tmp_path)


def test_another_files_numbers_are_refused(files, report, said, write, tmp_path):
    from vqpack.vq_core.quantize import quantize

    other = quantize(files["plain"], tmp_path / "eight.safetensors", bits=8, method="uniform", text_encoder_bits=16,
                     seed=1, skip="to_k").path
    assert other.name == files["eight"].name
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FormatError, match="says nothing of this file: none of the checkpoints"):
        attach(other, report.json)
    for checkpoint in said["checkpoints"]:
        checkpoint.pop("content")
    with pytest.raises(FormatError, match="older version"):
        attach(files["eight"], write(said), tmp_path)
    assert sorted(set(tmp_path.iterdir()) - set(before)) == [tmp_path / "compare.json"]


@pytest.mark.parametrize("data, words", [
    (b"", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 100_000, "not JSON"), (b"9" * 10_000, "not JSON"),
    (b"[]", "lists no checkpoints"), (b"{}", "lists no checkpoints"), (b'{"checkpoints": 5}', "lists no checkpoints"),
    (b'{"checkpoints": []}', "says nothing"), (b'{"checkpoints": [1, null, "x"]}', "says nothing"),
    (None, "cannot read")])
def test_what_is_no_comparison(eight, write, tmp_path, data, words):
    path = tmp_path / "gone.json" if data is None else write(data)
    with pytest.raises(FormatError, match=words) as error:
        attach(eight, path)
    assert "\n" not in str(error.value) and path.name in str(error.value)
    assert not list(tmp_path.glob("model-2*")) and not list(tmp_path.glob("*.spool"))


def test_a_huge_file_is_not_read(eight, tmp_path):
    with open(tmp_path / "compare.json", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(FormatError, match="at most 67.1 MB"):
        attach(eight, tmp_path)


def broken(data: dict) -> dict[str, dict]:
    """Name -> the comparison with one thing wrong."""
    out = {}

    def add(name, change):
        out[name] = copy.deepcopy(data)
        change(out[name])

    mine = data["checkpoints"][1]
    for key in ("settings", "metrics", "tool"):
        add(f"no {key}", lambda d, key=key: d.pop(key))
    for key in data["settings"]:
        if key not in ("device", "torch"):
            add(f"no setting {key}", lambda d, key=key: d["settings"].pop(key))
    for value in (None, "many", -1, 2**70, True, [], 1.5):
        add(f"steps {value}", lambda d, value=value: d["settings"].update(steps=value))
    for value in ("x", {}, 1e300, True, [1]):
        add(f"value {value}", lambda d, value=value: d["checkpoints"][1]["metrics"]["ssim"].update(value=value))
    add("size", lambda d: d["settings"].update(size=[64]))
    add("kind", lambda d: d["checkpoints"][0].update(kind="<b>kind</b>"))
    add("sha256", lambda d: d["checkpoints"][0].update(sha256="../../x"))
    add("name", lambda d: d["checkpoints"][0].update(name=["x"]))
    add("many metrics", lambda d: d.update(metrics=d["metrics"] * 50))
    add("no metrics of mine", lambda d: d["checkpoints"][1].update(metrics={}))
    add("metrics a list", lambda d: d["checkpoints"][1].update(metrics=[]))
    add("reference a number", lambda d: d["checkpoints"].__setitem__(0, 5))
    assert mine["metrics"]["ssim"]
    return out


def test_incomplete_and_odd_comparisons(eight, said, write, tmp_path):
    for name, data in broken(said).items():
        with pytest.raises(FormatError, match="not a complete result") as error:
            attach(eight, write(data))
        assert "\n" not in str(error.value), name
    assert not list(tmp_path.glob("model-2*"))


def test_markup_in_names_stays_text_on_one_line(eight, said, write):
    said["checkpoints"][0]["name"] = said["tool"] = said["settings"]["sampler"] = EVIL
    said["metrics"][0]["title"] = said["metrics"][0]["unit"] = EVIL
    said["checkpoints"][1]["metrics"]["latent_psnr"].update(low="-inf", value=None, high="inf")
    made = attach(eight, write(said))
    text = describe(inspect_file(made))
    assert text.count("\n") == describe(inspect_file(eight)).count("\n") + 1 + len(said["metrics"])
    assert not any(bad in text for bad in "\u202e\x1b") and "x" * 200 not in text
    assert verify_file(made) == []


def test_a_foreign_reports_comparison_is_ignored_or_cleaned(eight, report, monkeypatch, tmp_path):
    from vqpack.vq_core.compare import attach as module

    good = inspect_file(attach(eight, report.json, tmp_path / "good.safetensors"))["comparison"]
    for number, value in enumerate((5, [], {"reference": 1}, {**good, "metrics": "x"}, {**good, "settings": None},
                                    {**good, "weight_error": {"unet": "x"}})):
        monkeypatch.setattr(module, "pack_report", lambda found, value=value: pack_report(
            {**found, KEY: value, "layers": [1, {"name": 2}, {"name": "x", "relative_error": "y"}], "new": [1]}))
        made = attach(eight, report.json, tmp_path / f"odd{number}.safetensors")
        info = inspect_file(made)
        assert info["comparison"] is None and not any("relative_error" in layer for layer in info["layers"])
        assert "compared" not in describe(info)


def test_files_that_cannot_take_it(eight, report, tmp_path):
    with Reader(eight):                                                          # as a model loaded in ComfyUI
        with pytest.raises(VQError, match="is loaded"):
            attach(eight, report.json, overwrite=True)
    data = bytearray(eight.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        attach(tmp_path / "damaged.safetensors", report.json)
    edited = eight.read_bytes().replace(b'"vqpack.tool":"vqpack', b'"vqpack.tool":"other_', 1)
    (tmp_path / "edited.safetensors").write_bytes(edited)
    with pytest.raises(FormatError, match="edited after the file was written"):
        attach(tmp_path / "edited.safetensors", report.json)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.safetensors", "edited.safetensors",
                                                          "model.safetensors"]


def test_command_line(eight, report, capsys):
    assert main(["attach", str(eight), str(report.json)]) == 0
    said = capsys.readouterr().out
    assert "model-2.safetensors" in said and "compared with pipe (this file's own source" in said
    made = eight.with_name("model-2.safetensors")
    assert main(["inspect", str(made)]) == 0
    assert "Latent PSNR" in capsys.readouterr().out
    assert main(["inspect", str(made), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["comparison"]["settings"]["steps"] == 3
    assert main(["inspect", str(eight), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparison"] is None
    assert main(["attach", str(eight), str(eight)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
