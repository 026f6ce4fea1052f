"""The effort dial: what `quantize --effort` does with what it is given, decided and said before it starts."""
from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .arch import UNET_PREFIX
from .arch import layers as arch_layers
from .effort_speed import Speed, measure, together
from .errors import PlanError
from .header import dump
from .plan import PARTS, Plan
from .progress import Progress
from .source import open_source
from .spec import Spec, make_spec

LEVELS = ("fast", "balanced", "best")
PLANNED = ("trellis", "palette", "uniform")                        # methods that `plan` knows
SEARCHED = ("additive",)                                           # methods whose search for codes has an effort


@dataclass(frozen=True)
class Given:
    """What the user gave, as far as it decides what can be done."""

    method: str = "trellis"
    prompts: int = 0                       # so many, to draw pictures with
    calibration: bool = False              # a finished one
    fixed: bool = False                    # a plan, or options of the codes that a plan would not keep
    sequential: bool = False               # code block by block
    tunable: bool = True                   # the UNet is among the parts, and the source has all that draws


@dataclass(frozen=True)
class Actions:
    """What will be done, in this order."""

    pictures: int = 0                      # calibrate with so many; 0: not
    plan: bool = False                     # choose rates by layer, for the bytes that one rate for all would take
    search: str = "normal"                 # of additive codes: encode.additive.EFFORTS
    feedback: bool = False                 # code for a calibration's inputs, given or made
    lessons: int = 0                       # tune with what the original says in so many pictures; 0: not
    steps: int = 0                         # of tuning
    minutes: float | None = None           # of tuning, instead of steps: what an effort in minutes has left for it


# Fast: nothing that needs pictures. Best is VQDM's recipe: 256 prompts for additive codes there, 8 steps of each here,
# and fine-tuning at the end, for the steps and pictures that benchmarks/tuned.py measures. Coding block by block
# (--sequential) is in none: what it takes and brings is a row of benchmarks/effort.py.
AT = {"fast": Actions(search="fast"), "balanced": Actions(32, True),
      "best": Actions(128, True, "best", lessons=96, steps=300)}
# What a number of minutes chooses from, cheapest first. The numbers of tuning below best are guesses.
LADDER = (AT["fast"], Actions(0, True), Actions(8, True), Actions(16, True), AT["balanced"], Actions(64, True),
          Actions(64, True, lessons=32, steps=100), Actions(64, True, lessons=64, steps=200), AT["best"])
MOST_TUNING = 4                            # times the steps of a rung, where there are minutes left for it
# The rest of the work in these units, by CPU time on the testbed (benchmarks/effort_work.py prints them).
GRADIENTS = 96                             # calls that sensitivities take
FACTORINGS = {"coding": 2, "planning": 3}  # behind a rotation and without
FEEDBACK = {"additive": 2.9, "product": 9.2}               # coding for inputs over coding without data
FEEDBACK_ELSE = 2.2                                        # of the other methods
PLANNING = 10e6, 8e4                       # weights coded in the time of making a plan: at its start, a layer
SEARCH = {"fast": 0.37, "normal": 1.0, "best": 2.3}
BACKWARD = 3.1                             # calls without gradients that one with a backward pass takes, decoding apart


def choose(level: str, given: Given) -> Actions:
    """The actions of a level as far as they can be done. PlanError for an unknown level."""
    if level not in AT:
        raise PlanError(f"--effort must be one of {', '.join(LEVELS)} or a number of minutes, got '{level}'")
    return possible(AT[level], given)


def fit(minutes: float, given: Given, speed: Speed) -> Actions:
    """The last of LADDER whose expected time fits, the first where none does; tuning gets the time that is left.

    PlanError for minutes not above 0.
    """
    if not 0 < minutes < 1e6:
        raise PlanError(f"--effort must be one of {', '.join(LEVELS)} or a number of minutes above 0, got {minutes:g}")
    if given.sequential:
        raise PlanError(f"--effort must be balanced or best with --sequential, whose time is not foreseen, got "
                        f"{minutes:g} minutes")
    rungs = [possible(actions, given) for actions in LADDER]
    fitting = [actions for actions in rungs if sum(seconds(actions, given, speed).values()) <= 60 * minutes]
    chosen = fitting[-1] if fitting else rungs[0]
    if not chosen.lessons:
        return chosen
    expected = seconds(chosen, given, speed)
    left = 60 * minutes - sum(expected.values()) + expected["tuning"]
    return replace(chosen, minutes=int(100 * min(left, MOST_TUNING * expected["tuning"]) / 60) / 100)


def possible(actions: Actions, given: Given) -> Actions:
    """Without what cannot be done with what is given, or has been done."""
    pictures = 0 if given.calibration else min(actions.pictures, given.prompts)
    lessons = min(actions.lessons, given.prompts) if given.tunable else 0
    return Actions(pictures, actions.plan and given.method in PLANNED and not given.fixed,
                   actions.search if given.method in SEARCHED else "normal", bool(pictures) or given.calibration,
                   lessons, actions.steps if lessons else 0)


def seconds(actions: Actions, given: Given, speed: Speed) -> dict[str, float]:
    """Expected time of each stage."""
    found = {}
    if actions.pictures:
        looked_at = min(speed.steps, speed.timesteps)
        found["calibrating"] = GRADIENTS * speed.call + actions.pictures * (
            speed.steps * speed.call + looked_at * (speed.call + speed.sums))
    if actions.plan:
        found["planning"] = speed.weight * (PLANNING[0] + PLANNING[1] * speed.layers)
    found["coding"] = speed.weight * speed.weights
    if given.method in SEARCHED:
        found["coding"] *= SEARCH[actions.search]
    if actions.feedback:
        found["coding"] *= FEEDBACK.get(given.method, FEEDBACK_ELSE)
        found["coding"] += FACTORINGS["coding"] * speed.factoring
        if actions.plan:
            found["planning"] += FACTORINGS["planning"] * speed.factoring
    if actions.lessons:
        found["recording"] = 2 * actions.lessons * speed.steps * speed.call        # drawn, and asked once more
        found["tuning"] = _tuning_seconds(actions, speed) if actions.minutes is None else 60 * actions.minutes
    return found


def _tuning_seconds(actions: Actions, speed: Speed) -> float:
    """Steps, and looks at held-out calls in between, which decode once for many."""
    from .tuning.run import HELD_OUT_SHARE
    from .tuning.settings import Tuning

    step = Tuning.batch * (BACKWARD * speed.call + speed.weights * speed.learning / speed.together)
    looked_at = min(Tuning.held_out_calls, HELD_OUT_SHARE * actions.lessons * speed.steps)
    return actions.steps * step + (Tuning.checks + 1) * looked_at * speed.call


def describe(effort: str, actions: Actions, given: Given, expected: dict[str, float] | None = None) -> str:
    """One sentence: what will be done, and why not more."""
    drawn = f"calibrate with {actions.pictures} picture{'s' * (actions.pictures > 1)}"
    words = [drawn] if actions.pictures else []
    if actions.plan:
        words.append("choose each layer's rate" + ("" if actions.feedback else " by a rule of thumb"))
    words.append("code for the inputs that layers get" if actions.feedback else "code without data")
    if given.sequential:
        words[-1] += ", block by block"
    if given.method in SEARCHED:
        words[-1] += f", {actions.search} search"
    if actions.lessons:
        long = f"{actions.steps} steps" if actions.minutes is None else f"about {max(1, round(actions.minutes))} min"
        words.append(f"tune for {long} on {actions.lessons} picture{'s' * (actions.lessons > 1)}")
    taking = f"; about {max(1, round(sum(expected.values()) / 60))} min" if expected else ""
    return f"effort {effort}: {', '.join(words)}{taking}{_remark(effort, actions, given)}."


def _remark(effort: str, actions: Actions, given: Given) -> str:
    """What is given and not used, or would be used and is not given."""
    if given.prompts and not (actions.pictures or actions.lessons or given.sequential):
        return "; the calibration stands for the prompts" if given.calibration else "; the prompts are not drawn"
    if given.prompts or effort == "fast":
        return ""
    if not actions.feedback:
        return "; --prompts or --calibration would let it use more"
    return "; --prompts would let it tune" if effort != "balanced" else ""


def quantize_with_effort(source: str | Path, output=None, *, effort: str | float, bits: float = 3.0,
                         method: str = "trellis", prompts: str | Path | Sequence[str] | None = None,
                         calibration: str | Path | None = None, plan: Plan | None = None, preset: str = "base",
                         text_encoder_bits: int = 6, parts: tuple[str, ...] = PARTS, skip: str | None = None,
                         device: str | None = None, seed: int = 0, overwrite: bool = False,
                         configs: str | Path | None = None, sequential: bool = False,
                         activations: str | None = None, progress: Progress | None = None,
                         tell: Callable[[str], None] | None = None, **options):
    """quantize.quantize with what an effort adds -> QuantizeResult

    effort: "fast", "balanced", "best", or minutes: the most that should fit, by this machine's measured speed (not with
    sequential). prompts: "built-in", a file or a list; without them nothing is drawn. What is done is told. A
    calibration that is made lies beside the result and is found by the next run. What is to be tuned is there untuned
    first and replaced in the end; the next run goes on with it. options: of the codes, as quantize takes them (window,
    rounding, conv_group, ...). Raises VQError.
    """
    from .quantize import quantize

    started, progress, tell = time.monotonic(), progress or Progress(), tell or (lambda _: None)
    options = {name: value for name, value in options.items() if value is not None}
    texts, whole = _prompts(source, prompts)
    given = Given(method, len(texts), calibration is not None, bool(plan or skip or options), sequential,
                  whole and "unet" in parts)
    common = {"device": device, "progress": progress}
    if isinstance(effort, str):
        actions, expected = choose(effort, given), None
    else:
        drawn = bool(texts) and (given.tunable or calibration is None)
        speed = measure(source, make_spec(method, bits, **options), drawn, preset, configs, device)
        actions = fit(effort, given, speed)
        expected = seconds(actions, given, speed)
    tell(describe(effort if isinstance(effort, str) else f"of {effort:g} min", actions, given, expected))
    if actions.pictures:
        calibration = _calibrate(source, output, prompts, actions.pictures, preset, configs, tell, common)
    if actions.plan:
        plan = _planned(source, make_spec(method, bits), calibration, text_encoder_bits, parts, seed, tell, progress)
    run = hashlib.sha256(dump([effort, texts, preset, seed]).encode("utf-8", "replace")).hexdigest()[:32]
    result = quantize(source, output, bits=bits, method=method, plan=plan, text_encoder_bits=text_encoder_bits,
                      parts=parts, skip=skip, seed=seed, overwrite=overwrite, calibration=calibration, configs=configs,
                      sequential=(prompts or "built-in") if sequential else None, tuned=run,
                      effort=actions.search if method in SEARCHED else None, activations=activations, **options,
                      **common)
    if actions.lessons:
        result = _tuned(result, source, texts, actions, seed, run, tell,
                        {"preset": preset, "configs": configs, **common})
    return result if result.already_there else replace(result, seconds=time.monotonic() - started)


def _prompts(source, prompts) -> tuple[tuple[str, ...], bool]:
    """Those that the highest level would draw, and whether the source has text encoders and a VAE to draw them with."""
    if prompts is None:
        return (), False
    from .calibration.run import read_given
    from .compare.models import built_in_prompts, open_checkpoint

    most, checkpoint = max(actions.pictures for actions in AT.values()), open_checkpoint(source, "A")
    return read_given(prompts, most, built_in_prompts(checkpoint)).texts, not checkpoint.lacks


def _calibrate(source, output, prompts, pictures: int, preset: str, configs, tell, common: dict) -> Path:
    """A calibration beside the result; found again where it is there."""
    from .calibration.file import SUFFIX
    from .calibration.run import calibrate
    from .quantize import target_of

    with open_source(source) as opened:
        folder, stem = target_of(opened, output)[0], opened.stem
    made = calibrate(source, folder / f"{stem}{SUFFIX}", prompts=prompts, count=pictures, preset=preset,
                     configs=configs, tell=tell, **common)
    tell(f"{made.path}: {'is already there' if made.already_there else 'calibrated'}")
    return made.path


def _planned(source, spec: Spec, calibration, text_encoder_bits: int, parts, seed: int, tell, progress) -> Plan:
    """Rates by layer for the bytes that `spec` would take in all of them."""
    from .planning.run import plan
    from .planning.tell import describe as in_words

    planned = plan(source, bits=uniform_bits(source, spec, parts), method=spec.kind, calibration=calibration,
                   text_encoder_bits=text_encoder_bits, parts=parts, seed=seed, progress=progress)
    tell(f"planned for the bytes that {spec.bits:g} bits in each layer would take:\n{in_words(planned)}")
    return planned.plan


def uniform_bits(source, spec: Spec, parts: tuple[str, ...] = PARTS) -> float:
    """Stored bits a weight of the UNet's coded layers, shared tables counted, if all were coded with one spec."""
    from .planning.budget import stored_bytes, table_sizes

    with open_source(source) as opened:
        layers = [layer for layer in arch_layers(opened) if layer.component == "unet" and not layer.dense]
    if not layers or "unet" not in parts:
        raise PlanError(f"'{Path(source).name}' has no layers to be planned: expected a UNet, with --parts among them")
    nbytes = sum(stored_bytes(layer, spec, 2) for layer in layers) + sum(table_sizes([spec]).values())
    return (8 * nbytes + 4) / sum(layer.numel for layer in layers)                  # half a byte more: it is rounded


def _tuned(result, source, texts: Sequence[str], actions: Actions, seed: int, run: str, tell, common: dict):
    """The result with its file replaced by the tuned one; as it is where it is tuned already, the UNet is not coded or
    nothing is gained.
    """
    from .compare.prompts import spread
    from .inspection import read_result
    from .quantize import LayerResult, best_device
    from .tuning.run import NothingGained, state_folder, tune
    from .tuning.settings import Tuning

    if read_result(result.path)["tuning"] or not any(layer.name.startswith(UNET_PREFIX) for layer in result.layers):
        return result
    at_once = together(common["device"] or best_device())
    tuning = Tuning(actions.steps if actions.minutes is None else None, actions.minutes, together=at_once, seed=seed)
    try:
        made = tune(result.path, source, result.path, prompts=spread(texts, actions.lessons), tuning=tuning, run=run,
                    overwrite=True, seed=seed, tell=tell, **common)
    except NothingGained as error:
        shutil.rmtree(state_folder(result.path), ignore_errors=True)
        tell(f"{result.path.name} stays as it was coded: {error}")
        return result
    tell(f"tuned: held-out error {made.gain:.2f} dB lower after {made.steps} steps")
    layers = [LayerResult(**layer) for layer in read_result(made.path)["layers"]]
    return replace(result, path=made.path, bits=made.bits, file_bytes=made.path.stat().st_size, layers=layers,
                   already_there=False)
