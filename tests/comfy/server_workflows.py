"""The example workflows in a real server, each run on a small checkpoint: usage server_workflows.py HOST BASE."""
from __future__ import annotations

import json

import aiohttp
import server
from server import BASE, Browser, files
from server_calibrate import EXAMPLES, as_prompt

CHECKPOINT, LORA = "whole.safetensors", "lora1.safetensors"
MADE = "quantized.safetensors"
# What makes them small: widget -> value, by node.
SMALL = {"CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT}, "EmptyLatentImage": {"width": 128, "height": 128},
         "KSampler": {"steps": 2}, "LoraLoader": {"lora_name": LORA}, "LoadImage": {"image": "picture.png"},
         "ControlNetLoader": {"control_net_name": "control.safetensors"},
         "VQQuantizeCheckpoint": {"checkpoint": CHECKPOINT, "name": "quantized", "method": "palette"},
         "VQQuantizeModel": {"method": "palette"}, "VQCheckpointLoader": {"file": MADE}}
# The first makes the file that the others load.
ORDER = ("quantize", "load_and_sample", "lora_stack", "controlnet", "inpaint", "two_resident_models",
         "quantize_with_lora")


def made_small(prompt: dict) -> dict:
    """The same graph with small pictures, few steps and the files that are there."""
    return {key: {**node, "inputs": {**node["inputs"], **SMALL.get(node["class_type"], {})}}
            for key, node in prompt.items()}


async def story(url: str) -> dict:
    found = {"runs": {}}
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await server.wait_until_up(browser)
        found["templates"] = await browser.get("/workflow_templates")
        for name in ORDER:
            info = await browser.get("/object_info")
            workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
            done = await browser.run(made_small(as_prompt(workflow, info)))
            found["runs"][name] = {"end": done["end"], "message": done["message"], "pictures": [
                image["filename"] for shown in done["shown"].values() for image in shown.get("images", ())
                if image["type"] == "output"]}
        personal = json.loads((EXAMPLES / "personalize.json").read_text(encoding="utf-8"))
        found["personalize"] = {node["class_type"]: node["inputs"] for node in
                                as_prompt(personal, await browser.get("/object_info")).values()}
        found["thumbnails"] = {path.stem: await browser.status(f"/api/workflow_templates/vq-pack/{path.stem}.jpg")
                               for path in EXAMPLES.glob("*.json")}
        found["files"], found["outputs"] = files(), files(BASE / "output")
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(server.told(story)))
