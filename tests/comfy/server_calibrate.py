"""The example workflows in a real server, one of them run from prompts to a comparison: usage server_calibrate.py HOST
BASE.
"""
from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import server
from server import BASE, Browser, files

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
WORKFLOW, TUNING = EXAMPLES / "quantize_from_prompts.json", EXAMPLES / "quantize_and_tune.json"
MADE = BASE / "models" / "vqpack"
CHECKPOINT = "whole.safetensors"
# What makes it small: widget -> value, by node.
SMALL = {"CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT}, "EmptyLatentImage": {"width": 128, "height": 128},
         "VQCalibrate": {"prompts": "a red fox", "width": 128, "height": 128, "steps": 2, "timesteps": 1, "cfg": 1.0},
         "VQPlan": {"checkpoint": CHECKPOINT, "target": "bits a weight", "amount": 4.0, "method": "uniform",
                    "text_encoder_bits": "16"},
         "VQQuantizeCheckpoint": {"checkpoint": CHECKPOINT, "name": "calibrated"}, "KSampler": {"steps": 1},
         "VQCompare": {"steps": 1, "width": 128, "height": 128}}


def as_prompt(workflow: dict, info: dict) -> dict:
    """A workflow as the browser saves it -> what it would queue; every widget value must have its widget."""
    links, prompt = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}, {}
    for node in workflow["nodes"]:
        known = info[node["type"]]
        specs = {**known["input"].get("required", {}), **known["input"].get("optional", {})}
        values, inputs = list(node["widgets_values"]), {}
        for name, spec in specs.items():
            options = spec[1] if len(spec) > 1 else {}
            widget = isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
            if widget and not options.get("forceInput"):
                inputs[name] = values.pop(0)
                if options.get("control_after_generate") or name in ("seed", "noise_seed"):
                    assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
        assert not values, f"{node['type']} has values without widgets: {values}"
        for entry in node["inputs"]:
            assert entry["name"] in specs, f"{node['type']} has no input {entry['name']}"
            if entry["link"] is not None:
                inputs[entry["name"]] = links[entry["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def made_small(prompt: dict) -> dict:
    """The same graph with small pictures, few steps and the checkpoint that is there."""
    return {key: {**node, "inputs": {**node["inputs"], **SMALL.get(node["class_type"], {})}}
            for key, node in prompt.items()}


def number(prompt: dict, kind: str) -> str:
    return next(key for key, node in prompt.items() if node["class_type"] == kind)


async def story(url: str) -> dict:
    """Stop the calibration, go on with the whole graph, run it once more, look at what is listed."""
    found = {}
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await server.wait_until_up(browser)
        info = await browser.get("/object_info")
        found["templates"] = await browser.get("/workflow_templates")
        workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        whole = made_small(as_prompt(workflow, info))
        tuning = as_prompt(json.loads(TUNING.read_text(encoding="utf-8")), info)
        found["tuning"] = {node["class_type"]: node["inputs"] for node in tuning.values()}
        drawn = {key: whole[key] for key in (number(whole, "CheckpointLoaderSimple"), number(whole, "VQCalibrate"))}
        found["stopped"] = await browser.stop(drawn, "capturing")
        found["kept"] = files(MADE)
        found["whole"] = await browser.run(whole)
        found["numbers"] = {kind: number(whole, kind) for kind in ("VQCalibrate", "VQPlan", "VQCompare", "SaveImage")}
        found["made"], found["files"] = files(MADE), files()
        found["again"] = (await browser.run(whole))["executed"]
        info = await browser.get("/object_info")
        found["listed"] = {name: str(info["VQQuantizeCheckpoint"]["input"]["optional"][name])
                           for name in ("calibration", "plan")}
        chosen = {**whole[number(whole, "VQQuantizeCheckpoint")]["inputs"], "calibration": "whole.vqcal.safetensors",
                  "plan": "whole-4bits.vqplan.json"}
        by_name = {name: value for name, value in chosen.items() if not name.endswith("_file")}
        found["by_name"] = await browser.run({"q": {"class_type": "VQQuantizeCheckpoint", "inputs": by_name}})
        found["files_by_name"] = files()
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(server.told(story)))
