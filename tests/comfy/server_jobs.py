"""What /vqpack/job says of jobs in a real server, from any window: usage server_jobs.py HOST BASE, as server.py."""
from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import server
from server import Browser, files, hold, inspect, quantize

NODE = "vqpack_quantize"                   # as in nodes/jobs.py
ENDED = ("done", "stopped", "failed", "unknown")


async def queue(browser: Browser, prompt: dict) -> str:
    return (await browser.post("/prompt", {"prompt": prompt, "client_id": "a window that was closed"}))["prompt_id"]


async def job(browser: Browser, name: str) -> dict:
    return await browser.get(f"/vqpack/job?id={name}")


async def followed(browser: Browser, name: str, stop: str = "") -> dict:
    """Every answer until the job has ended; stop: once its text has this in it, it is interrupted."""
    seen, end = [], time.monotonic() + server.PROMPT_SECONDS
    while time.monotonic() < end:
        found = await job(browser, name)
        seen.append(found)
        if found["state"] in ENDED:
            break
        if stop and stop in found["text"]:
            await browser.post("/interrupt", {"prompt_id": name})
        await asyncio.sleep(0.05)
    shares = [one["share"] for one in seen]
    return {"last": seen[-1], "states": list(dict.fromkeys(one["state"] for one in seen)),
            "rising": shares == sorted(shares),
            "texts": sorted({one["text"].split(",")[0].split("\n")[0] for one in seen}),
            "pictures": sorted({one["picture"].partition(",")[0] for one in seen})}


async def story(url: str) -> dict:
    found = {}
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await server.wait_until_up(browser)
        first = await queue(browser, {NODE: quantize("trellis", 2.0, "made")})
        second = await queue(browser, {NODE: quantize("palette", 4.0, "later")})
        found["later"] = await job(browser, second)
        found["done"], found["then"] = await followed(browser, first), await followed(browser, second)
        found["again"] = await job(browser, first)                     # whoever asks, whenever
        found["cached"] = await followed(browser, await queue(browser, {NODE: quantize("trellis", 2.0, "made")}))
        await browser.run(hold("coding"))
        third = await queue(browser, {NODE: quantize("palette", 2.0, "no")})
        found["stopped"] = await followed(browser, third, "(held)")
        await browser.run(hold(""))
        found["failed"] = await followed(browser, await queue(browser, {NODE: quantize("trellis", 7.0, "never")}))
        found["other"] = await followed(browser, await queue(browser, {"look": inspect("made.safetensors")}))
        found["unknown"] = [await job(browser, name) for name in ("", "no-such-job", "../../etc/passwd", first + "0")]
        found["long"] = await browser.status("/vqpack/job?id=" + "a" * 2000)
        found["files"] = files()
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(server.told(story)))
