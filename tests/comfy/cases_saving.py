"""Quantize Model, Save Checkpoint and the host's own saving, observed inside a ComfyUI process: usage as cases.py.

The graph is a VQ model with a LoRA on UNet and text encoders; the reference is the same graph of the decompressed fp16
files in the host's loader, saved by the host as fp16.
"""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cases  # noqa: F401  (starts ComfyUI)
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.utils
import comfy_extras.nodes_model_merging as merging
import folder_paths
import torch
from cases import CPU, FILES, VQ, apart, encode, ours, sample
from vqpack.nodes import layout, live, loading, ops, patcher, save
from vqpack.nodes.quantize_model import VQQuantizeModel
from vqpack.nodes.schema import DECODED
from vqpack.vq_core.arch import layers
from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import Interrupted
from vqpack.vq_core.plan import plan_from_json
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.quantize import quantize
from vqpack.vq_core.source import open_source
from vqpack.vq_core.table_record import table_key
from vqpack.vq_core.text_encoders import stored_items
from vqpack.vq_core.verify import verify_file

SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
OUT = FILES / "base" / "models" / "vq_checkpoints"
FEW = {"vqpack_plan": 1, "unet": {"kind": "uniform", "bits": 3}, "rules": [
    {"match": r"^(?!.*input_blocks\.(4|7)\.1)", "spec": {"kind": "dense"}}]}
TEXT_LORA = ("te1_text_model_encoder_layers_0_self_attn_q_proj", "te2_text_model_encoder_layers_0_self_attn_v_proj",
             "te2_text_model_encoder_layers_0_mlp_fc1")


def lora() -> dict[str, torch.Tensor]:
    """The UNet's LoRA and one on three weights of the text encoders."""
    generator, out = torch.Generator().manual_seed(5), comfy.utils.load_torch_file(str(FILES / "lora1.safetensors"))
    for name in TEXT_LORA:
        for part, shape in (("up", (256 if "fc1" in name else 64, 4)), ("down", (4, 64))):
            out[f"lora_{name}.lora_{part}.weight"] = torch.randn(shape, generator=generator) * 0.1
    return out


def load(sd: dict, operations=None, **options):
    """ComfyUI's loader on a whole checkpoint with small text encoders -> model, clip, vae"""
    custom = {"custom_operations": operations} if operations else {}
    small = {"clip_l_model_config": SMALL, "clip_g_model_config": SMALL, "dtype": torch.float16, **custom}
    found = comfy.sd.load_state_dict_guess_config(sd, model_options={**options, **custom}, te_model_options=small)
    for one in (found[0], found[1].patcher) if operations else ():
        patcher.adopt(one)
    return found[:3]


def coded_graph(operations=ops.VQOps):
    return load({**loading.read_state_dict(VQ)[0], **loading.read_state_dict(FILES / "text-vq.safetensors")[0]},
                operations)


def dense_graph(**options):
    return load({**comfy.utils.load_torch_file(str(FILES / "dense.safetensors")),
                 **comfy.utils.load_torch_file(str(FILES / "text-dense.safetensors"))}, **options)


def merged(graph, strength: float = 0.7):
    """The graph with its LoRA."""
    return (*comfy.sd.load_lora_for_models(*graph[:2], lora(), strength, strength), graph[2])


def reference(graph, name: str) -> Path:
    """What the host saves of a graph of the stock loader."""
    path = FILES / f"{name}.safetensors"
    comfy.sd.save_checkpoint(str(path), *graph)
    return path


def node(cls, *args, **inputs):
    """Run a node as the server does -> its first output"""
    cls.hidden = SimpleNamespace(unique_id=None)
    return cls.execute(*args, **inputs).args[0]


def items_of(source) -> dict:
    return {item.layer.key: item for item in stored_items(source, layers(source))}


def sources_differ(ours_, theirs, coded: set[str]) -> dict:
    """Keys only one has; coded keys whose values or dtypes differ; other keys whose values differ."""
    mine, other, out = items_of(ours_), items_of(theirs), {"coded": [], "dense": []}
    out["keys"] = sorted(set(mine) ^ set(other))
    for key in sorted(set(mine) & set(other)):
        a, b = mine[key].load(ours_), other[key].load(theirs)
        if key in coded and (a.dtype != b.dtype or not torch.equal(a, b)):
            out["coded"].append(key)
        elif key not in coded and not torch.equal(a.float(), b.float()):
            out["dense"].append(key)
    return out


def sha(graph) -> str:
    return live.live(*graph).source(graph[0], FILES).sha256()


def case_sources() -> dict:
    """The same graph in every kind of model and state of memory is the same source, and the one the host saves."""
    graph, found = merged(coded_graph()), {}
    coded = {key for key, weight in live.live(*graph).all_weights() if weight.coded() is not None}
    found["coded"] = [len(coded), sum(key.startswith("conditioner.") for key in coded)]
    path = reference(merged(dense_graph(dtype=torch.float16)), "reference")
    with open_source(path) as theirs:
        found["differ"] = sources_differ(live.live(*graph).source(graph[0], FILES), theirs, coded)
    want = found["compressed"] = sha(graph)
    states = {"again": graph, "decoded": merged(coded_graph(ops.VQOpsDecoded)), "stock_fp32": merged(dense_graph()),
              "stock_fp16": merged(dense_graph(dtype=torch.float16))}
    found["states"] = {name: sha(state) == want for name, state in states.items()}
    for name in ("again", "stock_fp32", "decoded"):
        model, clip, _ = states[name]
        size = model.model_size()
        comfy.model_management.load_models_gpu([model, clip.patcher])
        found["states"][f"{name}_loaded"] = sha(states[name]) == want
        model.unpatch_model(CPU)
        model.patch_model(CPU, lowvram_model_memory=int(size * 0.5))
        found["states"][f"{name}_half"] = sha(states[name]) == want
        model.partially_unload(CPU, int(size * 0.3))
        found["states"][f"{name}_unloaded"] = sha(states[name]) == want
        comfy.model_management.unload_all_models()
    foreign = cases.with_lora(comfy.model_patcher.ModelPatcher(graph[0].model, CPU, CPU), 0.3)
    comfy.model_management.load_models_gpu([foreign])
    found["states"]["foreign_patcher"] = sha(graph) == want
    comfy.model_management.unload_all_models()
    found["plain_differs"] = sha(coded_graph()) != want
    found["strength_differs"] = sha(merged(coded_graph(), 0.6)) != want
    return found


def case_quantize() -> dict:
    """Quantize Model against decompress, merge, save and Quantize Checkpoint: every coded blob byte for byte."""
    base = coded_graph()
    graph, found = merged(base), {}
    before, keys = sample(graph[0]), sorted(graph[0].patches)
    weights = sorted((k, v.nbytes) for k, v in graph[0].model.state_dict().items())
    name = node(VQQuantizeModel, graph[0], 3.0, "palette", "6", "merged", clip=graph[1], vae=graph[2])
    result = OUT / name
    found["name"], found["verify"] = name, verify_file(result)
    found["unchanged"] = [apart(sample(graph[0]), before), keys == sorted(graph[0].patches),
                          weights == sorted((k, v.nbytes) for k, v in graph[0].model.state_dict().items())]
    stamp = result.stat().st_mtime_ns
    again = node(VQQuantizeModel, graph[0], 3.0, "palette", "6", "merged", clip=graph[1], vae=graph[2])
    found["again"] = [again == name, result.stat().st_mtime_ns == stamp, len(list(OUT.glob("merged*")))]
    path = reference(merged(dense_graph(dtype=torch.float16)), "reference2")
    quantize(path, FILES / "reference2-vq.safetensors", bits=3.0, method="palette", text_encoder_bits=6)
    found["blobs"] = compare_files(result, FILES / "reference2-vq.safetensors")
    model = read(result)
    latents = sample(model[0])
    theirs = read(FILES / "reference2-vq.safetensors")
    found["latents"] = apart(latents, sample(theirs[0]))
    found["prompts"] = [apart(a, b) for a, b in zip(encode(model[1]), encode(theirs[1]), strict=True)]
    found["lora_in"] = apart(latents, sample(base[0]))
    with Reader(result) as reader:
        found["source"] = json.loads(reader.metadata["vqpack.source"])
    return found


def compare_files(one: Path, two: Path) -> dict:
    """Coded blobs that differ, keys that only one has, dense values that differ."""
    with Reader(one) as a, Reader(two) as b:
        coded = set(a.coded_keys())
        dense = [k for k in a.keys() if k not in coded and not k.startswith("vq.") and k in b.keys()]
        return {"coded": [len(coded), coded == set(b.coded_keys())],
                "blobs": [k for k in coded if not torch.equal(a.raw(k), b.raw(k))],
                "keys": sorted(set(a.keys()) ^ set(b.keys())),
                "dense": [k for k in dense if not torch.equal(a.tensor(k).float(), b.tensor(k).float())]}


def case_interrupt() -> dict:
    """A stopped run leaves a spool that the same model resumes and a changed one does not; nothing is mixed."""
    graph, found, plan = coded_graph(), {}, plan_from_json(FEW)
    folder = FILES / "interrupted"
    folder.mkdir()

    def run(strength: float, name: str, progress=None):
        changed = merged(graph, strength)
        source = live.live(changed[0]).source(changed[0], folder)
        return quantize(source, folder / name, plan=plan, progress=progress, device="cpu")

    steps = []

    def stop() -> bool:
        steps.append(1)
        return stopping.stage == "coding" and stopping.done > stopping.total / 2

    stopping = Progress(should_stop=stop)
    try:
        run(0.7, "one", stopping)
        found["stopped"] = "no"
    except Interrupted:
        found["stopped"] = sorted(p.suffix for p in folder.iterdir())
    seen = []
    listening = Progress(lambda stage, done, total, *_: seen.append((stage, total)), interval=0.0)
    resumed = run(0.7, "one", listening).path
    found["resumed"] = min(total for stage, total in seen if stage == "coding")
    clean = Progress(lambda stage, done, total, *_: seen.append((stage, total)), interval=0.0)
    seen.clear()
    found["same_as_clean"] = resumed.read_bytes() == run(0.7, "clean", clean).path.read_bytes()
    found["clean"] = min(total for stage, total in seen if stage == "coding")
    stopping = Progress(should_stop=stop)
    try:
        run(0.7, "two", stopping)
    except Interrupted:
        pass
    changed, other = run(0.5, "two").path, run(0.5, "three").path
    found["not_mixed"] = changed.read_bytes() == other.read_bytes() and changed.read_bytes() != resumed.read_bytes()
    found["left"] = sorted(p.name for p in folder.iterdir() if p.suffix != ".safetensors")
    return found


def refusal(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def fake(keys: dict[str, tuple[int, ...]]):
    """A MODEL of another architecture, as far as keys and shapes tell."""
    inner = torch.nn.Module()
    for key, shape in keys.items():
        *path, name = key.split(".")
        module = inner
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        module.register_parameter(name, torch.nn.Parameter(torch.zeros(shape), requires_grad=False))
    return comfy.model_patcher.ModelPatcher(inner, CPU, CPU)


def case_refused() -> dict:
    """One sentence for what is no SDXL model, for what has no coded weight; what a file cannot hold is said."""
    unet = {f"diffusion_model.{k}": s for k, s in {
        "input_blocks.0.0.weight": (320, 4, 3, 3), "out.2.weight": (4, 320, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1)}.items()}
    flux = {"diffusion_model.double_blocks.0.img_attn.qkv.weight": (96, 32)}
    model = ours()
    found = {name: refusal(lambda other=other: live.live(other).source(other, FILES))
             for name, other in (("sd15", fake(unet)), ("flux", fake(flux)),
                                 ("quantized", fake({**unet, "diffusion_model.out.2.scale_weight": (1,)})))}
    wrong_clip = SimpleNamespace(patcher=fake({"t5xxl.transformer.shared.weight": (8, 8)}))
    found["clip"] = refusal(lambda: live.live(model, wrong_clip))
    wrong_vae = SimpleNamespace(latent_channels=16, patcher=fake({"decoder.conv_in.weight": (8, 8)}))
    found["vae"] = refusal(lambda: live.live(model, None, wrong_vae))
    found["stock_not_coded"] = refusal(lambda: node(save.VQSaveCheckpoint, cases.stock()))
    found["decoded_not_coded"] = refusal(lambda: node(save.VQSaveCheckpoint, ours(DECODED)))
    found["name_outside"] = refusal(lambda: node(VQQuantizeModel, model, 3.0, "palette", "6", "../../out"))
    changed = model.clone()
    changed.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    changed.add_object_patch("diffusion_model.out", torch.nn.Identity())
    changed.set_model_sampler_cfg_function(lambda args: args["cond"])
    found["left_out"], found["nothing_left_out"] = live.left_out(changed), live.left_out(model)
    return found


def case_markers() -> dict:
    """What a model predicts is read from its sampling, also where a node of the graph set it."""
    sd, found = comfy.utils.load_torch_file(str(FILES / "dense.safetensors")), {}
    kinds = {"eps": {}, "v": {"v_pred": torch.zeros(0)}, "zsnr": {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
             "edm": {"edm_mean": torch.zeros(1), "edm_std": torch.zeros(1)},
             "edm_v": {"edm_vpred.sigma_max": torch.tensor(99.0), "edm_vpred.sigma_min": torch.tensor(0.01)}}
    for name, extra in kinds.items():
        model = comfy.sd.load_state_dict_guess_config({**sd, **extra}, output_vae=False, output_clip=False)[0]
        source = live.live(model).source(model, FILES)
        found[name] = [source.prediction, *sorted(key for key in source.keys() if not key.startswith("model."))]
        if name == "edm_v":
            found["sigma_max"] = float(source.load("edm_vpred.sigma_max"))
    changed = cases.stock().clone()

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    changed.add_object_patch("model_sampling", Sampling(changed.model.model_config, zsnr=True))
    found["patched"] = sorted(live.markers(changed))
    return found


def case_save() -> dict:
    """Save Checkpoint: blobs bitwise, patched weights as the host would save them, the picture of the graph."""
    base, found = coded_graph(), {}
    plain = OUT / node(save.VQSaveCheckpoint, base[0], "plain", clip=base[1], vae=base[2])
    found["plain"] = {**saved_against(plain), "latents": apart(sample(read(plain)[0]), sample(base[0]))}
    graph = merged(base)
    said = []
    save.NodeProgress.say, say = (lambda self, text: said.append(text)), save.NodeProgress.say
    with_lora = OUT / node(save.VQSaveCheckpoint, graph[0], "lora", clip=graph[1], vae=graph[2])
    save.NodeProgress.say = say
    found["said"] = said[-1]
    back = read(with_lora)
    found["lora"] = {**saved_against(with_lora), "latents": apart(sample(back[0]), sample(graph[0])),
                     "prompts": [apart(a, b) for a, b in zip(encode(back[1]), encode(graph[1]), strict=True)],
                     "matters": apart(sample(graph[0]), sample(base[0]))}
    path = reference(merged(dense_graph(dtype=torch.float16)), "reference3")
    with Reader(with_lora) as reader, open_source(path) as theirs:
        items, coded = items_of(theirs), set(reader.coded_keys())
        dense = [k for k in reader.keys() if k in items and k not in coded and "position_ids" not in k]
        found["lora"]["differ"] = [k for k in dense if not torch.equal(reader.tensor(k).float(),
                                                                      items[k].load(theirs).float())]
    (OUT / "tiny-vq.safetensors").unlink(missing_ok=True)              # of the other host's run
    unet = OUT / node(save.VQSaveCheckpoint, loading.load_checkpoint(VQ)[0], "")
    found["unet"] = {"name": unet.name, **saved_against(unet)}
    twice = OUT / node(save.VQSaveCheckpoint, loading.load_checkpoint(VQ)[0], "")
    found["numbered"] = twice != unet and twice.read_bytes() == unet.read_bytes()
    with Reader(unet) as reader, Reader(VQ) as origin:
        found["metadata"] = {k: reader.metadata.get(k) == origin.metadata[k] for k in ("vqpack.source", "vqpack.plan")}
        found["settings"] = json.loads(reader.metadata["vqpack.settings"])
    return found


def read(path: Path):
    """A saved file in our loader, with small text encoders."""
    return load(loading.read_state_dict(path)[0], ops.VQOps)


def saved_against(path: Path) -> dict:
    """A saved file beside the files the graph was loaded from."""
    text = FILES / "text-vq.safetensors"
    with Reader(path) as saved, Reader(VQ) as unet, Reader(text) as clip:
        coded = set(saved.coded_keys())
        origin = {k: reader for reader in (clip, unet) for k in reader.coded_keys()}
        needed = {table_key(part.table_id) for key in coded for part in saved.layout(key).parts
                  if part.kind == "trellis"}
        return {"verify": verify_file(path), "coded": len(coded), "originally": len(origin), "needed": len(needed),
                "changed": [k for k in coded if not torch.equal(saved.raw(k), origin[k].raw(k))],
                "tables": sorted(needed ^ {k for k in saved.keys() if k.startswith("vq.tables.")})}


def case_stock_saving() -> dict:
    """The host's own saving nodes on VQ models: the checkpoint that they make of the decompressed graph."""
    found, expected = {}, reference(merged(dense_graph(dtype=torch.float16)), "reference4")
    want = comfy.utils.load_torch_file(str(expected))
    latents = sample(load(dict(want))[0])
    for mode, operations in (("compressed", ops.VQOps), ("decoded", ops.VQOpsDecoded)):
        graph = merged(coded_graph(operations))
        files = host_saves(graph, mode)
        saved = comfy.utils.load_torch_file(str(files["CheckpointSave"]))
        wrong = [k for k in want if k not in saved or apart_or_zero(saved[k], want[k]) > 1e-3]
        model = comfy.utils.load_torch_file(str(files["ModelSave"]))
        text = {k: v for path in files["CLIPSave"] for k, v in comfy.utils.load_torch_file(str(path)).items()}
        found[mode] = {"wrong": wrong, "more": sorted(set(saved) - set(want)), "latents": apart(
            sample(load(dict(saved))[0]), latents), "model": [k for k in model if not torch.equal(model[k], saved[k])],
            "model_keys": len(model), "text": sorted({str(v.dtype) for v in text.values() if v.dim() == 2})}
    return found


def apart_or_zero(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return 1.0
    return 0.0 if torch.equal(a.float(), b.float()) else apart(a, b)


def host_saves(graph, prefix: str) -> dict:
    """Run ComfyUI's saving nodes -> node -> path or paths"""
    out = Path(folder_paths.get_output_directory())
    nodes = {"CheckpointSave": graph, "ModelSave": graph[:1], "CLIPSave": graph[1:2]}
    for name, inputs in nodes.items():
        getattr(merging, name)().save(*inputs, f"{prefix}/{name}")
    return {name: (sorted if name == "CLIPSave" else lambda found: next(iter(found)))(
        (out / prefix).glob(f"{name}*.safetensors")) for name in nodes}


def case_raw_saving() -> dict:
    """Savers that take the state dict as it is (0.8, and other nodes) get a sentence and leave no file."""
    graph, found = merged(coded_graph()), {}
    if not hasattr(comfy.model_patcher.ModelPatcher, "model_state_dict_for_saving"):
        for name, inputs in (("CheckpointSave", graph), ("ModelSave", graph[:1]), ("CLIPSave", graph[1:2])):
            saver = getattr(merging, name)()
            found[name] = refusal(lambda saver=saver, inputs=inputs: saver.save(*inputs, f"raw/{type(saver).__name__}"))
        stock_model = dense_graph()
        found["clip_only"] = refusal(lambda: merging.CheckpointSave().save(stock_model[0], graph[1], graph[2], "raw/c"))
    else:
        path = str(FILES / "raw.safetensors")
        found["unet"] = refusal(lambda: comfy.utils.save_torch_file(graph[0].model.diffusion_model.state_dict(), path))
        found["text"] = refusal(lambda: comfy.utils.save_torch_file(graph[1].get_sd(), path))
    decoded = merged(coded_graph(ops.VQOpsDecoded))
    comfy.sd.save_checkpoint(str(FILES / "decoded-raw.safetensors"), *decoded)
    back = load(comfy.utils.load_torch_file(str(FILES / "decoded-raw.safetensors")))
    found["decoded"] = apart(sample(back[0]), sample(decoded[0]))
    found["files"] = [str(p) for p in (*Path(folder_paths.get_output_directory()).glob("raw/*"),
                                       *FILES.glob("raw.safetensors"))]
    found["usable"] = apart(sample(graph[0]), sample(merged(dense_graph())[0]))
    comfy.model_management.unload_all_models()
    found["coded"] = sum(layout.is_coded(p) for p in graph[0].model.parameters())
    return found


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        result = globals()[f"case_{cases.CASE}"]()
    print("FOUND " + json.dumps(result))
