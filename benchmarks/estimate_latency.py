"""How long the bit-width panel's estimate takes for a 6.9 GB checkpoint, in a real ComfyUI: estimate_latency.py HOST

    python benchmarks/estimate_latency.py HOST [--servers 5] [--rates 50] [--out benchmarks/results]

Runs under ComfyUI's own Python. Each server is new and is asked once as soon as it answers anything (`at once`), each
second one two seconds later instead, as a page has to load first (`first`); then each is asked for other rates, methods
and text encoders, none twice (`new`), and for the first again (`again`). Seconds of the wall, seen by the client; the
server's own processor time and the machine's load beside them. The checkpoint is all header. Writes
estimate_latency.json; the bar is 0.3 s of the wall.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from alias import RESULTS, ROOT, machine
from make_checkpoint import read_shapes, write_holes

BAR_SECONDS = 0.3
PAGE_SECONDS = 2.0                         # from a server's first answer to a person's first look at a panel, at least
CHECKPOINT = "holes.safetensors"
RATES = {"trellis": (1, 1.5, 2, 2.5, 3.5, 4, 5, 6), "palette": (1, 2, 3, 4, 5, 6, 8)}
FIRST = {"bits": 3, "method": "trellis", "text_encoder_bits": 6}


def main() -> int:
    """Measure, print, write; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", help="folder of ComfyUI")
    parser.add_argument("--servers", type=int, default=6)
    parser.add_argument("--rates", type=int, default=50, help="asked of every server")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    found = {"at once": [], "first": [], "new": [], "again": []}
    for number in range(args.servers):
        for name, times in _one_server(args.host, args.rates, PAGE_SECONDS * (number % 2)).items():
            found[name] += times
    rows = {name: _summary(times) for name, times in found.items()}
    for name, row in rows.items():
        print(f"{name:8s} {row['count']:4d} asked: median {row['median']:.3f} s, worst {row['worst']:.3f} s; processor "
              f"time median {row['processor_median']:.3f} s, worst {row['processor_worst']:.3f} s")
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "load": [round(load, 1), round(os.getloadavg()[0], 1)], "bar_seconds": BAR_SECONDS,
              **rows}
    (args.out / "estimate_latency.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(max(row["worst"] for row in rows.values()) > BAR_SECONDS)


def _summary(times: list[tuple[float, float]]) -> dict:
    wall, processor = zip(*times, strict=True)
    return {"count": len(times), "median": round(statistics.median(wall), 4), "worst": round(max(wall), 4),
            "processor_median": round(statistics.median(processor), 4), "processor_worst": round(max(processor), 4)}


def _one_server(host: str, rates: int, pause: float) -> dict[str, list]:
    """-> name in the result -> [(seconds of the wall, of the server's processor)]"""
    with tempfile.TemporaryDirectory() as base:
        for name in ("models/checkpoints", "custom_nodes", "input", "output", "temp", "user"):
            (Path(base) / name).mkdir(parents=True)
        (Path(base) / "custom_nodes" / "vq-pack").symlink_to(ROOT, target_is_directory=True)
        write_holes(read_shapes("base"), Path(base) / "models" / "checkpoints" / CHECKPOINT)
        server, port = _tests_server(host, base), 0
        process = server.start(port := server.free_port())
        try:
            return asyncio.run(_asked(server, process.pid, f"http://127.0.0.1:{port}", rates, pause))
        finally:
            server.end(process)


def _tests_server(host: str, base: str):
    """tests/comfy/server.py, which takes its folders from the command line, for this folder."""
    sys.modules.pop("server", None)
    given, sys.argv = sys.argv, ["server.py", host, base]
    sys.path.insert(0, str(ROOT / "tests" / "comfy"))
    try:
        import server
    finally:
        sys.path.pop(0)
        sys.argv = given
    return server


async def _asked(server, pid: int, url: str, rates: int, pause: float) -> dict[str, list]:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        await _until_up(session, url)
        await asyncio.sleep(pause)
        others = [{"bits": bits, "method": method, "text_encoder_bits": encoders}
                  for encoders, (method, listed) in product((6, 8, 4, 16), RATES.items()) for bits in listed]
        first = await _ask(session, url, pid, FIRST)
        return {"first" if pause else "at once": [first],
                "new": [await _ask(session, url, pid, query) for query in others[:rates]],
                "again": [await _ask(session, url, pid, FIRST)]}


async def _until_up(session, url: str) -> None:
    """Wait for the first answer, looking often: what is asked at once must not profit from a rest."""
    import aiohttp

    while True:
        try:
            async with session.get(f"{url}/system_stats") as answer:
                return await answer.read()
        except aiohttp.ClientError:
            await asyncio.sleep(0.02)


async def _ask(session, url: str, pid: int, query: dict) -> tuple[float, float]:
    spent, started = _processor_seconds(pid), time.perf_counter()
    async with session.get(f"{url}/vqpack/estimate", params={"checkpoint": CHECKPOINT, **query}) as answer:
        found = await answer.json()
    took = time.perf_counter() - started
    if answer.status != 200 or not found["file_bytes"]:
        raise SystemExit(f"the server answered {answer.status}: {found}")
    return took, _processor_seconds(pid) - spent


def _processor_seconds(pid: int) -> float:
    """Of all threads of a process, from Linux's /proc/PID/schedstat of each."""
    return sum(int(task.joinpath("schedstat").read_text().split()[0])
               for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


if __name__ == "__main__":
    sys.exit(main())
