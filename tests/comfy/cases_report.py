"""Compare (VQ) and Report (VQ), observed inside a ComfyUI process: usage as cases.py.

The reference for pictures is the host's own KSampler and VAEDecode; numbers are computed again by other formulas.
"""
from __future__ import annotations

import json
import math
import shutil
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

from cases_features import conditioning, controlled, controlnet  # starts ComfyUI

from cases import CASE, DENSE, FILES, VQ, ours, with_lora  # isort: skip

import comfy.latent_formats  # isort: skip
import comfy.model_management  # isort: skip
import comfy.sd  # isort: skip
import nodes as host_nodes  # isort: skip
import torch  # isort: skip
from PIL import Image  # isort: skip
from comfy_execution.graph_utils import ExecutionBlocker  # isort: skip
from vqpack.nodes import files, host  # isort: skip
from vqpack.nodes.node_progress import NodeProgress  # isort: skip
from vqpack.nodes.compare import VQCompare  # isort: skip
from vqpack.nodes.inspect import VQInspect  # isort: skip
from vqpack.nodes.loading import load_checkpoint  # isort: skip
from vqpack.nodes.report import VQReport  # isort: skip
from vqpack.vq_core.compare import gallery  # isort: skip
from vqpack.vq_core.compare.attach import attach  # isort: skip
from vqpack.vq_core.container import Reader  # isort: skip
from vqpack.vq_core.inspection import content_id, json_field  # isort: skip

SEED, STEPS, CFG = 5, 2, 2.0
EVIL = "<img src=x onerror=alert(1)>"
SHOWN: list[tuple[str, str]] = []


def node(cls, **inputs):
    """Run a node as the server does -> its outputs, its ui"""
    cls.hidden = SimpleNamespace(unique_id="7")
    out = cls.execute(**inputs)
    return out.args, out.ui


def run_compare(a, b, positive=None, **more):
    """The node with small settings -> outputs, ui"""
    inputs = {"positive": positive or conditioning(2), "negative": conditioning(3), "seed": SEED, "steps": STEPS,
              "cfg": CFG, "sampler_name": "euler", "scheduler": "normal", "width": 128, "height": 128, "batch_size": 1}
    return node(VQCompare, model_a=a, model_b=b, **{**inputs, **more})


def compare(a, b, positive=None, **more):
    """Its outputs."""
    return run_compare(a, b, positive, **more)[0]


def sampled(model, positive=None, count: int = 1, sampler: str = "euler") -> torch.Tensor:
    """What KSampler draws."""
    empty = host_nodes.EmptyLatentImage().generate(128, 128, count)[0]
    return host_nodes.common_ksampler(model, SEED, STEPS, CFG, sampler, "normal", positive or conditioning(2),
                                      conditioning(3), empty)[0]["samples"]


def psnr(ours_: torch.Tensor, theirs: torch.Tensor, peak: float) -> float:
    return 20 * math.log10(peak / float((ours_.double() - theirs.double()).pow(2).mean().sqrt()))


def same(outputs, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the node drew exactly what the host drew."""
    return torch.equal(outputs[3]["samples"], a) and torch.equal(outputs[4]["samples"], b)


def refused(call, *arguments, **more) -> str:
    try:
        call(*arguments, **more)
        return "accepted"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def catch_shown() -> None:
    """A server as far as nodes know it: what is sent to the browser is kept."""
    instance = SimpleNamespace(send_progress_text=lambda text, node_id: SHOWN.append((text, node_id)),
                               prompt_queue=SimpleNamespace(get_current_queue_volatile=lambda: ([], [])))
    sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))


def case_both() -> dict:
    """In one process: starting one takes longer than the reports."""
    files.register_folders()
    return {"compare": case_compare(), "report": case_report()}


def case_compare() -> dict:
    """Pictures, numbers, LoRA and control nets against the host; equal models; no VAE; several pictures."""
    catch_shown()
    stock, _, vae = comfy.sd.load_checkpoint_guess_config(DENSE, output_vae=True, output_clip=False)[:3]
    lora = with_lora(stock, 0.2)
    a, b = sampled(stock), sampled(lora)
    done = compare(stock, lora, vae=vae)
    pictures = [host_nodes.VAEDecode().decode(vae, {"samples": x})[0] for x in (a, b)]
    found = {"same": same(done, a, b), "apart": not torch.equal(a, b), "text": done[2], "shown": SHOWN[-1],
             "pictures": [torch.equal(done[i], pictures[i]) for i in (0, 1)], "shape": list(done[0].shape),
             "latent_psnr": psnr(b, a, float(a.max() - a.min())), "picture_psnr": psnr(pictures[1], pictures[0], 1.0)}
    if _has_image_compare():
        from comfy_extras.nodes_image_compare import ImageCompare

        shown = ImageCompare.execute(done[0], done[1]).ui
        found["image_compare"] = [len(shown[f"{letter}_images"]) for letter in "ab"]
    found["identical"] = compare(stock, stock, vae=vae)[2]
    without = compare(stock, lora)
    found["no_vae"] = {"blocked": [isinstance(x, ExecutionBlocker) and x.message for x in without[:2]],
                       "text": without[2], "same": same(without, a, b)}
    control = controlled(controlnet())
    steered = compare(stock, lora, control)
    found["control"] = {"same": same(steered, sampled(stock, control), sampled(lora, control)),
                        "matters": not torch.equal(steered[3]["samples"], a)}
    own = compare(stock, stock, positive_b=conditioning(9), negative_b=conditioning(3))
    found["own_prompt"] = same(own, a, sampled(stock, conditioning(9)))
    two = compare(stock, lora, batch_size=2, sampler_name="dpmpp_2m_sde", vae=vae)
    found["two"] = {"text": two[2], "same": same(two, *(sampled(m, count=2, sampler="dpmpp_2m_sde")
                                                         for m in (stock, lora)))}
    coded = compare(stock, ours())
    found["vq"] = coded[2]
    found["kept"] = kept(stock, vae)
    return found | trouble(stock, lora)


def _has_image_compare() -> bool:
    try:
        import comfy_extras.nodes_image_compare  # noqa: F401
    except ImportError:
        return False
    return True


def kept(stock, vae) -> dict:
    """What stays of Compare (VQ) for reports: of B from a VQ file with pictures, and of nothing else."""
    root = Path(host.folder_paths.get_system_user_directory("vqpack")) / "comparisons"
    shutil.rmtree(root, ignore_errors=True)              # of another host
    vq, out = ours(), {}
    compare(stock, with_lora(stock, 0.2), vae=vae)
    compare(stock, vq)
    compare(vq, stock, vae=vae)
    out["none"] = not root.exists()
    pictures = compare(stock, with_lora(vq, 0.2), vae=vae, batch_size=5)[:2]
    with Reader(VQ) as reader:
        (run,) = gallery.runs(root, gallery.unet_id(reader))
        pairs = gallery.pictures(root, gallery.unet_id(reader), run)
    wanted = [[Image.fromarray((x * 255).round().to(torch.uint8).numpy()) for x in both] for both in zip(*pictures)]
    out["pictures"] = [Image.open(BytesIO(png)).tobytes() == image.tobytes()
                       for pngs, images in zip(pairs, wanted) for png, image in zip(pngs, images)]
    out["names"] = [run.a.name, run.b.name]
    out["patched"] = [run.a.patched, run.b.patched > 0, list(run.b.beside)]
    out["values"] = {name: len(values) for name, values in run.values.items()}
    out["unlisted"] = run_compare(stock, vq)[1].get("vq_file")
    folder = FILES / "base" / "models" / "vq_checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compared.safetensors").write_bytes(Path(VQ).read_bytes())
    listed = with_lora(load_checkpoint(folder / "compared.safetensors")[0], 0.2)
    out["listed"] = run_compare(stock, listed)[1].get("vq_file")
    return out


def trouble(stock, lora) -> dict:
    """Models that do not fit, models that draw no numbers, the user's stop, and the bar."""
    found, values = {}, []
    for name in ("SD15", "Flux", "Mochi"):
        other = stock.clone()
        other.add_object_patch("latent_format", getattr(comfy.latent_formats, name)())
        found[name] = [refused(compare, stock, other), refused(compare, other, stock)]
    broken = stock.clone()
    broken.set_model_sampler_cfg_function(lambda args: args["cond"] * math.nan)
    found["nan"] = [compare(broken, stock)[2], compare(stock, broken)[2]]
    real = NodeProgress.__call__

    def stop(self, stage, done, *rest):
        real(self, stage, done, *rest)
        values.append(self._shown)
        if done == STEPS + 1:                                          # in B's first step
            comfy.model_management.interrupt_current_processing()

    NodeProgress.__call__ = stop
    found["stopped"] = refused(compare, stock, lora)
    NodeProgress.__call__ = lambda self, *rest: (real(self, *rest), values.append(self._shown)) and None
    found["flag_down"] = not comfy.model_management.processing_interrupted()
    values.clear()
    found["after"] = compare(stock, lora)[2]
    NodeProgress.__call__ = real
    return {**found, "values": values}


def comparison(path) -> dict:
    """A compare.json about one file, as vqpack compare writes it, with markup in its names."""
    with Reader(path) as reader:
        content, source = content_id(reader), json_field(reader.metadata, "vqpack.source", {})
    found = {"latent_psnr": {"low": 19.0, "value": 21.53, "high": 24.0, "count": 8},
             "ssim": {"low": 0.8, "value": 0.9, "high": 0.95, "count": 8}}
    return {"tool": "vqpack 0", "checkpoints": [
        {"name": EVIL, "kind": "checkpoint file", "file_bytes": 126_000_000, "sha256": source["sha256"]},
        {"content": content, "metrics": found, "weight_error": {"unet": 0.02}}],
        "settings": {"prompts": ["a secret prompt"] * 8, "seeds": 1, "steps": 20, "size": [1024, 768], "guidance": 5.0,
                     "sampler": "model", "prompt_file": "secret.txt"},
        "metrics": [{"name": name, "title": title, "unit": unit, "digits": digits} for name, title, unit, digits in
                    (("latent_psnr", "Latent PSNR", "dB", 1), ("ssim", "SSIM", "", 3))]}


def case_report() -> dict:
    """Report and Inspect of a file without and with a comparison, and of files other tools wrote."""
    catch_shown()
    folder = FILES / "base" / "models" / "vq_checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(comparison(VQ)), encoding="utf-8")
    attach(VQ, folder / "compare.json", folder / "measured.safetensors")
    (folder / "plain.safetensors").write_bytes(open(VQ, "rb").read())
    (folder / "bare.safetensors").write_bytes(_without_metadata(VQ))
    found = {}
    for name in ("measured", "plain", "bare"):
        (text, picture), shown = node(VQReport, file=f"{name}.safetensors")
        found[name] = {"text": text, "shape": list(picture.shape), "spread": float(picture.std()),
                       "ui": [shown["text"][0] == text, len(shown["images"])], "shown": SHOWN[-1][0]}
        found[f"{name}_inspected"] = node(VQInspect, file=f"{name}.safetensors")[0][0]
    found["linked"] = node(VQReport, file="?", file_name="plain.safetensors")[0][0] == found["plain"]["text"]
    found["gone"] = refused(node, VQReport, file="gone.safetensors")
    found["fingerprints"] = len({repr(VQReport.fingerprint_inputs(f"{name}.safetensors")) for name in
                                 ("measured", "plain")})
    found["schemas"] = {cls.define_schema().node_id: [[i.id for i in cls.define_schema().inputs],
                                                      [o.io_type for o in
                                                       cls.define_schema().outputs]] for cls in (VQReport, VQCompare)}
    return found


def _without_metadata(path: str) -> bytes:
    """The file with tensors only, as tools that know no metadata write it, and without the report."""
    from safetensors.torch import load_file, save

    return save({key: value for key, value in load_file(path).items() if key != "vq.report"})


if __name__ == "__main__":
    with torch.inference_mode():
        outcome = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(outcome))
