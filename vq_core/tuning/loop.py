"""The steps: AdamW over the masters, the best on held-out pictures kept, a state that a stopped run goes on from."""
from __future__ import annotations

import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..progress import Progress
from .flips import FIRST_STEP, Flipper
from .lessons import Batch, Lessons, order, spread
from .loss import INTERVALS, Loss, relative_weights
from .settings import RATES, Tuning, gentler, schedule
from .student import Student

PROBE = 6                                  # steps timed before their number is chosen, the first two left out
SAVE_SECONDS, SAVE_COST = 60.0, 20         # between two states on disk; at least so many times what saving takes
DIVERGED = 4.0                             # times the loss at the start, on the held-out pictures
MEMORY = 0.95                              # of the running mean of gradient norms


@dataclass
class Course:
    """How far a run has come; everything but the tensors."""

    step: int = 0
    steps: int | None = None               # None: chosen by time, not yet known
    seconds: float = 0.0
    start: float = math.nan                # held-out losses
    best: float = math.inf
    best_step: int = 0
    rate: float = 1.0                      # times the learning rates, by the error at the start
    norm: float = 0.0                      # running mean of the gradient's norm
    history: list[tuple[int, float]] = field(default_factory=list)     # (step, held-out loss)
    weights: list[float] = field(default_factory=lambda: [1.0] * INTERVALS)
    flip_step: float = FIRST_STEP          # Flipper.step
    flipped: int = 0                       # code groups so far
    stopped: str = ""                      # why it ended early, a sentence


class Loop:
    """One fine-tune. state: its file; tell: called with sentences; looked: with the course whenever it was judged."""

    def __init__(self, student: Student, lessons: Lessons, tuning: Tuning, guidance: float, progress: Progress,
                 state: Path, tell: Callable[[str], None] = lambda _: None,
                 looked: Callable[[Course], None] = lambda _: None):
        self.student, self.lessons, self.tuning, self.progress = student, lessons, tuning, progress
        self.path, self.tell, self.looked, self.guidance = state, tell, looked, guidance
        rates = {kind: rate * tuning.rate for kind, rate in RATES.items()}
        self.optimizer = torch.optim.AdamW(student.groups(rates), betas=(0.9, 0.95), weight_decay=0.0)
        self.held_out = spread(lessons.held_out, tuning.held_out_calls)
        self.course, self.best = Course(steps=tuning.steps), student.values()
        self.power = lessons.power()
        self.flipper = Flipper(student, tuning.flips) if tuning.flips else None
        self._saved, self._cost, self._shown, self._whole = time.monotonic(), 0.0, 0.0, True
        self._load()

    def run(self) -> Course:
        """Learn; on return, and after an interruption, the best state is in the student. Raises Interrupted."""
        self._begun = time.monotonic() - self.course.seconds
        try:
            if not self.course.history:
                self._begin()
            self._work()
        except BaseException:
            if self._whole and self.flipper is None:   # gathered gradients are not saved: back to the last flip
                self._save()
            raise
        finally:
            self.student.take(self.best)
        return self.course

    def finished(self) -> Course:
        """The best of a stopped run, without another step."""
        self.student.take(self.best)
        return self.course

    def loss(self) -> Loss:
        """The loss as it is weighed now."""
        return Loss(self.tuning.loss, self.guidance, self.power, torch.tensor(self.course.weights))

    def _begin(self) -> None:
        losses, levels = self._look()
        if self.tuning.weighting == "relative":
            self.course.weights = relative_weights(losses, levels).tolist()
        self.course.rate = gentler(float(losses.double().mean()))
        self.course.start = self.course.best = self._mean(losses, levels)
        self.course.history.append((0, self.course.start))
        self._reassign()
        changed = self.student.changed()
        if changed:
            self.tell(f"{100 * changed:.2g} % of the code groups take a nearer entry before the first step.")
        self._show()

    def _work(self) -> None:
        course, tuning = self.course, self.tuning
        self.progress.start("tuning", course.steps or 1)
        self.progress.advance(course.step)
        times: list[float] = []
        self._judge_if_due()               # a run that was stopped before it came to that
        if self.flipper is not None:
            self.flipper.gather(self._turn())
        while not course.stopped and (course.steps is None or course.step < course.steps):
            started = time.monotonic()
            if not self._step():
                break
            course.step += 1
            course.seconds = time.monotonic() - self._begun
            times.append(time.monotonic() - started)
            if course.steps is None and len(times) >= PROBE:
                self._choose_steps(times[2:])
            self._tell()
            flipped = self.flipper is not None and course.step % tuning.flip_every == 0
            if flipped:
                self._flip()
            self._judge_if_due()
            if self._late():
                break
            if flipped or self.flipper is None:
                self._save_sometimes()
        self.progress.finish()

    def _turn(self) -> int:
        return self.course.step // self.tuning.flip_every

    def _flip(self) -> None:
        """Codes follow the gradients since the last time, if the loss of as many calls as a step has falls."""
        course, loss = self.course, self.loss()
        chosen = [self.lessons.train[i] for i in order(len(self.lessons.train), 2 * self.tuning.batch, course.step,
                                                       self.tuning.seed + 1)]

        def judge() -> float:
            total = 0.0
            with torch.no_grad():
                for batch in self._batches(chosen):
                    losses = loss.each(self._ask(batch), batch.answers).cpu()
                    total += float((losses * loss.of_levels(batch.levels)).sum())
            return total / len(chosen)

        self.flipper.step = course.flip_step
        done = self.flipper.flip(self._turn() - 1, judge)
        course.flip_step, course.flipped = self.flipper.step, course.flipped + done.flipped
        self.flipper.gather(self._turn())

    def _batches(self, chosen: list[tuple[int, int]]) -> Iterator[Batch]:
        yield from self.lessons.batches(chosen, self.tuning.together)

    def _choose_steps(self, times: list[float]) -> None:
        """As many steps as fit, the looks at held-out pictures counted."""
        course, tuning = self.course, self.tuning
        look = sum(times) / len(times) / tuning.batch / 3 * len(self.held_out)    # no backward pass: a third
        left = 60 * tuning.minutes - course.seconds - tuning.checks * (look + self._shown)
        course.steps = course.step + max(1, int(left / (sum(times) / len(times))))
        self.progress.start("tuning", course.steps)
        self.progress.advance(course.step)
        self.tell(f"{course.steps} steps of {tuning.batch} calls fit into {tuning.minutes:g} minutes.")

    def _late(self) -> bool:
        return self.tuning.minutes is not None and self.course.seconds >= 60 * self.tuning.minutes

    def _tell(self) -> None:
        course = self.course
        gained = 10 * math.log10(course.start / course.best) if course.best > 0 else 0.0
        self.progress.advance(1, f"held-out error {gained:+.2f} dB better")

    def _step(self) -> bool:
        """One step -> False where the loss was not finite."""
        tuning, course, loss = self.tuning, self.course, self.loss()
        self.student.sharpen(course.step / course.steps if course.steps else 0.0)
        chosen = [self.lessons.train[i] for i in order(len(self.lessons.train), tuning.batch, course.step, tuning.seed)]
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._batches(chosen):
            said = self._ask(batch)
            value = (loss.each(said, batch.answers) * loss.of_levels(batch.levels).to(said.device)).sum() / len(chosen)
            value.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        if not math.isfinite(norm):
            course.stopped = f"the loss was not finite at step {course.step + 1}, so tuning ended there"
            return False
        self._descend(parameters, norm)
        return True

    def _ask(self, batch: Batch) -> torch.Tensor:
        """The student's answers, on a GPU computed in bfloat16 where it can."""
        device = self.student.unet.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and torch.cuda.is_bf16_supported()):
            return batch.ask(self.student.unet)

    def _descend(self, parameters: list[torch.nn.Parameter], norm: float) -> None:
        tuning, course = self.tuning, self.course
        course.norm = norm if not course.norm else MEMORY * course.norm + (1 - MEMORY) * min(norm, 10 * course.norm)
        if norm > tuning.clip * course.norm:
            for parameter in parameters:
                parameter.grad.mul_(tuning.clip * course.norm / norm)
        share = schedule(course.step, course.steps, tuning.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * share * course.rate
        self._whole = False                # from here to the end a state on disk would be half a step
        self.optimizer.step()
        self.student.keep_in_range()
        self._reassign()
        self._whole = True

    def _reassign(self) -> None:
        """Codes follow the books; a latent whose code changed forgets its moments, those of the others stay."""
        for latent, changed in self.student.reassign().items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in self.optimizer.state.get(latent, {}):
                    self.optimizer.state[latent][moment].masked_fill_(changed, 0.0)

    def _look(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Unweighted losses and levels of the held-out calls, with the student as a file would hold it."""
        loss, losses, levels = self.loss(), [], []
        with torch.no_grad(), self.student.as_stored():
            for batch in self._batches(self.held_out):
                losses.append(loss.each(self._ask(batch), batch.answers).cpu())
                levels.append(batch.levels)
                self.progress.advance()
        return torch.cat(losses), torch.cat(levels)

    def _mean(self, losses: torch.Tensor, levels: torch.Tensor) -> float:
        return float((losses.double() * self.loss().of_levels(levels)).mean())

    def _judge_if_due(self) -> None:
        course = self.course
        if course.steps is None or course.history[-1][0] == course.step:
            return
        if course.step == course.steps or self._late() or course.step % max(1, course.steps // self.tuning.checks) == 0:
            self._judge()

    def _judge(self) -> None:
        """Look at the held-out pictures; keep the best, stop where it gets much worse."""
        course = self.course
        value = self._mean(*self._look())
        course.history.append((course.step, value))
        if value < course.best:
            course.best, course.best_step, self.best = value, course.step, self.student.values()
        elif not value < DIVERGED * course.start:
            course.stopped = (f"the held-out error was {value / course.start:.1f} times the error at the start at step "
                              f"{course.step}, so tuning ended there: a lower --rate may help")
        self._show()

    def _show(self) -> None:
        started = time.monotonic()
        self.looked(self.course)
        self._shown = time.monotonic() - started

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved >= max(SAVE_SECONDS, SAVE_COST * self._cost):
            self._save()

    def _save(self) -> None:
        """The whole state; complete or the one before."""
        started, arrays = time.monotonic(), {}
        moments = self.optimizer.state
        for name, value in self.student.values().items():
            arrays[f"now.{name}"], arrays[f"best.{name}"] = value, self.best[name]
        for name, item in self.student.trainable.items():
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                if item.parameter in moments:
                    arrays[f"{moment}.{name}"] = moments[item.parameter][moment]
        part = self.path.with_name(self.path.name + ".part")
        with open(part, "wb") as file:
            np.savez(file, course=np.array(_pack(self.course)),
                     **{name: value.detach().cpu().numpy() for name, value in arrays.items()})
        os.replace(part, self.path)
        self._saved, self._cost = time.monotonic(), time.monotonic() - started

    def _load(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return
        names = self.student.values()
        if any(f"{what}.{name}" not in found for name in names for what in ("now", "best")):
            return
        steps = self.course.steps
        self.course = _unpack(str(found["course"]))
        self.course.steps = steps if steps is not None else self.course.steps
        self.best = {name: torch.from_numpy(found[f"best.{name}"]) for name in names}
        self.student.take({name: torch.from_numpy(found[f"now.{name}"]) for name in names})
        for name, item in self.student.trainable.items():
            if f"exp_avg.{name}" in found:
                moments = {moment: torch.from_numpy(found[f"{moment}.{name}"]) for moment in
                           ("exp_avg", "exp_avg_sq", "step")}
                place = item.parameter.device
                self.optimizer.state[item.parameter] = {
                    moment: value if moment == "step" else value.to(place) for moment, value in moments.items()}


def _pack(course: Course) -> str:
    return json.dumps(vars(course))


def _unpack(text: str) -> Course:
    data = json.loads(text)
    return Course(**{**data, "history": [tuple(item) for item in data["history"]]})
