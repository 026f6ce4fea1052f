"""The effort dial: what `quantize --effort` does with what it is given, decided and said before it starts."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from .arch import layers as arch_layers
from .errors import PlanError
from .plan import PARTS, Plan
from .progress import Progress
from .source import open_source
from .spec import Spec, make_spec

LEVELS = ("fast", "balanced", "best")
PLANNED = ("trellis", "palette", "uniform")                        # methods that `plan` knows
SEARCHED = ("additive",)                                           # methods whose search for codes has an effort
COLUMNS = 1024                             # of the gram that is timed


@dataclass(frozen=True)
class Given:
    """What the user gave, as far as it decides what can be done."""

    method: str = "trellis"
    prompts: int = 0                       # so many, to draw pictures with
    calibration: bool = False              # a finished one
    fixed: bool = False                    # a plan, or options of the codes that a plan would not keep
    sequential: bool = False               # code block by block


@dataclass(frozen=True)
class Actions:
    """What will be done, in this order."""

    pictures: int = 0                      # calibrate with so many; 0: not
    plan: bool = False                     # choose rates by layer, for the bytes that one rate for all would take
    search: str = "normal"                 # of additive codes: encode.additive.EFFORTS
    feedback: bool = False                 # code for a calibration's inputs, given or made


@dataclass(frozen=True)
class Speed:
    """This machine and model."""

    weight: float                          # seconds to code one weight data-free, all workers at once
    factoring: float                       # seconds to choose damping for all layers' grams and to factor them, once
    call: float = 0.0                      # seconds of one call of the UNet at the picture's size, both halves
    sums: float = 0.0                      # seconds to add one call's inputs to all grams
    weights: int = 0                       # coded, in so many layers
    layers: int = 0
    steps: int = 25                        # of the sampler
    timesteps: int = 8                     # looked at in each picture


# Fast: nothing that needs pictures. Best is VQDM's recipe for additive codes: 256 prompts there, 8 steps of each here.
# Coding block by block (--sequential) is in none: what it takes and brings is a row of benchmarks/effort.py.
AT = {"fast": Actions(search="fast"), "balanced": Actions(32, True), "best": Actions(128, True, "best")}
# What a number of minutes chooses from, cheapest first.
LADDER = (AT["fast"], Actions(0, True), Actions(8, True), Actions(16, True), AT["balanced"], Actions(64, True),
          AT["best"])
# The rest of the work in these units, by CPU time on the testbed (benchmarks/effort_work.py prints them).
GRADIENTS = 96                             # calls that sensitivities take
FACTORINGS = {"coding": 2, "planning": 3}  # behind a rotation and without
FEEDBACK = {"additive": 2.9, "product": 9.2}               # coding for inputs over coding without data
FEEDBACK_ELSE = 2.2                                        # of the other methods
PLANNING = 10e6, 8e4                       # weights coded in the time of making a plan: at its start, a layer
SEARCH = {"fast": 0.37, "normal": 1.0, "best": 2.3}


def choose(level: str, given: Given) -> Actions:
    """The actions of a level as far as they can be done. PlanError for an unknown level."""
    if level not in AT:
        raise PlanError(f"--effort must be one of {', '.join(LEVELS)} or a number of minutes, got '{level}'")
    return possible(AT[level], given)


def fit(minutes: float, given: Given, speed: Speed) -> Actions:
    """The last of LADDER whose expected time fits; the first where none does. PlanError for minutes not above 0."""
    if not 0 < minutes < 1e6:
        raise PlanError(f"--effort must be one of {', '.join(LEVELS)} or a number of minutes above 0, got {minutes:g}")
    if given.sequential:
        raise PlanError(f"--effort must be balanced or best with --sequential, whose time is not foreseen, got "
                        f"{minutes:g} minutes")
    rungs = [possible(actions, given) for actions in LADDER]
    fitting = [actions for actions in rungs if sum(seconds(actions, given, speed).values()) <= 60 * minutes]
    return fitting[-1] if fitting else rungs[0]


def possible(actions: Actions, given: Given) -> Actions:
    """Without what cannot be done with what is given, or has been done."""
    pictures = 0 if given.calibration else min(actions.pictures, given.prompts)
    return Actions(pictures, actions.plan and given.method in PLANNED and not given.fixed,
                   actions.search if given.method in SEARCHED else "normal", bool(pictures) or given.calibration)


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
    return found


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
    taking = f"; about {max(1, round(sum(expected.values()) / 60))} min" if expected else ""
    return f"effort {effort}: {', '.join(words)}{taking}{_remark(effort, actions, given)}."


def _remark(effort: str, actions: Actions, given: Given) -> str:
    """What is given and not used, or would be used and is not given."""
    if given.prompts and not (actions.pictures or given.sequential):
        return "; the calibration stands for the prompts" if given.calibration else "; the prompts are not drawn"
    more = not (actions.feedback or given.prompts or effort == "fast")
    return "; --prompts or --calibration would let it use more" if more else ""


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
    calibration that is made lies beside the result and is found by the next run. options: of the codes, as quantize
    takes them (window, rounding, conv_group, ...). Raises VQError.
    """
    from .quantize import quantize

    started, progress, tell = time.monotonic(), progress or Progress(), tell or (lambda _: None)
    options = {name: value for name, value in options.items() if value is not None}
    given = Given(method, _prompts(source, prompts), calibration is not None, bool(plan or skip or options), sequential)
    common = {"device": device, "progress": progress}
    if isinstance(effort, str):
        actions, expected = choose(effort, given), None
    else:
        speed = measure(source, make_spec(method, bits, **options), given, preset, configs, device)
        actions = fit(effort, given, speed)
        expected = seconds(actions, given, speed)
    tell(describe(effort if isinstance(effort, str) else f"of {effort:g} min", actions, given, expected))
    if actions.pictures:
        calibration = _calibrate(source, output, prompts, actions.pictures, preset, configs, tell, common)
    if actions.plan:
        plan = _planned(source, make_spec(method, bits), calibration, text_encoder_bits, parts, seed, tell, progress)
    result = quantize(source, output, bits=bits, method=method, plan=plan, text_encoder_bits=text_encoder_bits,
                      parts=parts, skip=skip, seed=seed, overwrite=overwrite, calibration=calibration, configs=configs,
                      sequential=(prompts or "built-in") if sequential else None,
                      effort=actions.search if method in SEARCHED else None, activations=activations, **options,
                      **common)
    return result if result.already_there else replace(result, seconds=time.monotonic() - started)


def _prompts(source, prompts) -> int:
    """How many there are to be drawn, as far as the highest level would."""
    if prompts is None:
        return 0
    from .calibration.run import read_given
    from .compare.models import built_in_prompts, open_checkpoint

    most = max(actions.pictures for actions in AT.values())
    return len(read_given(prompts, most, built_in_prompts(open_checkpoint(source, "A"))).texts)


def measure(source, spec: Spec, given: Given, preset: str, configs, device: str | None) -> Speed:
    """This machine's speed with this model; the UNet is only asked where there is something to be drawn."""
    from .calibration.settings import FULL_COLUMNS, TIMESTEPS, preset_settings
    from .encode import estimate_speed
    from .quantize import best_device
    from .workers import worker_count

    device = device or best_device()
    with open_source(source) as opened:
        shapes = [layer.shape for layer in arch_layers(opened) if layer.component == "unet" and not layer.dense]
    sizes = [(1, prod(s[1:])) if prod(s[1:]) <= FULL_COLUMNS else (prod(s[2:]), s[1]) for s in shapes]
    sums, factoring = _gram_seconds(device)
    drawn = given.prompts and not given.calibration
    return Speed(1 / estimate_speed(spec, device, worker_count(device)),
                 sum(blocks * size**3 for blocks, size in sizes) * factoring / worker_count(device),
                 _call_seconds(source, preset, configs, device) if drawn else 0.0,
                 sum(blocks * size**2 for blocks, size in sizes) * sums, sum(map(prod, shapes)), len(shapes),
                 preset_settings(preset, (64, 64)).steps, TIMESTEPS)


def _gram_seconds(device: str) -> tuple[float, float]:
    """(seconds a number of a gram to add one call's inputs, seconds a cubed column to factor one)"""
    import torch

    from .calibration.settings import TOKENS
    from .encode.feedback import make_feedback
    from .gram import Gram

    rows = torch.randn(2, TOKENS, COLUMNS, generator=torch.Generator().manual_seed(0))
    grams, moved = [(x.t() @ x / TOKENS)[None] for x in rows], rows[0].to(device)
    started = time.monotonic()
    float((moved.t() @ moved)[0, 0])       # waits for the device
    added = time.monotonic()
    make_feedback(Gram(grams[0], TOKENS, grams[1], TOKENS))
    return (added - started) / COLUMNS**2, (time.monotonic() - added) / COLUMNS**3


def _call_seconds(source, preset: str, configs, device: str) -> float:
    from .calibration.settings import Picture, preset_settings
    from .calibration.teacher import CheckpointTeacher

    teacher = CheckpointTeacher(source, device, configs)
    settings = replace(preset_settings(preset, teacher.size()), steps=1, timesteps=1)
    try:
        teacher.open()
        for _ in range(2):                 # the first one warms up
            started = time.monotonic()
            teacher.draw(Picture(0, "a", 0, False), settings, Progress())
        return time.monotonic() - started
    finally:
        teacher.close()


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
