"""The pack's routes in a real server, asked for a thousand names: usage server_routes.py HOST BASE."""
from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import time
from urllib.parse import quote

import aiohttp
import server
from server import BASE, VQ_FOLDER, Browser, files, load, quantize
from yarl import URL

NAMES = 1000
CHECKPOINTS = BASE / "models" / "checkpoints"
SECRET = BASE / "secret.safetensors"       # a good checkpoint outside the model folders
STEPS = ("../", "..\\", "./", "/", "\\", "....//", "..%2f", "%2e%2e/", "%252e%252e%252f", "..%c0%af", "～/", "sub/")
ODD = ("\0", "\n", "\u202e", "\u2028", " ", ".", ":", "*", "?", "CON", "NUL.safetensors", "é", "e\u0301", "ａ",
       "\U0001f600")
TARGETS = ("tiny.safetensors", "made.safetensors", "secret.safetensors", "server.log", "etc/passwd", "user/test.db", "")


def fuzzed(listed: list[str]) -> list[str]:
    """Names of every bad kind, and the good ones between them."""
    chance, out = random.Random(0), [*listed, str(SECRET), f"file://{SECRET}", "a" * 100_000, "../" * 2000, "\0" * 500]
    while len(out) < NAMES:
        steps = "".join(chance.choice(STEPS) for _ in range(chance.randint(0, 6)))
        name = steps + chance.choice(TARGETS) + "".join(chance.choice(ODD) for _ in range(chance.randint(0, 2)))
        out.append(name.swapcase() if chance.random() < 0.1 else name)
    return out


async def asked(session, url: str, route: str, field: str, name: str, extra: str = "") -> int:
    """Status of a route for a name as it is, percent-encoded once; 0 where the connection was closed."""
    address = f"{url}/vqpack/{route}?{field}={quote(name.encode('utf-8', 'surrogatepass'), safe='')}{extra}"
    try:
        async with session.get(URL(address, encoded=True)) as answer:
            body = await answer.text()
            assert answer.status != 200 or "root:x:0" not in body
            return answer.status
    except aiohttp.ClientError:
        return 0


def snapshot() -> dict[str, tuple]:
    """Every file of the base folder that a route could have touched."""
    kept = (BASE / "models", BASE / "input", BASE / "output", SECRET)
    paths = [path for root in kept for path in ([root] if root.is_file() else root.rglob("*"))]
    return {str(path): (os.lstat(path).st_mtime_ns, os.lstat(path).st_size) for path in paths}


async def fuzz(session, url: str, info: dict) -> dict:
    """Names that were answered though they are not listed, and listed ones that were not."""
    sources = server.seen(info, "VQQuantizeCheckpoint", "checkpoint")
    made = server.seen(info, "VQReport", "file")
    sources, made = (spec[0] if isinstance(spec[0], list) else spec[1]["options"] for spec in (sources, made))
    wrong, answered = [], 0
    good = "&checkpoint=tiny.safetensors"
    main = (("estimate", "checkpoint", sources, ""), ("sample", "checkpoint", sources, "&method=uniform&bits=4"),
            ("report", "file", made, ""))
    kept = (("estimate", "plan", ["", "(none)"], good), ("estimate", "calibration", ["", "(none)"], good))
    for number, name in enumerate(fuzzed([*sources, *made])):
        for route, field, listed, extra in main if number % 10 else (*main, *kept):
            status = await asked(session, url, route, field, name, extra)
            answered += status == 200
            if (status == 200) != (name in listed) or status >= 500:
                wrong.append([route, field, name[:80], status])
    return {"wrong": wrong, "answered": answered, "sources": sources, "made": made}


async def methods(session, url: str) -> list[int]:
    """Status of everything but GET, on every route."""
    out = []
    for route in ("estimate", "speed", "sample", "report", "prompts"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            async with session.request(method, f"{url}/vqpack/{route}?file=made.safetensors") as answer:
                out.append(answer.status)
    return out


async def estimates(session, url: str) -> dict:
    """What is predicted of the tiny checkpoint and of one of SDXL's size that is all holes, and how long it takes."""
    out = {}
    for name, query in (("tiny", "checkpoint=tiny.safetensors&method=palette&bits=3"),
                        ("sdxl", "checkpoint=holes.safetensors"), ("sdxl_again", "checkpoint=holes.safetensors&bits=2"),
                        ("odd_method", "checkpoint=tiny.safetensors&method=zip"),
                        ("odd_bits", "checkpoint=tiny.safetensors&bits=many"),
                        ("no_such_rate", "checkpoint=tiny.safetensors&bits=7"), ("none", "")):
        started = time.monotonic()
        async with session.get(f"{url}/vqpack/estimate?{query}") as answer:
            out[name] = {"status": answer.status, "took": time.monotonic() - started, **await answer.json()}
    out["took"] = [await seconds(session, f"{url}/vqpack/estimate?checkpoint=holes.safetensors&bits={bits}")
                   for bits in (1, 2.5, 4, 5, 6)]
    async with session.get(f"{url}/vqpack/speed?method=palette&bits=3") as answer:
        out["speed"] = await answer.json()
    async with session.get(f"{url}/vqpack/estimate?checkpoint=tiny.safetensors&method=palette&bits=3") as answer:
        out["timed"] = await answer.json()
    for name, query in (("sampled", "method=palette&bits=3"), ("vector_code", "method=additive&bits=3")):
        async with session.get(f"{url}/vqpack/sample?checkpoint=tiny.safetensors&{query}") as answer:
            out[name] = await answer.json()
        async with session.get(f"{url}/vqpack/estimate?checkpoint=tiny.safetensors&{query}") as answer:
            out[f"{name}_then"] = await answer.json()
    async with session.get(f"{url}/vqpack/report?file=made.safetensors&download=1") as answer:
        out["report"] = {"text": (await answer.text())[:1000], "headers": dict(answer.headers)}
    return out


async def seconds(session, address: str) -> float:
    started = time.monotonic()
    async with session.get(address) as answer:
        assert answer.status == 200 and await answer.read()
    return time.monotonic() - started


async def links(browser: Browser) -> dict:
    """A result named like a link: what the link leads to stays as it is. And two jobs on one name."""
    outside = BASE / "outside.safetensors"
    outside.write_bytes(b"not yours")
    (VQ_FOLDER / "linked.safetensors").symlink_to(outside)
    done = await browser.run({"make": quantize("palette", 3.0, "linked")})
    first, second = await asyncio.gather(browser.run({"make": quantize("palette", 2.0, "same")}),
                                         browser.run({"make": quantize("palette", 4.0, "same")}))
    return {"end": done["end"], "outside": outside.read_bytes().decode(), "both": [first["end"], second["end"]],
            "files": files(), "shown": done["shown"].get("make")}


def comparison(seed: int) -> dict:
    """Compare (VQ) of the checkpoint and the file made of it."""
    inputs = {"model_a": ["stock", 0], "model_b": ["vq", 0], "positive": ["cond", 0], "negative": ["cond", 0],
              "seed": seed, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "width": 128,
              "height": 128, "batch_size": 2, "vae": ["stock", 2]}
    return {"stock": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny.safetensors"}},
            "vq": load("made.safetensors"), "cond": {"class_type": "ZeroConditioning", "inputs": {}},
            "compare": {"class_type": "VQCompare", "inputs": inputs}}


async def compared(browser: Browser, session, url: str) -> dict:
    """What the panel and the report know before and after Compare (VQ) ran, and where nothing can be kept."""
    async def seen() -> dict:
        estimate = await browser.get("/vqpack/estimate?checkpoint=tiny.safetensors&method=palette&bits=2")
        pages = []
        for more in ("", "&download=1"):
            async with session.get(f"{url}/vqpack/report?file=made.safetensors{more}") as answer:
                pages.append((await answer.text()).split("<h2>Weight error</h2>")[0])
        return {"compared": estimate["compared"], "pictures": [page.count("<figure>") for page in pages],
                "words": pages[0].split("<h2>Pictures</h2>")[-1].split("<section")[0], "same": pages[0] == pages[1]}

    private = BASE / "user" / "__vqpack"
    found = {"before": await seen(), "run": await browser.run(comparison(5)), "after": await seen(),
             "again": await browser.run(comparison(6)), "twice": await seen()}
    found["kept"] = sorted(path.suffix for path in private.rglob("*") if path.is_file())
    found["paths"] = [path.name for path in private.rglob("*.json") if str(BASE) in path.read_text(encoding="utf-8")]
    found["served"] = await browser.status(f"/userdata/..%2F__vqpack%2F{quote(found['kept'][0])}")
    shutil.rmtree(private)
    private.write_bytes(b"in the way")
    found["unwritable"] = (await browser.run(comparison(7)))["end"]
    found["log"] = [line for line in (BASE / "server.log").read_text(encoding="utf-8").splitlines()
                    if "cannot be kept" in line]
    return {**found, "afterwards": await seen()}


async def while_busy(browser: Browser) -> list[dict]:
    """What speed and sample say of a rate not asked for yet, while a job of some seconds runs."""
    job = asyncio.create_task(browser.run({"make": quantize("trellis", 2.0, "busy")}))
    while not (await browser.get("/queue"))["queue_running"]:
        await asyncio.sleep(0.02)
    query = "checkpoint=tiny.safetensors&method=uniform&bits=8"
    found = [await browser.get(f"/vqpack/{route}?{query}") for route in ("sample", "speed")]
    await job
    return found


async def story(url: str) -> dict:
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await server.wait_until_up(browser)
        made = await browser.run({"make": quantize("palette", 3.0, "made")})
        assert made["end"] == "execution_success", made
        os.link(CHECKPOINTS / "tiny.safetensors", SECRET)
        found, before = {"size": (VQ_FOLDER / "made.safetensors").stat().st_size}, snapshot()
        found["fuzz"] = await fuzz(session, url, await browser.get("/object_info"))
        found["methods"] = await methods(session, url)
        found["estimates"] = await estimates(session, url)
        found["untouched"] = snapshot() == before
        found["comparison"] = await compared(browser, session, url)
        found["links"] = await links(browser)
        found["busy"] = await while_busy(browser)
        (CHECKPOINTS / "holes.safetensors").unlink()
        found["gone"] = await asked(session, url, "estimate", "checkpoint", "holes.safetensors")
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(server.told(story)))
