"""What is observed inside a ComfyUI process: usage cases.py HOST FILES CASE; prints one line `FOUND {json}`.

Not imported by pytest: it runs under ComfyUI's own Python (conftest.py starts it).
"""
from __future__ import annotations

import gc
import importlib.util
import json
import sys
import weakref
from pathlib import Path

HOST, FILES, CASE = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
ROOT = Path(__file__).resolve().parents[2]


def start_host() -> None:
    """ComfyUI's modules first, with models in our folder only; then the pack under its alias."""
    (FILES / "base").mkdir(exist_ok=True)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(FILES / "base")]
    sys.path[0] = HOST
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location("vqpack", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    sys.modules["vqpack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["vqpack"])


start_host()

import comfy.hooks  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from vqpack.nodes import layout, loading, ops, patcher  # noqa: E402
from vqpack.nodes.schema import COMPRESSED, DECODED, DYNAMIC  # noqa: E402

VQ, UNET, DENSE = (str(FILES / f"{name}.safetensors") for name in ("tiny-vq", "unet-vq", "dense"))
CPU = torch.device("cpu")


def stock(path: str = DENSE):
    return comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=False)[0]


def ours(mode: str = COMPRESSED):
    return loading.load_checkpoint(VQ, mode)[0]


def with_lora(model, *strengths: float):
    for number, strength in enumerate(strengths, 1):
        lora = comfy.utils.load_torch_file(str(FILES / f"lora{number}.safetensors"), safe_load=True)
        model = comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]
    return model


def sample(model, hooks=None) -> torch.Tensor:
    """Three steps at 128 px -> latents [1, 4, 16, 16]"""
    pooled = {"pooled_output": torch.zeros([1, 1280])}
    empty = [[torch.zeros([1, 77, 2048]), dict(pooled)]]
    positive = empty if hooks is None else [[empty[0][0], {**pooled, "hooks": hooks}]]
    latent = torch.zeros([1, 4, 16, 16])
    noise = comfy.sample.prepare_noise(latent, 1)
    return comfy.sample.sample(model, noise, 3, 2.0, "euler", "normal", positive, empty, latent, seed=1,
                               disable_pbar=True)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance in fp32."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def functions(model) -> list[int]:
    """How many functions coded weights have, each number once."""
    return sorted({len(module.weight_function) for _, module in model.coded_modules()})


def still_coded(model) -> bool:
    return len(list(model.coded_modules())) > 100


def case_equality() -> dict:
    """Every way to load, without and with LoRA, against the stock loader on the decompressed file."""
    reference = stock()
    plain, one, two = sample(reference), sample(with_lora(reference, 0.7)), sample(with_lora(reference, 0.7, -0.4))
    found = {"lora_matters": apart(one, plain), "second_matters": apart(two, one)}
    models = {"compressed": ours(), "decoded": ours(DECODED), "unet": loading.load_diffusion_model(UNET),
              "unet_of_checkpoint": loading.load_diffusion_model(VQ)}
    for name, model in models.items():
        size = model.model_size()
        both = with_lora(model, 0.7, -0.4)
        found[name] = {"plain": apart(sample(model), plain), "lora": apart(sample(with_lora(model, 0.7)), one),
                       "two": apart(sample(both), two), "removed": apart(sample(model), plain),
                       "size_kept": both.model_size() == size == comfy.model_management.module_size(model.model),
                       "coded": still_coded(model) if name != "decoded" else not list(model.coded_modules()),
                       "size": size, "patcher": type(both).__name__}
    return found


def case_short() -> dict:
    """For an old host: load, sample, one LoRA, removal."""
    reference = stock()
    plain, one = sample(reference), sample(with_lora(reference, 0.7))
    model = ours()
    return {"plain": apart(sample(model), plain), "lora": apart(sample(with_lora(model, 0.7)), one),
            "unet": apart(sample(loading.load_diffusion_model(UNET)), plain),
            "removed": apart(sample(model), plain), "decoded": apart(sample(with_lora(ours(DECODED), 0.7)), one),
            "coded": still_coded(model), "lora_matters": apart(one, plain)}


def case_memory() -> dict:
    """Partial loading and unloading never lose or double a LoRA; sizes are the bytes held."""
    reference = stock()
    plain, one = sample(reference), sample(with_lora(reference, 0.7))
    base = ours()
    model, found = with_lora(base, 0.7), {}
    size = model.model_size()
    comfy.model_management.unload_all_models()
    first = next(module for _, module in model.coded_modules())
    first.weight_lowvram_function = str                # as dynamic VRAM would leave it; its result would be re-encoded
    model.patch_model(CPU, lowvram_model_memory=int(size * 0.5))
    found["lowvram_function_gone"] = first.weight_lowvram_function is None
    found["half"] = functions(model)
    model.load(CPU, lowvram_model_memory=size * 10)
    found["more"] = functions(model)
    model.partially_unload(CPU, int(size * 0.4))
    model.partially_unload(CPU, int(size * 0.4))
    found["unloaded_twice"], found["layers_after_unload"] = functions(model), layers_apart(model)
    model.unpatch_model(CPU)
    found["unpatched"] = functions(model)
    found["full"] = apart(sample(model), one)
    model.unpatch_model(CPU)
    found["unpatched_from_full"] = functions(model)
    found["again"] = apart(sample(model), one)
    model.partially_unload(CPU, int(size * 0.5))
    found["after_unload"] = apart(sample(model), one)
    comfy.model_management.load_models_gpu([model], force_patch_weights=True)
    found["forced"] = apart(sample(model), one)
    found["removed"] = apart(sample(base), plain)
    held = {p._qdata.data_ptr(): p._qdata.nbytes for p in base.model.parameters() if layout.is_coded(p)}
    held |= {p.data_ptr(): p.nbytes for p in base.model.parameters() if not layout.is_coded(p)}
    held |= {b.data_ptr(): b.nbytes for b in base.model.buffers()}
    found["size"], found["held"] = base.model_size(), sum(held.values())
    shape = [2, 4, 16, 16]
    found["scratch"] = base.model.memory_required(shape) - type(base.model).__base__.memory_required(base.model, shape)
    found["largest"] = 4 * max(m.weight.numel() for _, m in base.coded_modules())
    return found


def layers_apart(model) -> float:
    """The largest distance of a layer's output, as it is loaded now, from its decoded and patched weight's."""
    worst = 0.0
    for key, module in model.coded_modules():
        weight = layout.unwrap(module.weight).decode()
        if key in model.patches:
            weight = comfy.lora.calculate_weight(model.patches[key], weight, key)
        x = torch.randn([1, weight.shape[1], *weight.shape[2:]])
        dense = torch.nn.functional.conv2d if x.dim() == 4 else torch.nn.functional.linear
        options = (module.stride, module.padding) if x.dim() == 4 else ()
        with_bias = dense(x, weight, module.bias, *options)
        bias_patched = f"{key.removesuffix('weight')}bias" in model.patches
        worst = max(worst, 0.0 if bias_patched else apart(module(x), with_bias))
    return worst


def case_saving() -> dict:
    """State dicts hold stored bytes, never our tensors; the host's own saving writes a checkpoint it can open."""
    model = with_lora(ours(), 0.7)
    found = {"types": sorted({type(v).__name__ for v in model.model.state_dict().values()})}
    found["keys"] = all(f"{n}.weight" in model.model.state_dict() for n, m in model.model.named_modules()
                        if isinstance(m, patcher.Coded))
    if hasattr(comfy.model_patcher.ModelPatcher, "model_state_dict_for_saving"):
        comfy.sd.save_checkpoint(str(FILES / "saved.safetensors"), model)
        found["saved"] = apart(sample(stock(str(FILES / "saved.safetensors"))), sample(with_lora(stock(), 0.7)))
    found["comfy_quant"] = [k for k in model.model.state_dict() if "comfy_quant" in k]
    weight = next(m for _, m in model.coded_modules()).weight
    try:
        weight.requantize_from_float(weight.dequantize())
        found["requantize"] = "accepted"
    except NotImplementedError as error:
        found["requantize"] = str(error)
    return found


def case_merge_and_hooks() -> dict:
    """Merges of coded models and LoRA by hook, against the same on the stock side."""
    results = {}
    for name, model in (("stock", stock()), ("ours", ours())):
        other, merged = with_lora(model, 0.7), model.clone()
        for key, patch in other.get_key_patches("diffusion_model.").items():
            merged.add_patches({key: patch}, 0.5, 0.5)
        lora = comfy.utils.load_torch_file(str(FILES / "lora1.safetensors"), safe_load=True)
        hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=0.7, strength_clip=0.0)
        results[name] = [sample(merged), sample(model.clone(), hooks), sample(model)]
    names = ("merged", "hooked", "after")
    found = {n: apart(a, b) for n, a, b in zip(names, results["ours"], results["stock"], strict=True)}
    return {**found, "hook_matters": apart(results["stock"][1], results["stock"][2])}


def case_host() -> dict:
    """What the host asks of a patcher besides patching: copies, factories, types, no leak."""
    model, _, vae = loading.load_checkpoint(VQ, DYNAMIC)
    found = {"type": type(model).__name__, "clone": type(model.clone()).__name__,
             "factory": getattr(model, "cached_patcher_init", None) is not None}
    factory, arguments = model.cached_patcher_init[:2]
    copy = factory(*arguments, disable_dynamic=True)
    found["copy"] = {"type": type(copy).__name__, "own_model": copy.model is not model.model,
                     "same": apart(sample(copy), sample(model))}
    factory, arguments = vae.patcher.cached_patcher_init[:2]
    found["vae_copy"] = type(factory(*arguments)).__name__
    dynamic = getattr(patcher, "VQModelPatcherDynamic", None)
    found["dynamic_on_cpu"] = dynamic and type(dynamic(model.model, CPU, CPU)).__name__
    found["moved_in_inference_mode"] = moved()
    linear = ops.VQOps.Linear(320, 320, bias=False, dtype=torch.float16)
    key = "model.diffusion_model.input_blocks.5.1.transformer_blocks.0.attn1.to_q.weight"
    linear.load_state_dict({"weight": loading.read_state_dict(VQ)[0][key]})
    found["module_moved"] = layout.is_coded(linear.weight) and linear.to("meta").weight._qdata.is_meta
    found["tables_per_device"] = len(layout._TABLES)
    ghost = weakref.ref(model.model)
    comfy.model_management.unload_all_models()
    del model, copy, vae, factory, arguments
    gc.collect()
    comfy.model_management.cleanup_models()
    gc.collect()
    found["freed"] = ghost() is None
    return found


def moved() -> list[str]:
    """Coded tensors stay coded whatever way `.to` is called (device `meta` stands for another device)."""
    with torch.inference_mode():
        weight = loading.read_state_dict(VQ)[0]["model.diffusion_model.input_blocks.3.0.in_layers.2.weight"]
        ways = (weight.to("meta"), weight.to("meta", torch.float32), weight.to(device="meta", dtype=torch.float32),
                weight.to("meta", None, False), weight.to(torch.float32), weight.clone(), weight.to(CPU, copy=True))
        return sorted({type(w).__name__ + "/" + str(w._qdata.device == w.device) for w in ways})


def case_text_encoders() -> dict:
    """Prompt encoding with small text encoders, without and with a LoRA, against the stock loader."""
    small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    options = {"clip_l_model_config": small, "clip_g_model_config": small, "dtype": torch.float32}
    lora = {}
    for name in ("te1_text_model_encoder_layers_0_self_attn_q_proj", "te2_text_model_encoder_layers_0_self_attn_v_proj",
                 "te2_text_model_encoder_layers_0_mlp_fc1"):
        rows, key = (256 if "fc1" in name else 64), f"lora_{name}"
        lora |= {f"{key}.lora_{part}.weight": torch.randn(shape) * 0.1 for part, shape in (("up", (rows, 4)),
                                                                                           ("down", (4, 64)))}
    results = {}
    for kind in ("stock", "ours", "decoded"):
        operations = {"ours": ops.VQOps, "decoded": ops.VQOpsDecoded}.get(kind)
        custom = {"custom_operations": operations} if operations else {}
        sd = text_state_dict(kind != "stock")
        clip = comfy.sd.load_state_dict_guess_config(sd, output_vae=False, model_options=custom,
                                                     te_model_options={**options, **custom})[1]
        patcher.adopt(clip.patcher) if operations else None
        changed = comfy.sd.load_lora_for_models(None, clip, lora, 0, 0.7)[1]
        results[kind] = [*encode(clip), *encode(changed), *encode(clip)]
        size, coded = clip.patcher.model_size(), sum(isinstance(m, ops.Coded) and layout.is_coded(m.weight)
                                                     for m in clip.cond_stage_model.modules())
        results[kind + "_size"] = [size, coded]
    return {"ours": [apart(a, b) for a, b in zip(results["ours"], results["stock"], strict=True)],
            "decoded": [apart(a, b) for a, b in zip(results["decoded"], results["stock"], strict=True)],
            "lora_matters": apart(results["stock"][2], results["stock"][0]),
            "finite": all(bool(t.isfinite().all()) for t in results["stock"]), "size": results["ours_size"]}


def text_state_dict(coded: bool) -> dict:
    if coded:
        return {**loading.read_state_dict(VQ)[0], **loading.read_state_dict(str(FILES / "text-vq.safetensors"))[0]}
    return {**comfy.utils.load_torch_file(DENSE), **comfy.utils.load_torch_file(str(FILES / "text-dense.safetensors"))}


def encode(clip) -> list[torch.Tensor]:
    (cond, extra), = clip.encode_from_tokens_scheduled(clip.tokenize("a red fox in the (snow:1.2)"))
    return [cond, extra["pooled_output"]]


def case_errors() -> dict:
    """One sentence for what cannot be opened."""
    found = {}
    broken = FILES / "broken.safetensors"
    broken.write_bytes(Path(VQ).read_bytes()[:100_000])
    for name, load, path in (("unet_as_checkpoint", loading.load_checkpoint, UNET), ("truncated", ours_at, broken),
                             ("not_ours", ours_at, DENSE), ("gone", ours_at, FILES / "gone.safetensors")):
        try:
            load(path)
            found[name] = "opened"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def ours_at(path):
    return loading.load_checkpoint(path)


if __name__ == "__main__":
    with torch.inference_mode():
        result = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(result))
