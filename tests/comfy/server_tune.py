"""Tune (VQ) in a real server, stopped, gone on with, its file loaded and drawn with: usage server_tune.py HOST BASE
FOLDER, the last one with configurations for diffusers.
"""
from __future__ import annotations

import json
import sys

import aiohttp
import server
from server import BASE, Browser, files

TUNE = {"file": "coarse.safetensors", "file_name": ["ready", 0], "teacher": "whole.safetensors", "preset": "lightning",
        "prompts": "a red fox in the snow\ntwo cats", "prompt_file": "(none)", "count": 0, "minutes": 30.0, "name": "",
        "tuning_steps": 4, "rate": 2.0, "batch": 2, "width": 64, "height": 64, "steps": 2}
SAMPLER = {"model": ["load", 0], "positive": ["cond", 0], "negative": ["cond", 0], "latent_image": ["empty", 0],
           "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
PROMPT = {"ready": ("Ready", {"name": "coarse.safetensors", "folder": sys.argv[3]}), "tune": ("VQTune", TUNE),
          "load": ("VQDiffusionModelLoader", {"file": "coarse.safetensors", "memory_mode": "compressed",
                                              "file_name": ["tune", 0]}),
          "cond": ("ZeroConditioning", {}), "sample": ("KSampler", SAMPLER),
          "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
          "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": "drawn"})}


async def story(url: str) -> dict:
    """Stop it while it learns, go on with the whole graph, run it once more."""
    prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in PROMPT.items()}
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await server.wait_until_up(browser)
        found = {"stopped": await browser.stop({name: prompt[name] for name in ("ready", "tune")}, "tuning")}
        found["kept"] = files()
        found["done"] = await browser.run(prompt)
        found["files"], found["drawn"] = files(), len(list((BASE / "output").rglob("drawn*")))
        found["again"] = (await browser.run(prompt))["executed"]
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(server.told(story)))
