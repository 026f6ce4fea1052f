"""How long coding takes: the work of a plan in weights of its slowest code, and this machine's speed, measured once."""
from __future__ import annotations

import threading
from collections.abc import Iterable

from .effort import FEEDBACK, FEEDBACK_ELSE
from .encode import estimate_speed
from .plan import Plan
from .spec import Spec
from .text_encoders import Item
from .workers import worker_count

# Time of one weight beside a trellis weight's at window 12 (1.4 M weights/s a core with numba, palette 10, copies 200).
EFFORT = {"dense": 0.01, "palette": 0.14, "uniform": 0.1}
_speeds: dict[tuple[Spec, str], float] = {}
measuring = threading.Lock()               # two at once would slow each other down


def work(item: Item, plan: Plan) -> float:
    """Share of the work, in weights of the slowest codes: see EFFORT."""
    return item.layer.numel * EFFORT.get(plan.spec_for(item.layer).kind, 1.0)


def coding_seconds(items: Iterable[Item], plan: Plan, speed: float, calibrated: bool = False) -> float:
    """Expected time of coding these items; speed: `speed_of` the plan's main spec, in its own weights a second."""
    slowest = speed * EFFORT.get(plan.unet.kind, 1.0)
    factor = FEEDBACK.get(plan.unet.kind, FEEDBACK_ELSE) if calibrated else 1.0
    return sum(work(item, plan) * (factor if item.layer.component == "unet" else 1.0) for item in items) / slowest


def speed_of(spec: Spec, device: str) -> float | None:
    """Weights a second this machine codes with a spec, None for dense; measured the first time (a few seconds)."""
    with measuring:
        if (spec, device) not in _speeds:
            measured = estimate_speed(spec, device, worker_count(device))
            if measured is None:
                return None
            _speeds[spec, device] = measured
        return _speeds[spec, device]


def known_speed(spec: Spec, device: str) -> float | None:
    """The same where it was measured already, else None."""
    return _speeds.get((spec, device))
