"""How far the testbed's pictures move when its weights are coded: ours and every peer, the same prompts and noise.

    python benchmarks/quality.py [--prompts 32] [--steps 12] [--methods REGEX] [--jobs 2]
                                 [--folder out/quality] [--out benchmarks/results] [--images docs/images]

Each student is the testbed with the weights that a method gives back, drawn from the same noise as the teacher: latent
PSNR after every step, SNR of the noise predictions on the teacher's own way, PSNR, SSIM and (where it is installed)
LPIPS of the pictures, attributes that a classifier reads, kernel distance of its features (128 pictures or more).
Intervals are 95 % bootstraps over the prompts. Against each peer our rate curve is read at the bits that it stores.

Writes quality.csv and quality.md, with matplotlib also plots. Needs the peers' packages for the peers
(`pip install vqpack[peers]`) and says which are absent. Students are kept in --folder, so a stopped run goes on.
Returns 1 if the instrument's own checks fail. One thread a job: the numbers do not depend on how many there are.
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import quality_report as report
import torch
from alias import RESULTS, ROOT, load_vqpack
from peers import NotHere
from quality_measure import Kept, Settings, draw_teacher, eight_bits, measure
from quality_students import Row, rows

load_vqpack()
# What the standard run leaves out: SDNQ's plain setting, whose weights "fp16-scales" gives at fewer bits; two of ours.
NOT_STANDARD = re.compile(r"sdnq-uint.$|ours-palette-(1|8)$")


def main(arguments: list[str] | None = None) -> int:
    args = _arguments(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)       # the peers' own chatter
    kept = Kept(args.folder, Settings(args.prompts, args.steps))
    if args.worker:
        return _serve(kept)
    chosen = [row for name, row in rows().items()
              if (re.search(args.methods, name) if args.methods else not NOT_STANDARD.search(name))]
    teacher = draw_teacher(kept)
    failed = _measure_all([row for row in chosen if kept.load(row) is None], kept, args)
    found = [one for one in map(kept.load, chosen) if one is not None]
    judged = report.judge_all(found, teacher, eight_bits(teacher.images), kept.settings)
    report.write_csv(args.out / "quality.csv", report.lines(judged, failed))
    (args.out / "quality.md").write_text(report.markdown(judged) + "\n", encoding="utf-8")
    _plot(judged, teacher, kept.settings, args.images)
    seconds = sum(one["seconds"] for one in found)
    print(f"{len(found)} students in {seconds / 60:.1f} minutes of one core, {len(failed)} failed: "
          f"{args.out / 'quality.csv'}")
    wrong = [f"{one.name} {name}" for one in judged for name, verdict in one.verdicts.items()
             if verdict.word.startswith("not ")]
    if wrong:
        print(f"the instrument is wrong: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--methods", default="", help="regular expression; default: the standard set")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes of one thread each")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "quality")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=None, help="folder of the plots; default: none are drawn")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.prompts < 2 or args.steps < 2 or args.jobs < 1:
        parser.error(f"prompts and steps must be at least 2 and jobs at least 1, got {args.prompts}, {args.steps} and "
                     f"{args.jobs}")
    try:
        re.compile(args.methods)
    except re.error as error:
        parser.error(f"--methods must be a regular expression, got '{args.methods}': {error}")
    return args


def _measure_all(todo: list[Row], kept: Kept, args) -> dict[str, str]:
    """Measure and keep -> those that failed, with the reason"""
    done = _Done(len(todo), args.jobs)
    if args.jobs == 1 or len(todo) < 2:
        for row in todo:
            done.tell(row.name, *_try(row, kept))
    else:
        _in_processes(todo, kept, args, done)
    order = [row.name for row in todo]
    return dict(sorted(done.failed.items(), key=lambda item: order.index(item[0])))


def _try(row: Row, kept: Kept) -> tuple[float, str]:
    """-> seconds of processor time, and the reason if it failed"""
    try:
        return measure(row, kept), ""
    except NotHere as error:
        return 0.0, f"absent: {error}"
    except Exception as error:  # noqa: BLE001  foreign code: whatever it raises is a result
        return 0.0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _Done:
    """Progress lines with the time left, and what failed."""

    def __init__(self, total: int, jobs: int):
        self.total, self.count, self.jobs, self.failed = total, 0, jobs, {}
        self._started, self._lock = time.monotonic(), threading.Lock()

    def tell(self, name: str, seconds: float, reason: str) -> None:
        """One student is finished."""
        with self._lock:
            self.count += 1
            if reason:
                self.failed[name] = reason
            left = (time.monotonic() - self._started) / self.count * (self.total - self.count)
            print(f"{self.count}/{self.total} {name}: {reason or f'{seconds:.0f} s of a core'}; "
                  f"about {left / 60:.0f} min left", flush=True)


def _in_processes(todo: list[Row], kept: Kept, args, done: _Done) -> None:
    """Each worker takes the next student until none is left; one that dies is replaced, its student has failed."""
    names: queue.SimpleQueue = queue.SimpleQueue()
    for row in todo:
        names.put(row.name)
    running: list[subprocess.Popen] = []
    threads = [threading.Thread(target=_feed, args=(names, kept, args, done, running), daemon=True)
               for _ in range(min(args.jobs, len(todo)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in running:
            process.kill()


def _feed(names: queue.SimpleQueue, kept: Kept, args, done: _Done, running: list[subprocess.Popen]) -> None:
    worker = None
    while True:
        try:
            name = names.get_nowait()
        except queue.Empty:
            break
        if worker is None:
            worker = _worker(kept, args)
            running.append(worker)
        answer = _ask(worker, name)
        if not answer:
            worker = None
        done.tell(name, *(answer or (0.0, "its process died")))
    if worker is not None:
        worker.stdin.close()
        worker.wait()


def _worker(kept: Kept, args) -> subprocess.Popen:
    command = [sys.executable, __file__, "--worker", "--prompts", str(args.prompts), "--steps", str(args.steps),
               "--folder", str(args.folder)]
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    with open(kept.folder / "workers.log", "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                                env={**os.environ, **one})


def _ask(worker: subprocess.Popen, name: str) -> tuple[float, str] | None:
    """-> seconds and reason, None where the process died"""
    try:
        worker.stdin.write(name + "\n")
        worker.stdin.flush()
        return tuple(json.loads(worker.stdout.readline()))
    except (OSError, ValueError):
        return None


def _serve(kept: Kept) -> int:
    """A worker: names in, [seconds, reason] out, until the parent closes the pipe or dies."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                          # what foreign code prints must not be taken for answers
    every = rows()
    for line in sys.stdin:
        print(json.dumps(_try(every[line.strip()], kept)), file=answers, flush=True)
    return 0


def _plot(judged: list[report.Judged], teacher, settings: Settings, folder: Path | None) -> None:
    if folder is None:
        return
    try:
        import quality_plots
    except ImportError as error:
        print(f"no plots: {error}")
        return
    quality_plots.draw(judged, teacher, settings, folder)


if __name__ == "__main__":
    sys.exit(main())
