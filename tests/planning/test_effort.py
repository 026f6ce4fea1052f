"""The effort dial: a pure function of what is given and how fast it goes, and what it makes of a checkpoint."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from vqpack.vq_core.arch import layers as arch_layers
from vqpack.vq_core.cli.main import build_parser
from vqpack.vq_core.compare.models import built_in_prompts, open_checkpoint
from vqpack.vq_core.effort import (
    AT,
    BACKWARD,
    LADDER,
    MOST_TUNING,
    Actions,
    Given,
    Speed,
    choose,
    describe,
    fit,
    possible,
    seconds,
)
from vqpack.vq_core.effort import quantize_with_effort as run
from vqpack.vq_core.errors import FormatError, Interrupted, PlanError
from vqpack.vq_core.inspection import inspect_file, read_result
from vqpack.vq_core.plan import Plan
from vqpack.vq_core.planning.budget import blob_bytes
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.quantize import QuantizeResult, quantize
from vqpack.vq_core.source import open_source
from vqpack.vq_core.spec import DenseSpec, TrellisSpec
from vqpack.vq_core.tuning import loop as loops
from vqpack.vq_core.verify import verify_file

PROMPTS, CAL = Given(prompts=500), Given(calibration=True)
SLOW = Speed(1e-7, 100.0, 10.0, 5.0, 10**9, 700)
QUICK = Speed(1e-9, 0.1, 0.01, 0.01, 10**9, 700, learning=1e-12)
TUNED = {"lessons": 96, "steps": 300}


@pytest.mark.parametrize("level, given, actions", [
    ("fast", Given(), Actions()),
    ("fast", PROMPTS, Actions()),                                  # data-free, whatever could be drawn
    ("fast", CAL, Actions(feedback=True)),                         # unless it has been drawn
    ("balanced", Given(), Actions(plan=True)),
    ("balanced", PROMPTS, Actions(32, True, feedback=True)),
    ("balanced", CAL, Actions(plan=True, feedback=True)),
    ("balanced", Given(prompts=12), Actions(12, True, feedback=True)),
    ("balanced", Given(prompts=500, calibration=True), Actions(plan=True, feedback=True)),
    ("balanced", Given(prompts=500, fixed=True), Actions(32, feedback=True)),
    ("best", PROMPTS, Actions(128, True, feedback=True, **TUNED)),
    ("best", Given(), Actions(plan=True)),                         # nothing to be tuned with
    ("best", CAL, Actions(plan=True, feedback=True)),
    ("best", Given(prompts=500, calibration=True), Actions(plan=True, feedback=True, **TUNED)),
    ("best", Given(prompts=12), Actions(12, True, feedback=True, lessons=12, steps=300)),
    ("best", Given(prompts=12, tunable=False), Actions(12, True, feedback=True)),
    ("fast", Given("additive"), Actions(search="fast")),
    ("balanced", Given("additive", prompts=500), Actions(32, feedback=True)),
    ("best", Given("additive", prompts=500), Actions(128, search="best", feedback=True, **TUNED)),
    ("best", Given("product", calibration=True), Actions(feedback=True)),
])
def test_what_a_level_does(level, given, actions):
    assert choose(level, given) == actions == choose(level, given)


def rung(actions: Actions, given: Given) -> int:
    """Place in the ladder, whatever time tuning got."""
    return [possible(rung, given) for rung in LADDER].index(replace(actions, minutes=None))


def test_minutes_choose_the_most_that_fits():
    budgets = (1, 20, 100, 150, 240, 450, 1500, 2500, 10000)
    chosen = [fit(minutes, PROMPTS, SLOW) for minutes in budgets]
    places = [rung(actions, PROMPTS) for actions in chosen]
    assert places == sorted(places) and len(set(places)) >= 8
    assert chosen[0] == choose("fast", PROMPTS) and places[-1] == len(LADDER) - 1
    for minutes, actions in zip(budgets[1:], chosen[1:], strict=True):
        assert sum(seconds(actions, PROMPTS, SLOW).values()) <= 60 * minutes
    assert rung(fit(5, PROMPTS, QUICK), PROMPTS) == len(LADDER) - 1
    for given in (Given(), CAL, PROMPTS, Given(prompts=12), Given("additive", prompts=500)):
        times = [sum(seconds(possible(rung, given), given, SLOW).values()) for rung in LADDER]
        assert times == sorted(times)                              # a higher rung never takes less


def test_tuning_gets_the_minutes_that_are_left_up_to_a_point():
    few, more, most = (fit(minutes, PROMPTS, QUICK) for minutes in (4, 5.5, 10000))
    assert more.minutes == pytest.approx(few.minutes + 1.5, abs=0.02)        # of the same rung
    assert sum(seconds(few, PROMPTS, QUICK).values()) == pytest.approx(4 * 60, abs=1)
    least = seconds(replace(most, minutes=None), PROMPTS, QUICK)["tuning"]
    assert most.minutes == pytest.approx(MOST_TUNING * least / 60, abs=0.01)
    assert fit(10000, Given(), QUICK).minutes is None and fit(10000, CAL, QUICK).lessons == 0


def test_a_tuning_step_is_counted_by_calls_and_decoding():
    step = Speed(0.0, 0.0, call=2.0, weights=1000, learning=0.01, together=1)
    few, more = (seconds(Actions(lessons=96, steps=steps), PROMPTS, step)["tuning"] for steps in (100, 200))
    assert more - few == pytest.approx(100 * 8 * (BACKWARD * 2.0 + 10.0))
    assert seconds(Actions(lessons=96, steps=1), PROMPTS, step)["recording"] == 2 * 96 * 25 * 2.0


@pytest.mark.parametrize("call", [lambda: choose("slow", PROMPTS), lambda: fit(0, PROMPTS, QUICK),
                                  lambda: fit(float("nan"), PROMPTS, QUICK)])
def test_other_efforts_are_refused(call):
    with pytest.raises(PlanError, match="--effort must be one of fast, balanced, best or a number of minutes"):
        call()


def test_minutes_do_not_go_with_what_cannot_be_foreseen():
    with pytest.raises(PlanError, match="balanced or best with --sequential"):
        fit(20, Given(prompts=12, sequential=True), QUICK)


def test_it_is_said_what_will_be_done():
    told = describe("balanced", choose("balanced", PROMPTS), PROMPTS)
    assert told == ("effort balanced: calibrate with 32 pictures, choose each layer's rate, code for the inputs that "
                    "layers get.")
    assert "by a rule of thumb, code without data; --prompts" in describe("best", choose("best", Given()), Given())
    assert describe("of 3 min", AT["fast"], PROMPTS, {"coding": 180.0}) == (
        "effort of 3 min: code without data; about 3 min; the prompts are not drawn.")
    both = Given(prompts=12, calibration=True)
    assert describe("balanced", choose("balanced", both), both).endswith("; the calibration stands for the prompts.")
    block = Given(prompts=12, calibration=True, sequential=True)
    assert describe("fast", choose("fast", block), block) == ("effort fast: code for the inputs that layers get, block "
                                                              "by block.")
    tuned = choose("best", PROMPTS)
    assert "get, tune for 300 steps on 96 pictures." in describe("best", tuned, PROMPTS)
    assert "tune for about 7 min on 96 pictures; about 9 min." in describe(
        "of 9 min", replace(tuned, minutes=7.2), PROMPTS, {"coding": 540.0})
    assert describe("best", choose("best", CAL), CAL).endswith("; --prompts would let it tune.")
    assert "best search" in describe("best", choose("best", Given("additive")), Given("additive"))


def test_the_command_line_takes_levels_and_minutes(capsys):
    parse = build_parser().parse_args
    assert parse(["quantize", "in"]).effort is None
    assert parse(["quantize", "in", "--effort", "best"]).effort == "best"
    assert parse(["quantize", "in", "--effort", "12.5"]).effort == 12.5
    with pytest.raises(SystemExit):
        parse(["quantize", "in", "--effort", "-3"])
    assert "fast, balanced, best or a number of minutes" in capsys.readouterr().err


@pytest.fixture
def called(monkeypatch):
    """The names of what was called and how; nothing is really done."""
    from vqpack.vq_core import quantize as quantizing
    from vqpack.vq_core.calibration import run as calibrating
    from vqpack.vq_core.planning import run as planning

    found, plan = {}, Plan(unet=DenseSpec())
    answers = {"calibrate": SimpleNamespace(path=Path("made.vqcal.safetensors"), already_there=False),
               "plan": SimpleNamespace(plan=plan, layers=(), bits=2.5, file_bytes=1, snr=None, gap=0, guessed=True),
               "quantize": QuantizeResult(Path("out"), "sdxl", {}, 1, {}, 0.0)}
    for module, name in ((calibrating, "calibrate"), (planning, "plan"), (quantizing, "quantize")):
        def call(source, *args, name=name, **options):
            found[name] = options | {"args": args}
            return answers[name]
        monkeypatch.setattr(module, name, call)
    return found


def test_balanced_calibrates_plans_and_codes(testbed, tmp_path, called):
    told = []
    result = run(testbed, tmp_path / "out", effort="balanced", bits=2, prompts=["a red circle"], preset="turbo",
                 overwrite=True, tell=told.append)
    assert result.path == Path("out") and result.seconds > 0       # of all stages, not of the last alone
    assert list(called) == ["calibrate", "plan", "quantize"]       # in this order
    calibrated, planned, coded = called.values()
    assert calibrated["args"] == (tmp_path / "pipe.vqcal.safetensors",) and calibrated["count"] == 1
    assert calibrated["prompts"] == ["a red circle"] and calibrated["preset"] == "turbo"
    assert planned["calibration"] == coded["calibration"] == Path("made.vqcal.safetensors")
    assert planned["method"] == "trellis" and coded["plan"] == Plan(unet=DenseSpec()) and coded["overwrite"]
    assert coded["args"] == (tmp_path / "out",) and coded["sequential"] is None and coded["effort"] is None
    assert told[0].startswith("effort balanced: calibrate with 1 picture,") and len(told) == 3
    assert told[2].startswith("planned for the bytes that 2 bits in each layer would take:\nrate")


def test_a_plan_takes_the_bytes_of_one_rate(testbed, called):
    """Bits of the planned layers: what all blobs take at 2 bits, and the one table, to the byte."""
    run(testbed, effort="balanced", bits=2)
    with open_source(testbed) as source:
        layers = [layer for layer in arch_layers(source) if layer.component == "unet" and not layer.dense]
    nbytes = sum(blob_bytes(layer.shape, layer.splits, TrellisSpec(2)) for layer in layers) + (1 << 12) + 64
    assert called["plan"]["bits"] * sum(layer.numel for layer in layers) / 8 == pytest.approx(nbytes + 0.5, abs=0.1)
    assert list(called) == ["plan", "quantize"] and called["quantize"]["calibration"] is None


def test_vqdms_recipe_and_options_of_codes_reach_quantize(testbed, called):
    run(testbed, effort="best", bits=2, method="additive", calibration="cal", conv_group="kernel", window=None)
    assert list(called) == ["quantize"]
    coded = called["quantize"]
    assert coded["effort"] == "best" and coded["conv_group"] == "kernel" and coded["calibration"] == "cal"
    assert coded["plan"] is None and "window" not in coded


def test_prompts_are_counted_before_anything_is_done(testbed, tmp_path, called):
    file = tmp_path / "prompts.txt"
    file.write_text("a red ring\na blue ring\na red ring\n", "utf-8")
    run(testbed, tmp_path / "out", effort="balanced", bits=2, prompts=file)
    assert called["calibrate"]["count"] == 2
    run(testbed, tmp_path / "out", effort="best", bits=2, prompts="built-in", parts=("te",), method="product")
    assert called["calibrate"]["count"] == len(built_in_prompts(open_checkpoint(testbed, "A")))
    called.clear()
    file.write_text("\n", "utf-8")
    with pytest.raises(FormatError, match="holds no prompt"):
        run(testbed, tmp_path / "out", effort="fast", bits=2, prompts=file)
    assert not called


def test_minutes_are_measured_here(testbed, called):
    told = []
    run(testbed, effort=1e5, bits=2, method="palette", tell=told.append)
    assert list(called) == ["plan", "quantize"] and told[0].startswith("effort of 100000 min: choose each")
    assert "about 1 min" in told[0]


@pytest.fixture
def short(testbed, tmp_path, monkeypatch):
    """best(**more): `--effort best` with two tuning steps on two small pictures, planned and calibrated by nobody ->
    (result, what was told).
    """
    from vqpack.vq_core import effort
    from vqpack.vq_core.tuning import run as tuning

    real = tuning.tune
    monkeypatch.setitem(effort.AT, "best", Actions(0, False, lessons=2, steps=2))
    monkeypatch.setattr(tuning, "tune", lambda *args, **named: real(
        *args, **named | {"steps": 2, "size": (64, 64), "threads": 1}))

    def best(**more):
        told: list[str] = []
        return run(testbed, tmp_path / "x", effort="best", bits=2, window=8, prompts=["a red ring", "a blue ring"],
                   parts=("unet",), device="cpu", **{"tell": told.append} | more), told
    return best


def test_best_ends_in_one_tuned_file_that_is_found_again(short, testbed, tmp_path):
    result, told = short()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"] and verify_file(result.path) == []
    said, found = inspect_file(result.path), read_result(result.path)
    assert found["tuning"]["of"] == 2 and found["tuning"]["pictures"] == 2 and not result.already_there
    assert result.bits == said["bits"] and result.file_bytes == result.path.stat().st_size
    assert [layer.to_json() for layer in result.layers] == found["layers"]
    assert told[0].endswith("tune for 2 steps on 2 pictures.") and "held-out error" in told[-1]
    made = result.path.read_bytes()
    again, _ = short()
    assert again.already_there and again.path.read_bytes() == made
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    plain = quantize(testbed, tmp_path / "x", bits=2, window=8, parts=("unet",), device="cpu")
    assert plain.path.name == "x-2.safetensors"                    # who asks for an untuned file does not get this one


def test_a_stopped_best_goes_on_and_a_vain_one_stays_untuned(short, tmp_path, monkeypatch):
    stages = []
    stopping = Progress(lambda stage, *_: stages.append(stage), lambda: stages.count("tuning") > 2, interval=0.0)
    with pytest.raises(Interrupted):
        short(progress=stopping)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", "x.tuning"]
    assert read_result(tmp_path / "x.safetensors")["tuning"] == {}
    _, told = short()
    assert any("Going on after step" in note for note in told)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    (tmp_path / "x.safetensors").unlink()
    monkeypatch.setattr(loops.Loop, "_judge", lambda self: None)   # nothing is ever found to be better
    result, told = short()
    assert "x.safetensors stays as it was coded: tuning did not lower" in told[-1]
    assert read_result(result.path)["tuning"] == {} and [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
