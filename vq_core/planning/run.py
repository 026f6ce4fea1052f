"""plan(): a checkpoint and a size in, the plan that loses least out."""
from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ..arch import Layer
from ..arch import layers as arch_layers
from ..calibration.file import Calibration, shapes_digest
from ..errors import PlanError
from ..plan import PARTS, Plan, make_plan
from ..progress import Progress
from ..source import Source, open_source
from ..spec import TRELLIS_RATES, DenseSpec, Spec, make_spec
from ..text_encoders import stored_items
from ..workers import Stoppable, as_done, worker_count
from .budget import file_bytes, stored_bytes, table_sizes
from .costs import Costs, LayerCosts
from .rule import guess
from .sensitivity import Sensitivity
from .solve import Solution, solve

WHOLE = (2, 3, 4, 5, 6, 7, 8)
RATES = {"trellis": (*TRELLIS_RATES, 8, "dense"), "palette": WHOLE, "uniform": WHOLE}
SCALAR = "palette"                         # codes what the trellis has no rate for
TRIES = 8
SMALL_TABLES = 0.001                       # of the budget: below that no rate is left out to save its table


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan and what it is expected to cost."""

    layer: Layer
    spec: Spec
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Planned:
    """A plan and what it promises. snr: predicted, in dB, None where the noise's power is not known."""

    plan: Plan
    layers: tuple[PlannedLayer, ...]
    source: str
    bits: float                            # stored bits a weight of these layers, shared tables counted
    file_bytes: int                        # at most
    snr: float | None
    gap: float                             # of the sum of costs above the least possible, at most
    guessed: bool
    sensitivity: Sensitivity | None        # to be exported; None where it would be a guess
    seconds: float


def plan(source, *, size: int | None = None, bits: float | None = None, rates: Sequence | None = None,
         method: str = "trellis", calibration: str | Path | None = None, sensitivity: Sensitivity | None = None,
         text_encoder_bits: int = 6, parts: tuple[str, ...] = PARTS, seed: int = 0,
         progress: Progress | None = None) -> Planned:
    """Choose a rate for each coded layer of the UNet, so that the predicted noise changes least.

    source: path or an opened Source, which is closed. Either size (bytes of the file at most) or bits (stored bits a
    weight of the UNet's coded layers, everything in them counted). rates: numbers and "dense" to choose from.
    calibration: file of `vqpack calibrate`; sensitivity: replaces its sensitivities. Raises VQError.
    """
    started, progress = time.monotonic(), progress or Progress()
    specs = candidates(method, rates)
    if (size is None) == (bits is None):
        raise PlanError("give either --size or --bits, the size of the file or the stored bits a weight")
    name, target = ("size", size) if bits is None else ("bits", bits)
    if not (target > 0 and math.isfinite(target)):
        raise PlanError(f"--{name} must be above 0, got {target:g}")
    with source if isinstance(source, Source) else open_source(source) as opened, \
            Calibration(calibration) if calibration else nullcontext() as calibrated:
        job = _Job(opened, specs, make_plan(3, text_encoder_bits=text_encoder_bits), parts, calibrated, sensitivity,
                   seed, progress)
        found = job.costs()
        return replace(job.choose(found, size, bits), seconds=time.monotonic() - started)


def candidates(method: str, rates: Sequence | None = None) -> tuple[Spec, ...]:
    """The specs of a method at these rates (None = all): trellis up to 6 bits, palette above, dense."""
    if method not in RATES:
        raise PlanError(f"plans are made with {', '.join(RATES)}, got '{method}'")
    known, found = {*RATES[method], 1, 7, "dense"}, {}
    for rate in rates or RATES[method]:
        if rate not in known:
            listed = ", ".join(map(str, sorted(known - {"dense"})))
            raise PlanError(f"--rates of {method} must be some of {listed}, dense, got '{rate}'")
        kind = method if method != "trellis" or rate in TRELLIS_RATES else SCALAR
        found[rate] = DenseSpec() if rate == "dense" else make_spec(kind, rate)
    return tuple(found.values())


class _Job:
    """One run: what is planned, and what the rest of the file takes."""

    def __init__(self, source: Source, specs: tuple[Spec, ...], template: Plan, parts, calibration: Calibration | None,
                 sensitivity: Sensitivity | None, seed: int, progress: Progress):
        self.source, self.specs, self.template, self.progress = source, specs, template, progress
        self.calibration, self.sensitivity, self.seed = calibration, sensitivity, seed
        layers = arch_layers(source)
        self.items = [item for item in stored_items(source, layers) if _kept(item.layer.component, parts)]
        self.planned = [item for item in self.items if item.layer.component == "unet" and not item.layer.dense]
        if not self.planned:
            raise PlanError(f"'{source.name}' has no layers to be planned: expected a UNet, with --parts among them")
        self.shapes = {item.layer.key: item.layer.shape for item in self.planned}
        self.settings = {"parts": sorted(set(parts)), "seed": seed}
        if calibration is not None:
            calibration.check(self.shapes, f"'{source.stem}'")
            self.settings["calibration"] = {"fingerprint": calibration.fingerprint, "pictures": calibration.count}
        if sensitivity is not None:
            sensitivity.check(source.architecture, self.shapes, source.name)
        self.power = sensitivity.noise_power if sensitivity else calibration.noise_power if calibration else None
        self.guess = guess({layer.key: layer.shape for layer in layers}, self.power or 1.0)
        self.sizes = [[stored_bytes(item.layer, spec, source.dtype(item.source_key).itemsize) for spec in specs]
                      for item in self.planned]

    def costs(self) -> list[LayerCosts]:
        """Of each planned layer."""
        factors = self.sensitivity.factors if self.sensitivity else None
        costs, found = Costs(self.specs, self.guess, self.calibration, factors, self.seed), {}
        stoppable = Stoppable(self.progress)
        self.progress.start("measuring layers", sum(item.layer.numel for item in self.planned))

        def work(item):
            stoppable.check()
            return costs.of(item.layer, item.load_float(self.source))

        with closing(as_done(work, self.planned, self._workers(), stoppable)) as results:
            for item, result in results:
                found[item.layer.key] = result
                self.progress.advance(item.layer.numel, item.layer.key)
        self.progress.finish()
        return [found[item.layer.key] for item in self.planned]

    def _workers(self) -> int:
        return 1 if self.calibration is not None else worker_count("cpu")           # layers share factored grams

    def choose(self, found: list[LayerCosts], size: int | None, bits: float | None) -> Planned:
        """The best plan within the budget."""
        self.table = [list(row.costs) for row in found]
        target = size if size is not None else math.floor(bits * sum(i.layer.numel for i in self.planned) / 8)
        overhead = self._file_overhead if size is not None else self._tables
        self._check_range(target, size is not None)
        picks, solution = self._economical(target, overhead)
        plan = self._plan(picks)
        nbytes = {item.layer.key: sizes[pick] for item, sizes, pick in zip(self.planned, self.sizes, picks)}
        weights = sum(item.layer.numel for item in self.planned)
        layers = tuple(PlannedLayer(item.layer, self.specs[pick], nbytes[item.layer.key], row[pick])
                       for item, row, pick in zip(self.planned, self.table, picks))
        known = self.power is not None
        snr = 10 * math.log10(self.power / solution.cost) if known and solution.cost > 0 else None
        total = file_bytes(self.source, self.items, plan, self.settings, nbytes)
        bits = 8 * (sum(nbytes.values()) + self._tables(picks)) / weights
        return Planned(plan, layers, self.source.name, bits, total, snr, solution.gap, not known,
                       self._exported(found), 0.0)

    def _exported(self, found: list[LayerCosts]) -> Sensitivity | None:
        if self.power is None:
            return None
        factors = {item.layer.key: row.factor for item, row in zip(self.planned, found)}
        base = self.sensitivity.base if self.sensitivity else self.calibration.base
        return Sensitivity(self.source.architecture, base, shapes_digest(self.shapes), self.power, factors)

    def _plan(self, picks: Sequence[int]) -> Plan:
        """All layers by name, in the model's order; the commonest spec stands for those that are not named."""
        weights = dict.fromkeys(self.specs, 0)
        for item, pick in zip(self.planned, picks):
            weights[self.specs[pick]] += item.layer.numel
        return replace(self.template, unet=max(weights, key=weights.get), layers=tuple(
            (item.layer.key, self.specs[pick]) for item, pick in zip(self.planned, picks)))

    def _tables(self, picks: Sequence[int]) -> int:
        """Bytes of the shared tables."""
        return sum(table_sizes({self.specs[pick] for pick in picks}).values())

    def _file_overhead(self, picks: Sequence[int]) -> int:
        """Bytes of the file besides these layers."""
        nbytes = {item.layer.key: sizes[pick] for item, sizes, pick in zip(self.planned, self.sizes, picks)}
        return file_bytes(self.source, self.items, self._plan(picks), self.settings, nbytes) - sum(nbytes.values())

    def _check_range(self, target: int, in_bytes: bool) -> None:
        """PlanError with the least and the most that can be reached."""
        overhead = self._file_overhead if in_bytes else self._tables
        ends = [[pick(range(len(self.specs)), key=lambda i, sizes=sizes: sizes[i]) for sizes in self.sizes]
                for pick in (min, max)]
        low, high = (sum(s[p] for s, p in zip(self.sizes, picks)) + overhead(picks) for picks in ends)
        if low <= target <= high:
            return
        weights = sum(item.layer.numel for item in self.planned)

        def shown(value: float) -> str:
            return f"{value:.0f} bytes" if in_bytes else f"{8 * value / weights:.3f} bits a weight"

        raise PlanError(f"'{self.source.name}' cannot be planned to {shown(target)}: with these rates the least is "
                        f"{shown(math.ceil(low))} and the most {shown(high)}")

    def _economical(self, target: int, overhead) -> tuple[list[int], Solution]:
        """Small models: leave out rates whose shared tables cost more than they bring."""
        allowed = list(range(len(self.specs)))
        best = self._fit(target, overhead, allowed)
        while sum(table_sizes(self.specs).values()) > SMALL_TABLES * target:
            used = sorted(set(best[0]))
            tries = [self._fit(target, overhead, [i for i in used if i != left]) for left in (None, *used)
                     if left is None or table_sizes([self.specs[left]])]
            better = min((t for t in tries if t is not None), key=lambda t: t[1].cost, default=None)
            if better is None or better[1].cost >= best[1].cost:
                break
            best = better
        return best

    def _fit(self, target: int, overhead, allowed: list[int]) -> tuple[list[int], Solution] | None:
        """The best picks among the allowed specs whose bytes and overhead stay within the target; None: none does."""
        if not allowed:
            return None
        costs, sizes = ([[row[i] for i in allowed] for row in table] for table in (self.table, self.sizes))
        least = [allowed[min(range(len(allowed)), key=lambda i, row=row: row[i])] for row in sizes]
        tables = sum(table_sizes([self.specs[i] for i in allowed]).values())
        rest, best = overhead(least) - self._tables(least) + tables, None
        for _ in range(TRIES):
            try:
                solution = solve(costs, sizes, target - rest)
            except PlanError:
                break
            picks = [allowed[pick] for pick in solution.picks]
            real = overhead(picks)
            fits = solution.nbytes + real <= target
            if fits and (best is None or solution.cost < best[1].cost):
                best = picks, solution
            if real == rest or fits and real > rest:
                break
            rest = real
        return best


def _kept(component: str, parts) -> bool:
    """Whether quantize stores tensors of this component, given its parts."""
    part = "te" if component in ("te1", "te2") else component
    return part in parts or part not in PARTS
