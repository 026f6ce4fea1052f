"""The testbed calibrated and coded: the students of calibrated.py and of the other calibration benches."""
from __future__ import annotations

from functools import partial
from pathlib import Path

from alias import load_vqpack
from quality_students import TESTBED, Coded, Row, count
from testbed_bench import CODE as MADE_BY
from testbed_bench import calibration_of, coded, scene_captions

load_vqpack()
from vqpack.vq_core.plan import Plan, make_plan  # noqa: E402
from vqpack.vq_core.planning.run import plan as make_planned  # noqa: E402

CODE = (*MADE_BY, "benchmarks/calibrated_students.py")
PROMPTS, STEPS, TIMESTEPS, GUIDANCE = 48, 20, 8, 3.0       # of the calibration
SCENES = 5                                 # seed of its captions; training used 1, the prompts drawn by quality.py 11
PLANNED = (1.5, 2, 2.5, 3)
TRELLIS = (1, 1.5, 2, 2.5, 3, 3.5, 4)


def calibrated_rows(folder: Path) -> list[Row]:
    """Those of calibrated.py."""
    made = [(f"trellis-{bits:g}-calibrated", partial(make_plan, bits)) for bits in TRELLIS]
    made += [(f"planned-{bits:g}", partial(_planned, folder, bits, "trellis")) for bits in PLANNED]
    made += [(f"gptq-{bits}", partial(make_plan, bits, "uniform", rounding="gptq")) for bits in (2, 3, 4)]
    made += [("gptq-planned-4", partial(_planned, folder, 4, "uniform")),
             ("adaround-4", partial(make_plan, 4, "uniform", rounding="adaround"))]
    return [Row(name, "", partial(_code, folder, plan_of), CODE) for name, plan_of in made]


def make_calibration(folder: Path) -> Path:
    """The calibration file, made if it is not there."""
    return calibration_of(folder, "testbed", scene_captions(PROMPTS, SCENES), steps=STEPS, timesteps=TIMESTEPS,
                          guidance=GUIDANCE)


def _planned(folder: Path, bits: float, method: str) -> Plan:
    return make_planned(TESTBED, bits=bits, method=method, calibration=make_calibration(folder), text_encoder_bits=16,
                        parts=("unet",)).plan


def _code(folder: Path, plan_of) -> Coded:
    result, weights = coded(folder, "student", plan_of(), make_calibration(folder))
    shares = count(dict.fromkeys(weights, 0), {layer.name for layer in result.layers})
    return Coded(weights, **{**shares, "bits_layers": result.bits["coded"], "bits_unet": result.bits["unet"]})
