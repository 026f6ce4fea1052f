"""What is told before anything is coded, against what is there afterwards."""
from __future__ import annotations

import csv
import gc
import json
import os
from dataclasses import replace

import pytest
from vqpack.vq_core.coding_time import EFFORT, coding_seconds, known_speed, speed_of
from vqpack.vq_core.collector import resting
from vqpack.vq_core.compare.file_page import file_page
from vqpack.vq_core.container import Reader
from vqpack.vq_core.earlier_results import results_of
from vqpack.vq_core.errors import PlanError, VQError
from vqpack.vq_core.expected_error import ERRORS, expected_error
from vqpack.vq_core.inspection import REPORT_KEY
from vqpack.vq_core.plan import make_plan
from vqpack.vq_core.planning.budget import MARGIN, REPORT_MARGIN
from vqpack.vq_core.predict import predict, read_outline
from vqpack.vq_core.quantize import quantize
from vqpack.vq_core.sampling_memory import sampling_memory
from vqpack.vq_core.spec import make_spec

ALIGNED = 64                               # bytes a header is padded to: a few more characters may cost one step


@pytest.fixture(scope="module")
def made(testbed, tmp_path_factory):
    """Files of the testbed at two rates, quickly coded -> (plan, parts, path)"""
    folder, out = tmp_path_factory.mktemp("predict"), []
    for bits, encoders, parts in ((2, 4, ("unet", "te", "vae")), (8, 16, ("unet",))):
        plan = make_plan(bits, "palette", encoders)
        out.append((plan, parts, quantize(testbed, folder / f"{bits}.safetensors", plan=plan, parts=parts).path))
    return out


def test_the_file_has_the_size_that_was_told(testbed, made):
    outline = read_outline(testbed)
    for plan, parts, path in made:
        told = predict(outline, plan, parts)
        with Reader(path) as reader:
            report = reader.entry(REPORT_KEY).nbytes
        slack = MARGIN + ALIGNED + 2 * REPORT_MARGIN * report
        assert 0 <= told.file_bytes - path.stat().st_size <= slack
        assert told.source_bytes == outline.source.bytes


def test_memory_and_bits_are_those_of_the_finished_file(testbed, made):
    for plan, parts, path in made:
        told, page = predict(read_outline(testbed), plan, parts), "".join(file_page(path))
        assert told.memory == sampling_memory(path)
        assert f"whole UNet {told.unet_bits:.3f}" in page


def test_errors_are_those_of_the_benchmarks(repository):
    measured = {}
    for row in csv.DictReader((repository / "benchmarks/results/weight_error.csv").open(encoding="utf-8")):
        parts = row["method"].split("-")
        if row["model"] == "sdxl-trained-like" and row["metric"] == "plain error" and parts[0] == "ours" and len(
                    parts) == 3:
            measured[parts[1], float(parts[2])] = float(row["value"])
    for row in json.loads((repository / "benchmarks/results/gaussian.json").read_text(encoding="utf-8"))["rows"]:
        if row["family"] in ("trellis", "product"):
            measured.setdefault((row["family"], float(row["bits"])), row["error"])
    for kind, rates in ERRORS.items():
        for bits, error in rates.items():
            assert error == float(f"{measured[kind, bits]:.2g}"), (kind, bits)
            make_spec(kind, bits)                       # there is such a code


def test_expected_error_is_a_mean_over_weights(testbed):
    known = read_outline(testbed).source.layers
    layers = [layer for layer in known if layer.component == "unet" and not layer.dense][:2]
    big, small = (replace(layer, shape=shape) for layer, shape in zip(layers, ((30, 10), (10, 10)), strict=True))
    two, four = make_spec("trellis", 2), make_spec("trellis", 4)
    assert expected_error([(big, two), (small, four)]) == pytest.approx(0.75 * 0.069 + 0.25 * 0.0046)
    assert expected_error([(big, make_spec("uniform", 7))]) is None and expected_error([]) is None


def test_a_plan_that_does_not_fit_is_refused(testbed):
    plan = replace(make_plan(3), layers=(("no.such.layer", make_spec("trellis", 2)),))
    with pytest.raises(PlanError, match=r"no\.such\.layer"):
        predict(read_outline(testbed), plan)


def test_an_outline_is_read_again_when_the_file_changed(tmp_path, testbed):
    with pytest.raises(OSError):
        read_outline(tmp_path / "gone.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(VQError):
        read_outline(tmp_path / "x.safetensors")
    assert read_outline(testbed) is read_outline(testbed)


def test_time_follows_work_and_speed(testbed):
    outline, trellis, palette = read_outline(testbed), make_plan(3), make_plan(3, "palette")
    items = outline.kept(("unet",))
    slow, fast = coding_seconds(items, trellis, 1e6), coding_seconds(items, trellis, 2e6)
    assert slow == pytest.approx(2 * fast) and coding_seconds(items, trellis, 1e6, calibrated=True) > 1.5 * slow
    weights = sum(item.layer.numel for item in items if not item.layer.dense)
    dense = sum(item.layer.numel for item in items if item.layer.dense)
    assert slow == pytest.approx((weights + EFFORT["dense"] * dense) / 1e6)
    assert coding_seconds(items, palette, 1e6) < 1.2 * slow             # in the palette's own weights a second


def test_the_collector_rests_until_the_last_thread_has_left():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), resting():
        with resting():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    try:
        with resting():
            pass
        assert not gc.isenabled()                       # as it was
    finally:
        gc.enable()


def test_speed_is_measured_once(monkeypatch):
    from vqpack.vq_core import coding_time

    calls = []
    monkeypatch.setattr(coding_time, "_speeds", {})
    monkeypatch.setattr(coding_time, "estimate_speed", lambda *given: calls.append(given) or 5.0)
    spec = make_spec("palette", 2)
    assert known_speed(spec, "cpu") is None
    assert [speed_of(spec, "cpu"), speed_of(spec, "cpu"), known_speed(spec, "cpu")] == [5.0] * 3 and len(calls) == 1


def test_earlier_results_are_found_by_name_and_size(made, tmp_path, testbed):
    paths = [path for *_, path in made]
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    for order, path in enumerate(paths):
        os.utime(path, (1e9 + order, 1e9 + order))
    source = read_outline(testbed).source
    found = results_of(source.name, source.bytes, [broken, *paths, tmp_path / "gone"])
    assert [result.file for result in found] == [paths[1].name, paths[0].name]          # newest first
    assert found[1].plan == made[0][0].to_json() and found[0].comparison is None
    assert 0 < found[0].unet_error < found[1].unet_error < 1
    assert results_of(source.name, source.bytes + 1, paths) == results_of("other", source.bytes, paths) == []
