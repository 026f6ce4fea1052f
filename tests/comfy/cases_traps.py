"""Eleven ways to lose a coded model in ComfyUI, each seen twice: with our guard, and with the guard taken away.

Usage cases_traps.py HOST FILES TRAP+TRAP; prints `FOUND {json}`: trap -> {"guarded": ..., "bare": ...}.
"""
from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from unittest import mock

from cases import CASE, CPU, DYNAMIC, FILES, VQ, apart, layers_apart, ours, sample, stock, with_lora

# isort: split
import comfy.model_patcher
import comfy.sampler_helpers
import torch
from comfy_kitchen.tensor.base import QuantizedTensor
from safetensors.torch import load_file, save_file
from vqpack.nodes import layout, loading, ops, patcher
from vqpack.vq_core.decompress import decompress
from vqpack.vq_core.errors import FormatError, UnsupportedError
from vqpack.vq_core.writer import Writer

_spec = importlib.util.spec_from_file_location("fake_gpu", Path(__file__).with_name("fake_gpu.py"))
fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake)             # by its path: sys.path[0] is ComfyUI's now

LORA = 0.7
TORCH_SAVES = torch.nn.Module._save_to_state_dict


def bare(owner, name: str, instead=None):
    """The guard `owner.name` taken away, so that what it overrides is reached, or replaced."""
    if instead is not None:
        return mock.patch.object(owner, name, instead)
    return _removed(owner, name)


class _removed:
    def __init__(self, owner, name):
        self.owner, self.name, self.kept = owner, name, vars(owner)[name]

    def __enter__(self):
        delattr(self.owner, self.name)

    def __exit__(self, *_):
        setattr(self.owner, self.name, self.kept)


def both(observe, guard) -> dict:
    """What `observe` finds with the guard and without it."""
    guarded = observe()
    with guard:
        return {"guarded": guarded, "bare": observe()}


@functools.cache
def references() -> dict[str, torch.Tensor]:
    """Latents of the stock loader on the decompressed file, without and with the LoRA."""
    path = FILES / "dense-as-source.safetensors"
    if not path.is_file():
        decompress(VQ, path)
    model = stock(str(path))
    return {"plain": sample(model), "lora": sample(with_lora(model, LORA))}


def distances(latents: torch.Tensor) -> dict[str, float]:
    """From the reference with the LoRA, and from the one without."""
    return {name: apart(latents, reference) for name, reference in references().items()}


def patched_once() -> tuple:
    """(model, module) of a loaded model with a LoRA; the module is coded and patched."""
    model = with_lora(ours(), LORA)
    model.patch_model(CPU)
    return model, next(m for key, m in model.coded_modules() if key in model.patches)


def trap_1() -> dict:
    """safetensors writes a quantized tensor by its logical length: memory behind its bytes goes into the file."""
    weight = next(m for _, m in ours().coded_modules()).weight
    secret = torch.full([weight.numel() * 8], 0x5A, dtype=torch.uint8)          # everything behind the blob
    secret[:weight._qdata.numel()] = weight._qdata
    module = ops.VQOps.Linear(8, 8, bias=False)
    inside = QuantizedTensor(secret[:weight._qdata.numel()], weight._layout_cls, weight._params)
    module._parameters["weight"] = torch.nn.Parameter(inside, requires_grad=False)

    def observe() -> dict:
        path = FILES / "trap1.safetensors"
        path.unlink(missing_ok=True)
        try:
            save_file(module.state_dict(), path)
        except UnsupportedError as error:
            return {"refused": str(error), "written": path.exists()}
        return {"opens": load_file(path)["weight"].shape == weight.shape, "of": path.stat().st_size // 64,
                "foreign": path.read_bytes().count(b"\x5a" * 64)}

    return both(observe, bare(ops.Coded, "_save_to_state_dict", TORCH_SAVES))


def trap_2() -> dict:
    """A patcher that another pack made computes on what convert_weight gives; without it a LoRA changes nothing."""
    def observe() -> dict:
        model = with_lora(comfy.model_patcher.ModelPatcher(ours().model, CPU, CPU), LORA)
        return distances(sample(model))

    return both(observe, bare(ops.Coded, "convert_weight"))


def trap_3() -> dict:
    """The host appends the LoRA once more to every layer it unloads."""
    def observe() -> dict:
        model, _ = patched_once()
        model.partially_unload(CPU, model.model_size())
        return {"functions": max(len(m.weight_function) for _, m in model.coded_modules()),
                "layers": layers_apart(model)}

    return both(observe, bare(patcher.VQModelPatcher, "partially_unload"))


def trap_4() -> dict:
    """The host's patcher writes a patched weight back, dense."""
    def observe() -> dict:
        model = with_lora(ours(), LORA)
        before = parameter_bytes(model)
        model.patch_model(CPU)
        return {"growth": parameter_bytes(model) / before, "lora": apart(sample(model), references()["lora"])}

    return both(observe, bare(loading, "adopt", lambda model: model))


def parameter_bytes(model) -> int:
    return sum(p._qdata.nbytes if layout.is_coded(p) else p.nbytes for p in model.model.parameters())


def trap_5() -> dict:
    """Dynamic VRAM writes a weight with its LoRA back into its slot, coded again."""
    def observe() -> dict:
        with fake.second_device(), fake.fake_dynamic_vram():
            model = with_lora(ours(DYNAMIC), LORA)
            try:
                latents = sample(model)
            except NotImplementedError as error:
                return {"ended": str(error)}
            return {"ended": "sampled", "lora": apart(latents, references()["lora"]),
                    "slots changed": slots_changed(model)}

    found = both(observe, bare(patcher._OnTheFly, "_attach", lambda self, device: None))
    with (mock.patch.object(QuantizedTensor, "requantize_from_float", written_back),
          bare(patcher._OnTheFly, "_attach", lambda self, device: None)):
        return {**found, "neither": observe()}       # neither the patcher nor the layout refuses


def written_back(weight, tensor, **options):
    """A layout that does take weights back; what it makes of them does not matter here."""
    return QuantizedTensor(torch.roll(weight._qdata, 64), weight._layout_cls, weight._params)


def slots_changed(model) -> int:
    vbar = model._vbar_get()
    return sum(not torch.equal(vbar.slots[m._v[1]][:m.weight._qdata.numel()], m.weight._qdata)
               for _, m in model.coded_modules() if hasattr(m, "_v"))


def trap_6() -> dict:
    """A table among a weight's parameters is not counted by `nbytes`, and there is one for every layer."""
    @dataclasses.dataclass(frozen=True)
    class WithTable(layout.VQParams):
        table: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(4096, dtype=torch.int8))

        def _tensor_fields(self):
            return ["table"]

    def observe() -> dict:
        weights = [m.weight for _, m in ours().coded_modules()]
        inner = [getattr(w, name) for w in weights for name in w.__tensor_flatten__()[0]]
        return {"held": sum(t.nbytes for t in inner), "counted": sum(w.nbytes for w in weights),
                "weights": len(weights), "tables": len({t.data_ptr() for t in inner}) - len(weights)}

    return both(observe, bare(layout, "VQParams", WithTable))


def trap_7() -> dict:
    """The host's dynamic patcher answers with its plain one on the CPU, whatever class was asked for."""
    model = ours().model
    dynamic = patcher.VQModelPatcherDynamic
    return both(lambda: type(dynamic(model, CPU, CPU)).__name__, bare(dynamic, "__new__"))


def trap_8() -> dict:
    """torch.compile cannot follow the decoder, whose tables are global."""
    modules = dict(ours().coded_modules())
    names = {"conv": lambda key, m: m.weight.dim() == 4, "linear": lambda key, m: m.weight.dim() == 2,
             "trellis": lambda key, m: "input_blocks.3.1" in key and "attn1" in key}
    chosen = {name: next(m for key, m in modules.items() if fits(key, m)) for name, fits in names.items()}
    chosen["lora"] = patched_once()[1]

    def observe() -> dict:
        return {name: compiled(module) for name, module in chosen.items()}

    return both(observe, bare(layout.VQLayout, "dequantize", decode_in_sight))


def decode_in_sight(qdata, params):
    """The decoder called as it is."""
    return layout.decode(layout.CodedWeight(qdata, params.head, layout._TABLES), params.orig_dtype)


def compiled(module) -> float | str:
    """Distance of a compiled layer from itself, in one graph without a break; or the name of the error."""
    torch._dynamo.reset()
    weight = module.weight
    x = torch.randn([2, weight.shape[1], *([8, 8] if weight.dim() == 4 else [])])
    expected = module(x)
    try:
        return apart(torch.compile(module, backend="aot_eager", fullgraph=True)(x), expected)
    except Exception as error:             # torch has a class of its own for every stage
        return type(error).__name__


def trap_9() -> dict:
    """Nodes that need a second copy of a model (compile, hooks, several devices) ask its loader for one."""
    def observe() -> str:
        model, _, _ = loading.load_checkpoint(VQ)
        try:
            copy = model.clone(force_deepcopy=True)
        except RuntimeError as error:
            return str(error)
        return f"{type(copy).__name__} {copy.model is not model.model}"

    return both(observe, bare(loading, "_remember", lambda *arguments: None))


def trap_10() -> dict:
    """A key that ends in `.comfy_quant` makes the stock loader take the file for its own format."""
    sd = load_file(FILES / "dense-as-source.safetensors") if references() else {}
    key = "model.diffusion_model.input_blocks.5.1.proj_in."

    entry = torch.frombuffer(bytearray(b'{"format": "vq"}'), dtype=torch.uint8)

    def observe(name: str) -> str:
        try:
            with Writer(FILES / "trap10-vq.safetensors") as opened:
                opened.add(name, entry)
        except FormatError as error:
            return f"refused by us: {error}"
        save_file({**sd, name: entry}, FILES / "trap10.safetensors")
        try:
            stock(str(FILES / "trap10.safetensors"))
        except (KeyError, ValueError) as error:
            return f"refused by the stock loader: {error}"
        return "opened"

    return {"guarded": observe(f"{key}comfy_quant"), "bare": observe(_Unsuspected(f"{key}comfy_quant"))}


class _Unsuspected(str):
    """A name whose end nobody sees: the guard taken away."""

    __slots__ = ()

    def endswith(self, *arguments):
        return False


def trap_11() -> dict:
    """The host asks the model how much memory one call takes; a decoded weight is not in its answer."""
    def observe() -> float:
        model, asked = ours(), []
        with mock.patch.object(comfy.model_management, "load_models_gpu", lambda *a, **k: asked.append(k)):
            comfy.sampler_helpers.prepare_sampling(model, [1, 4, 16, 16], {}, model.model_options)
        activations = comfy.model_patcher.ModelPatcher(stock_model().model, CPU, CPU).memory_required([2, 4, 16, 16])
        largest = max(m.weight.numel() for _, m in model.coded_modules())
        return (asked[0]["memory_required"] - activations) / (4 * largest)

    return both(observe, bare(patcher, "count_scratch", lambda model: None))


@functools.cache
def stock_model():
    return stock(str(FILES / "dense.safetensors"))


if __name__ == "__main__":
    with torch.inference_mode():
        result = {number: globals()[f"trap_{number}"]() for number in CASE.split("+")}
    print("FOUND " + json.dumps(result))
