"""Quantize Model and Save Checkpoint through a real server: usage server_saving.py HOST BASE, as server.py."""
from __future__ import annotations

import json

import aiohttp
import server
from server import VQ_FOLDER, Browser, files, load, quantize

MODEL, VAE = ["load", 0], ["load", 2]


def quantize_model(name: str, model: list = MODEL, bits: float = 3.0) -> dict:
    inputs = {"model": model, "vae": VAE, "bits": bits, "method": "uniform", "text_encoder_bits": "6", "name": name}
    return {"class_type": "VQQuantizeModel", "inputs": inputs}


def graph(**nodes: dict) -> dict:
    """A VQ model that is made first, and nodes behind it."""
    return {"make": quantize("uniform", 4.0, "first"), "load": load("(no VQ file found)", ["make", 0]), **nodes}


async def story(url: str) -> dict:
    """Make a VQ file, merge it with itself, quantize that, load the result; save; run again; without the files."""
    found = {}
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await server.wait_until_up(browser)
        merge = {"class_type": "ModelMergeSimple", "inputs": {"model1": MODEL, "model2": MODEL, "ratio": 0.5}}
        nodes = {"merge": merge, "code": quantize_model("second", ["merge", 0]),
                 "save": {"class_type": "VQSaveCheckpoint", "inputs": {"model": MODEL, "vae": VAE, "name": "third"}}}
        found["first"] = await browser.run(graph(**nodes))
        found["files"] = files()
        found["again"] = await browser.run(graph(**nodes))
        for name in ("second", "third"):
            (VQ_FOLDER / f"{name}.safetensors").unlink()
        found["after_loss"] = await browser.run(graph(**nodes))
        found["files_again"] = files()
        found["stopped"] = await browser.stop(graph(code=quantize_model("stopped", bits=5.0)), "coding")
        refused = {"class_type": "VQSaveCheckpoint", "inputs": {"model": ["dense", 0], "name": "no"}}
        dense = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny.safetensors"}}
        found["refused"] = await browser.run({"dense": dense, "save": refused})
        found["alive"] = await browser.run(graph(code=quantize_model("second")))
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(server.told(story)))
