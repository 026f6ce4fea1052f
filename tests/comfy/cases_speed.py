"""Side products of LoRA and kept decoded weights, observed inside a ComfyUI process.

Usage cases_speed.py HOST FILES CASE+CASE; prints `FOUND {json}`: case -> what it found. The reference is the host's own
loader on the decompressed file.
"""
from __future__ import annotations

import functools
import gc
import json
from types import SimpleNamespace
from unittest import mock

import adapters
from cases_memory import (
    CPU,
    DENSE,
    DYNAMIC,
    LORA,
    apart,
    fake,
    held_bytes,
    ours,
    sample,
    stock,
    with_lora,
    without_lora,
)

# isort: split
import comfy.hooks
import comfy.model_management as management
import comfy.sd
import comfy.utils
import torch
from cases_memory import CASE, FILES, VQ, activations, references
from vqpack.nodes import call, loading
from vqpack.vq_core import scratch_pool

STRENGTH, MB = 0.7, 1 << 20


class Beside:
    """Which way LoRA goes, decided here; counts what went beside the product."""

    def __init__(self, always: bool):
        self.always, self.calls, self.terms = always, 0, 0

    def __enter__(self):
        add = call.add_beside_

        def counted(y, x, terms):
            self.calls, self.terms = self.calls + 1, self.terms + len(terms)
            return add(y, x, terms)

        self._patches = [mock.patch.object(call, "add_beside_", counted),
                         mock.patch.object(call, "beside_is_cheaper", lambda *_: self.always)]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in self._patches:
            patch.stop()


@functools.cache
def weights() -> dict[str, torch.Tensor]:
    """layer -> its decompressed weight, of the linear layers that the adapters meet and one convolution"""
    sd = comfy.utils.load_torch_file(str(DENSE)) if references() else {}
    return {layer: sd[f"model.diffusion_model.{layer}.weight"].float()
            for layer in (*adapters.LINEAR, adapters.CONV[0])}


def add(model, lora: dict, strength: float = STRENGTH):
    return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0)[0]


@functools.cache
def models() -> tuple:
    """The host's on the decompressed file, and ours."""
    return stock(str(DENSE)), ours()


def both_ways(make_model) -> dict:
    """Latents' distance to the host's, LoRA beside and onto; how often a side product was added."""
    dense, coded = models()
    reference = sample(make_model(dense))
    found = {"effect": apart(reference, references()["plain"])}
    for name, always in (("beside", True), ("onto", False)):
        with Beside(always) as seen:
            found[name] = {"apart": apart(sample(make_model(coded)), reference), "calls": seen.calls,
                           "terms": seen.terms}
    return found


def case_kinds() -> dict:
    """Every kind of adapter, side products forced: plain LoRA and LoKr go beside, the others do not."""
    found = {}
    for kind in adapters.KINDS:
        lora = adapters.make(kind, weights())
        found[kind] = both_ways(lambda model, lora=lora: add(model, lora))
    two = [adapters.make("lora", weights(), seed=seed) for seed in (1, 2)]
    found["two"] = both_ways(lambda model: add(add(model, two[0]), two[1], -0.4))
    mixed = adapters.make("dora", weights())
    found["lora_and_dora"] = both_ways(lambda model: add(add(model, two[0]), mixed))
    return found


def case_hooks() -> dict:
    """LoRA by hook beside the product, alone and on a model that has one."""
    lora = comfy.utils.load_torch_file(str(FILES / "lora1.safetensors"), safe_load=True)

    def hooked(model):
        hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=STRENGTH, strength_clip=0.0)
        return sample(model.clone(), hooks)

    reference = {"hook": hooked(stock(str(DENSE))), "hook_on_lora": hooked(with_lora(stock(str(DENSE)), LORA))}
    with Beside(True) as seen:
        found = {"hook": apart(hooked(ours()), reference["hook"]),
                 "hook_on_lora": apart(hooked(with_lora(ours(), LORA)), reference["hook_on_lora"])}
    return {**found, "calls": seen.calls, "effect": apart(reference["hook"], references()["plain"])}


def case_memory() -> dict:
    """Side products in every memory state and under dynamic VRAM, with LoRA tensors on either side."""
    reference, found = references(), {}
    for name, (state, free) in {"whole": ("NORMAL_VRAM", fake.PLENTY), "tight": ("NORMAL_VRAM", None),
                                "novram": ("NO_VRAM", fake.PLENTY)}.items():
        management.unload_all_models()
        with fake.second_device(state, fake.PLENTY):
            model = with_lora(ours(), LORA)
        with fake.second_device(state, free or activations(model) + model.model_size() // 2), Beside(True) as seen:
            found[name] = {"apart": apart(sample(model), reference["lora"]), "calls": seen.calls,
                           "removed": apart(sample(without_lora(model)), reference["plain"])}
    management.unload_all_models()
    with fake.second_device(), fake.fake_dynamic_vram(), Beside(True) as seen:
        model = with_lora(ours(DYNAMIC), LORA)
        found["dynamic"] = {"apart": apart(sample(model), reference["lora"]), "calls": seen.calls,
                            "pinned": sum(model._vbar_get().pinned.values()), "removed": 0.0}
    return found


def case_kept() -> dict:
    """A budget of decoded weights: counted, given back first, dropped with the model, right with a LoRA."""
    reference, found = references(), {}
    budget = 6 * MB
    with fake.second_device():
        model = loading.load_checkpoint(VQ, keep_bytes=budget)[0]
        size = model.model_size()
        found["plain"] = apart(sample(model), reference["plain"])
        kept = model.kept_bytes()
        found |= {"kept": kept, "budget": budget, "size_same": size == model.model_size() == ours().model_size(),
                  "counted": model.loaded_size() - size - model.held_bytes(),
                  "in_state_dict": any("kept" in key for key in model.model.state_dict()),
                  "parameters": held_bytes(model) <= 1.01 * size}
        patched = with_lora(model, LORA)
        for name, always in (("lora_beside", True), ("lora_onto", False)):
            with Beside(always):
                found[name] = apart(sample(patched), reference["lora"])
        found["kept_with_lora"], found["after_lora"] = patched.kept_bytes(), apart(sample(model), reference["plain"])
        loaded = model.loaded_size()
        found["freed"] = model.partially_unload(CPU, kept // 2)
        found["after_freeing"] = [model.kept_bytes(), loaded - model.loaded_size(), bool(model.model.model_lowvram)]
        found["again"] = apart(sample(model), reference["plain"])
        copy = model.cached_patcher_init[0](*model.cached_patcher_init[1])
        found["copy"] = [copy.model.vq_keep_bytes, copy.model is model.model]
        management.unload_all_models()
        found["unloaded"] = [model.kept_bytes(), model.loaded_size(), scratch_pool.POOL.held_bytes()]
        model.patch_model(fake.GPU, lowvram_model_memory=size + 2 * MB)
        found["little_room"] = [model.loaded_size(), size + 2 * MB, model.kept_bytes()]
        module = next(m for _, m in model.coded_modules() if m.kept is not None)
        found["moved"] = module.to("cpu").kept is None
    management.unload_all_models()
    return found


def case_lent() -> dict:
    """Decoded weights share memory while sampling: little is held, nothing grows, gradients get memory of their own."""
    model, pool = ours(), scratch_pool.POOL
    pool.clear()
    first = sample(model)
    held = pool.held_bytes()
    second = sample(model)
    largest = max(module.weight.numel() for _, module in model.coded_modules())
    gc.collect()
    module = next(m for _, m in model.coded_modules() if m.weight.dim() == 2)
    with torch.inference_mode(False), torch.enable_grad():
        pool.clear()
        x = torch.randn([3, module.in_features], requires_grad=True)
        module(x).sum().backward()
        lent = pool.held_bytes()
    return {"same": torch.equal(first, second), "held": held, "most": 2 * 4 * largest, "lent_with_gradients": lent,
            "gradient": float(x.grad.abs().sum())}


def case_nodes() -> dict:
    """The nodes themselves: Benchmark (VQ) on tiny shapes, the loaders' input; also on an old host."""
    from vqpack.nodes import files
    from vqpack.nodes.bench import VQBenchmark
    from vqpack.nodes.loaders import VQCheckpointLoader, VQDiffusionModelLoader
    from vqpack.vq_core.bench import run as bench

    tiny = bench.Settings("cpu", torch.float32, 16, 0.001, ("ceilings", "linears"))
    VQBenchmark.hidden = SimpleNamespace(unique_id="7")
    with mock.patch.object(bench, "make_settings", lambda device, quick: tiny):
        text, data = VQBenchmark.execute(quick=True).args
    found = {"text": "x dense" in text, "json": sorted(json.loads(data))}
    files.register_folders()
    with mock.patch.object(files, "vq_path", lambda name: VQ):
        for loader in (VQCheckpointLoader, VQDiffusionModelLoader):
            loaded = loader.execute("tiny-vq.safetensors", "compressed", keep_decoded=3).args[0]
            found[loader.__name__] = loaded.model.vq_keep_bytes
            schema = {i.id: i for i in loader.define_schema().inputs}["keep_decoded"]
            found[f"{loader.__name__}_input"] = [schema.optional, schema.default]
        bare = VQDiffusionModelLoader.execute("tiny-vq.safetensors", "compressed").args[0]
        found["left_out"] = bare.model.vq_keep_bytes
    return found


if __name__ == "__main__":
    with torch.inference_mode():
        result = {case: globals()[f"case_{case}"]() for case in CASE.split("+")}
    print("FOUND " + json.dumps(result))
