"""benchmarks/quality.py end to end at two prompts: fp16 is exact, fewer bits are worse, a killed run goes on."""
from __future__ import annotations

import csv

import pytest

METHODS = "^(check-fp16|ours-uniform-[24])$"


@pytest.fixture(scope="module")
def run(bench):
    """The program in this process, two prompts and two steps -> exit code and rows of its table"""
    def started(folder, methods: str = METHODS, *more: str):
        code = bench("quality").main(["--prompts", "2", "--steps", "2", "--methods", methods, "--jobs", "1",
                                      "--folder", str(folder / "kept"), "--out", str(folder), *more])
        with open(folder / "quality.csv", newline="", encoding="utf-8") as file:
            return code, list(csv.DictReader(file))
    return started


@pytest.fixture(scope="module")
def first(run, tmp_path_factory):
    """A whole run: its folder, exit code and rows."""
    folder = tmp_path_factory.mktemp("first")
    return folder, *run(folder)


def value(rows: list[dict], method: str, metric: str) -> float:
    return next(float(row["value"]) for row in rows if row["method"] == method and row["metric"] == metric)


def test_fp16_is_exact_and_fewer_bits_are_worse(first):
    _, code, rows = first
    assert code == 0
    exact = [row for row in rows if row["method"] == "check-fp16" and row["verdict"]]
    assert len(exact) >= 8 and {row["verdict"] for row in exact} == {"exact"}
    assert value(rows, "check-fp16", "latent_psnr") == value(rows, "check-fp16", "noise_snr") == float("inf")
    for metric in ("latent_psnr", "noise_snr", "image_psnr", "ssim", "latent_psnr step 1"):
        assert value(rows, "ours-uniform-4", metric) > value(rows, "ours-uniform-2", metric)
    stored = {row["method"]: (float(row["bits_layers"]), float(row["bits_unet"])) for row in rows}
    assert 4 < stored["ours-uniform-4"][0] < 4.3 < stored["ours-uniform-4"][1] < 5.3
    assert {row["prompts"] for row in rows if row["value"]} == {"2"} and all(row["commit"] for row in rows)
    assert any("too few pictures" in row["note"] for row in rows if row["metric"] == "kernel_distance")


def test_student_is_what_the_products_file_draws(bench, first, repository):
    """The weights in the student's UNet against load_unet of a file that quantize writes."""
    from vqpack.vq_core.pipeline import load_unet
    from vqpack.vq_core.plan import make_plan
    from vqpack.vq_core.quantize import quantize

    folder, testbed = first[0], repository / "testbed" / "pipe"
    students, teacher = bench("quality_students"), bench("quality_measure").load_teacher().unet
    made = students.student(students.rows()["ours-uniform-2"], teacher)
    result = quantize(testbed, folder / "file.safetensors", plan=make_plan(2, "uniform", 16), parts=("unet",))
    wanted = load_unet(result.path, configs=testbed).state_dict()
    own = made.unet.state_dict()
    decoded = {name.replace(".decoded", ".weight"): tensor for name, tensor in wanted.items()}
    assert own.keys() == decoded.keys() and all(own[name].equal(decoded[name]) for name in own)
    assert made.coded.bits_unet == result.bits["unet"] and made.coded.share == 1
    before = teacher.state_dict()
    assert any(not own[name].equal(before[name]) for name in own)


def test_killed_run_goes_on_to_the_same_table(bench, run, first, tmp_path, monkeypatch):
    quality, measured = bench("quality"), []

    def killed(row, kept):
        if measured:
            raise KeyboardInterrupt
        measured.append(row.name)
        return measure(row, kept)

    measure = quality.measure
    monkeypatch.setattr(quality, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob(f"{measured[0]}*.json")}
    assert len(kept) == 1 and not (tmp_path / "quality.csv").exists()
    assert run(tmp_path)[1] == first[2]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert (tmp_path / "quality.csv").read_bytes() == (first[0] / "quality.csv").read_bytes()


def test_checks_recover_what_was_put_in(run, tmp_path):
    code, rows = run(tmp_path, "^check-(predictions|last-step)$")
    found = [row for row in rows if row["verdict"]]
    assert code == 0 and len(found) >= 4 and {row["verdict"] for row in found} == {"recovered"}


def test_instrument_that_reads_wrong_is_told(bench, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench("quality_report"), "CHECK_SNR", 21.0)
    assert run(tmp_path, "^check-predictions$")[0] == 1
    assert "the instrument is wrong: check-predictions noise_snr" in capsys.readouterr().err


def test_absent_and_failing_methods_are_rows_with_a_reason(bench, run, tmp_path, monkeypatch):
    quality, students = bench("quality"), bench("quality_students")

    def absent():
        raise bench("peers").NotHere("some-peer: ImportError: no such module")

    def broken():
        raise RuntimeError("first line\nsecond line")

    rows = {"check-fp16": students.rows()["check-fp16"], "a": students.Row("a", "some-peer", absent, ()),
            "b": students.Row("b", "other-peer", broken, ())}
    monkeypatch.setattr(quality, "rows", lambda: rows)
    code, table = run(tmp_path, ".")
    notes = {row["method"]: row["note"] for row in table if row["metric"] == "failed"}
    assert code == 0 and notes == {"a": "absent: some-peer: ImportError: no such module",
                                   "b": "RuntimeError: first line second line"}
    assert any(row["method"] == "check-fp16" for row in table)


@pytest.mark.parametrize("arguments, words", [(["--prompts", "1"], "at least 2"), (["--jobs", "0"], "at least 1"),
                                              (["--methods", "("], "regular expression")])
def test_bad_arguments_say_what_was_expected(bench, arguments, words, capsys):
    with pytest.raises(SystemExit):
        bench("quality").main(arguments)
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_same_table(run, first, tmp_path, capsys):
    assert run(tmp_path, METHODS, "--jobs", "2")[0] == 0
    assert capsys.readouterr().out.count("min left") == 3
    assert (tmp_path / "quality.csv").read_bytes() == (first[0] / "quality.csv").read_bytes()
