"""What is observed of memory inside a ComfyUI process.

Usage cases_memory.py HOST FILES CASE+CASE; prints `FOUND {json}`: case -> what it found.
"""
from __future__ import annotations

import functools
import gc
import importlib.util
import json
import weakref
from pathlib import Path
from unittest import mock

from cases import CASE, CPU, DYNAMIC, FILES, VQ, apart, layers_apart, ours, sample, stock, with_lora

# isort: split
import comfy.model_management as management
import torch

_spec = importlib.util.spec_from_file_location("fake_gpu", Path(__file__).with_name("fake_gpu.py"))
fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake)             # by its path: sys.path[0] is ComfyUI's now

from vqpack.nodes import layout, loading, patcher, scratch  # noqa: E402
from vqpack.vq_core.decompress import decompress  # noqa: E402

DENSE = FILES / "dense-as-source.safetensors"      # what `vqpack decompress` writes: fp16 where the source was
LORA = 0.7


@functools.cache
def references() -> dict[str, torch.Tensor]:
    """Latents of the stock loader on the decompressed file, without and with the LoRA."""
    if not DENSE.is_file():
        decompress(VQ, DENSE)
    model = stock(str(DENSE))
    return {"plain": sample(model), "lora": sample(with_lora(model, LORA))}


def held_bytes(model) -> int:
    """Bytes of every storage that the model's parameters and buffers keep alive, each counted once."""
    tensors = [*model.model.parameters(), *model.model.buffers()]
    storages = [(t._qdata if layout.is_coded(t) else t).untyped_storage() for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def patches_per_weight(model) -> list[int]:
    """How many functions the patched coded weights have, each number once."""
    return sorted({len(m.weight_function) for key, m in model.coded_modules() if key in model.patches})


def seen(model, reference: dict, name: str = "lora") -> dict:
    """One sampling with the model as it is loaded, and the state it leaves."""
    out = {"apart": apart(sample(model), reference[name]), "patches": patches_per_weight(model),
           "size_exact": abs(model.model_size() / held_bytes(model) - 1), "coded": len(list(model.coded_modules()))}
    return {**out, "loaded": model.loaded_size(), "held": model.held_bytes(), "offered": model.patch_bytes(),
            "size": model.model_size(), "lowvram": bool(model.model.model_lowvram)}


STATES = {"default": ("NORMAL_VRAM", fake.PLENTY), "tight": ("NORMAL_VRAM", None), "lowvram": ("LOW_VRAM", None),
          "novram": ("NO_VRAM", fake.PLENTY), "highvram": ("HIGH_VRAM", fake.PLENTY)}


def case_states() -> dict:
    """One sampling with one LoRA in each memory state of the host, on the second device."""
    reference = references()
    found = {"lora_matters": apart(reference["lora"], reference["plain"])}
    for name, (state, free) in STATES.items():
        management.unload_all_models()
        with fake.second_device(state, fake.PLENTY):
            model = with_lora(ours(), LORA)
        free = free or activations(model) + model.model_size() // 2
        with fake.second_device(state, free):
            found[name] = seen(model, reference)
            found[name]["removed"] = apart(sample(without_lora(model)), reference["plain"])
            management.unload_all_models()
            found[name]["left"] = [model.loaded_size(), model.held_bytes()]
    return found


def without_lora(model):
    bare = model.clone()
    bare.patches, bare.patches_uuid = {}, object()
    return bare


def activations(model) -> int:
    """What the host keeps free at least for one call of sample()."""
    return int(model.model.memory_required([1, 4, 16, 16]))


def case_steps() -> dict:
    """Loading and unloading by hand, in halves, then strengths that change between samplings."""
    reference, found = references(), {}
    with fake.second_device():
        base = ours()
        model = with_lora(base, LORA)
        size, offered = model.model_size(), model.patch_bytes()
        model.patch_model(fake.GPU, lowvram_model_memory=size // 2)
        found["half"] = {"patches": patches_per_weight(model), "loaded": model.loaded_size(),
                         "held": model.held_bytes(), "budget": size // 2, "offered": offered}
        freed = model.partially_unload(CPU, size // 4)
        found["after_unload"] = {"patches": patches_per_weight(model), "freed": freed, "asked": size // 4,
                                 "loaded": model.loaded_size(), "layers": layers_apart(model)}
        model.partially_unload(CPU, size // 8)
        model.load(fake.GPU, lowvram_model_memory=size * 10)
        found["more"] = {"patches": patches_per_weight(model), "layers": layers_apart(model)}
        model.unpatch_model(CPU)
        found["unpatched"] = {"loaded": model.loaded_size(), "held": model.held_bytes(),
                              "functions": sum(len(m.weight_function) for _, m in model.coded_modules())}
        model.patch_model(fake.GPU, lowvram_model_memory=size + offered // 2)
        found["barely"] = {"loaded": model.loaded_size(), "budget": size + offered // 2, "held": model.held_bytes()}
        model.unpatch_model(CPU)
        weaker = with_lora(base, LORA / 2)
        found["weaker_matters"] = apart(sample(weaker), reference["lora"])
        found["strength"] = seen(with_lora(base, LORA), reference)
        found["same_size"] = with_lora(base, LORA).model_size() == base.model_size() == size
        found["removed"] = seen(base, reference, "plain")
    return found


def case_together() -> dict:
    """Two VQ models, a dense one and a second network in one graph, with room for one of them; batch after batch."""
    reference, found = references(), {}
    with fake.second_device():
        first, second, dense = with_lora(ours(), LORA), ours(), stock(str(DENSE))
        room = activations(first) + first.model_size() + first.patch_bytes() * 3
    with fake.second_device(free=room):
        found["first"] = apart(sample(first), reference["lora"])
        found["second"] = apart(sample(second), reference["plain"])
        found["dense"] = apart(sample(dense), reference["plain"])
        found["first_again"] = apart(sample(first), reference["lora"])
        found["within"] = sum(m.model_loaded_memory() for m in management.current_loaded_models) <= room
        found["both"] = apart(sample(beside(first, second)), reference["lora"])
        found["growth"] = growth(first)
    ghosts = [weakref.ref(m.model) for m in (first, second)]
    management.unload_all_models()
    del first, second, dense
    gc.collect()
    management.cleanup_models()
    gc.collect()
    found["freed"] = [ghost() is None for ghost in ghosts]
    return found


def beside(model, other):
    """The model with another that is loaded for the same sampling, as a ControlNet is."""
    both = model.clone()
    both.set_additional_models("beside", [other.clone()])
    return both


def growth(model) -> dict:
    """Objects and bytes after the second and after the fifth sampling of one model."""
    def count() -> dict:
        gc.collect()
        alive = gc.get_objects()
        modules = list(model.coded_modules())
        return {"patch objects": sum(type(o).__name__ == "VQPatch" for o in alive),
                "functions": sum(len(m.weight_function) for _, m in modules), "bytes": model.held_bytes(),
                "loaded models": len(management.current_loaded_models), "tables": len(layout._TABLES),
                "heads": len(layout._HEADS), "tensors": sum(isinstance(o, torch.Tensor) for o in alive)}

    sample(model)
    sample(model.clone())
    before = count()
    for strength in (0.3, 0.6, 0.9):
        sample(with_lora(model, strength))
    sample(model)
    return {"before": before, "after": count()}


def case_dynamic() -> dict:
    """Dynamic VRAM over a simulated one: the host's own code, our patcher, slots that are taken away."""
    reference, found = references(), {}
    with fake.second_device(), fake.fake_dynamic_vram():
        base = ours(DYNAMIC)
        found["type"] = type(base).__name__
        model = with_lora(base, LORA)
        vbar = None
        for name in ("first", "again"):
            found[name] = seen(model, reference)
        vbar = model._vbar_get()
        found["slots"], found["faults"] = len(vbar.slots), vbar.faults
        found["pinned"] = sum(vbar.pinned.values())
        found["slot_bytes"] = sum(s.nbytes for s in vbar.slots.values())
        found["lowvram_functions"] = sum(getattr(m, "weight_lowvram_function", None) is not None
                                         for _, m in model.coded_modules())
        found["blobs_kept"] = blobs_kept(model, vbar)
        freed = model.partially_unload(None, 1e30)
        found["taken_away"] = {"freed": freed, "left": [model.loaded_size(), model.held_bytes()],
                               **seen(model, reference)}
        vbar.full = True
        found["no_room"] = seen(model, reference)
        vbar.full = False
        found["weaker_matters"] = apart(sample(with_lora(base, LORA / 2)), reference["lora"])
        found["strength"], found["removed"] = seen(model, reference), seen(base, reference, "plain")
        delegate = model.get_non_dynamic_delegate()
        found["delegate"] = {"type": type(delegate).__name__, "apart": apart(sample(delegate), reference["lora"])}
        model.unpatch_model(CPU)
        found["unpatched"] = {"loaded": model.loaded_size(), "held": model.held_bytes(),
                              "functions": sum(len(m.weight_function) for _, m in model.coded_modules())}
        dense = stock(str(DENSE))
        found["dense_beside"] = {"type": type(dense).__name__, "apart": apart(sample(dense), reference["plain"])}
        found["after_dense"] = apart(sample(model), reference["lora"])
    return found


def blobs_kept(model, vbar) -> bool:
    """Whether every slot begins with the very bytes of its coded weight: nothing was written back."""
    with_slots = [m for _, m in model.coded_modules() if hasattr(m, "_v")]
    return bool(with_slots) and all(
        torch.equal(vbar.slots[m._v[1]][:m.weight._qdata.numel()], m.weight._qdata) for m in with_slots)


def case_estimate() -> dict:
    """Scratch in what the host asks for: on the way of the sampler, and of a patcher made by someone else."""
    import comfy.model_patcher
    import comfy.sampler_helpers

    model, noise = ours(), [1, 4, 16, 16]
    asked = []
    with mock.patch.object(management, "load_models_gpu", lambda *a, **k: asked.append(k)):
        comfy.sampler_helpers.prepare_sampling(model, noise, {}, model.model_options)
    plain = type(model.model).__base__.memory_required(model.model, [2, 4, 16, 16])
    foreign = comfy.model_patcher.ModelPatcher(model.model, CPU, CPU)
    decoded = loading.load_checkpoint(VQ, "decoded")[0]
    return {"sampler": asked[0]["memory_required"] - plain, "patcher": model.memory_required([2, 4, 16, 16]) - plain,
            "foreign": foreign.memory_required([2, 4, 16, 16]) - plain,
            "largest": max(m.weight.numel() for _, m in model.coded_modules()),
            "decoded": scratch.decode_scratch(decoded.model), "name": type(model.model).__name__,
            "twice": patcher.adopt(model) is model and model.memory_required([2, 4, 16, 16]) - plain}


if __name__ == "__main__":
    with torch.inference_mode():
        result = {case: globals()[f"case_{case}"]() for case in CASE.split("+")}
    print("FOUND " + json.dumps(result))
