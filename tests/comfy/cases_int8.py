"""int8 activations, observed inside a ComfyUI process.

Usage cases_int8.py HOST FILES CASE+CASE; prints `FOUND {json}`: case -> what it found. The reference is the same model
with every int8 product replaced by its emulation (tests/activations holds that to the definition).
"""
from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from cases_memory import LORA, apart, fake, references, sample, with_lora

# isort: split
import comfy.model_management as management
import torch
from cases_memory import CASE, FILES, VQ, activations
from vqpack.nodes import call, files, layout, loading
from vqpack.nodes.loaders import VQCheckpointLoader
from vqpack.nodes.schema import ACTIVATIONS, AS_FILED, COMPRESSED, DECODED, FULL, INT8
from vqpack.vq_core import quantize as quantizing
from vqpack.vq_core.activations import int8
from vqpack.vq_core.errors import PlanError

MB = 1 << 20


def ours(activations=INT8, mode=COMPRESSED, keep=0, path=VQ):
    return loading.load_checkpoint(path, mode, keep, activations)[0]


@contextlib.contextmanager
def emulated():
    """Every int8 product in floating point."""
    def product(x, coded, bias, spec, integers=None):
        return int8.emulated_product(x, coded, bias, spec)
    with mock.patch.object(call, "int8_product", product):
        yield


def has_product(module) -> bool:
    return module.inputs is not None and int8.why_emulated(layout.unwrap(module.weight), torch.float32) is None


def layers_apart(model) -> float:
    """Largest distance of a layer's int8 product from its emulation, both given the same."""
    found = []
    for _, module in model.coded_modules():
        if has_product(module):
            x = torch.randn(3, module.weight.shape[1])
            product = module(x)
            with emulated():
                found.append(apart(product, module(x)))
    return max(found)


def rounded_layers(model) -> list[str]:
    return sorted(key for key, module in model.coded_modules() if module.inputs is not None)


def case_pictures() -> dict:
    """int8 against its emulation and against 16 bits, without and with a LoRA, and after the LoRA."""
    model, plain = ours(), references()
    patched = with_lora(model, LORA)
    with emulated():
        want, want_lora = sample(model), sample(patched)
    found = {"apart": apart(sample(model), want), "lora": apart(sample(patched), want_lora),
             "after": apart(sample(model), want), "from_16_bits": apart(want, plain["plain"]),
             "lora_from_16_bits": apart(want_lora, plain["lora"]), "lora_matters": apart(want_lora, want)}
    names, found["alone"] = rounded_layers(model), layers_apart(model)
    found["layers"] = [len(names), sum(".attn2.to_k." in n or ".attn2.to_v." in n or "emb" in n for n in names)]
    found["off"] = rounded_layers(ours(FULL))
    return found


def case_kept() -> dict:
    """Integers kept on the device: the same picture, a byte a weight, in either memory mode; partly, and in none."""
    found, want = {}, sample(ours())
    for name, model in (("kept", ours(keep=4 * MB)), ("decoded", ours(mode=DECODED))):
        found[name] = apart(sample(model), want)
        kept = [module.kept for _, module in model.coded_modules() if module.kept is not None]
        found[f"{name}_bytes"] = [sum(k.nbytes for k in kept), model.kept_bytes(),
                                  sum(k.dtype == torch.int8 for k in kept), len(kept)]
        found[f"{name}_int8"] = all((module.kept.dtype == torch.int8) == has_product(module)
                                    for _, module in model.coded_modules() if module.kept is not None)
        found[f"{name}_lora"] = apart(sample(with_lora(model, LORA)), sample(with_lora(ours(), LORA)))
    copy = model.cached_patcher_init[0](*model.cached_patcher_init[1])
    found["copy"] = rounded_layers(copy) == rounded_layers(model) and copy.model is not model.model
    for state, free in {"NO_VRAM": fake.PLENTY, "NORMAL_VRAM": None}.items():
        management.unload_all_models()
        with fake.second_device(state, fake.PLENTY):
            model = with_lora(ours(), LORA)
        with fake.second_device(state, free or activations(model) + model.model_size() // 2):
            found[state] = apart(sample(model), sample(with_lora(ours(), LORA)))
    management.unload_all_models()
    return found


def case_compiled() -> dict:
    """One graph without a break, its int8 product in it, with kept integers and without."""
    found = {}
    for name, keep in (("anew", 0), ("kept", 4 * MB)):
        model = ours(keep=keep)
        sample(model)
        key, module = next((k, m) for k, m in model.coded_modules() if m.inputs is not None and (not keep or
                                                                                              m.kept is not None))
        x = torch.randn(2, 5, module.weight.shape[1])
        torch._dynamo.reset()
        with mock.patch.object(layout, "int8_product", wraps=layout.int8_product) as product:
            got = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
        found[name] = [apart(got, module(x)), product.call_count > 0, apart(got, plain_product(module, x)) > 1e-4]
    return found


def case_controlnet() -> dict:
    """A control net beside an int8 model: as emulated, without and with a LoRA."""
    spec = importlib.util.spec_from_file_location("cases_features", Path(__file__).with_name("cases_features.py"))
    features = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(features)      # by its path: sys.path[0] is ComfyUI's now
    draw = features.sample
    found, model, plain = {}, ours(), ours(FULL)
    for name, own, exact in (("alone", model, plain), ("lora", with_lora(model, LORA), with_lora(plain, LORA))):
        def drawn(any_model):
            return draw(any_model, features.controlled(features.controlnet()))
        with emulated():
            want = drawn(own)
        found[name] = {"apart": apart(drawn(own), want), "from_16_bits": apart(want, drawn(exact)),
                       "matters": apart(want, draw(own))}
    return found


def plain_product(module, x):
    return torch.nn.functional.linear(x, layout.plain(module.weight), module.bias)


def case_filed() -> dict:
    """What the file's plan says is followed; what loading cannot do is refused in one sentence."""
    found = {}
    for name in ("int8", "dgq8", None):
        path = FILES / f"filed-{name}.safetensors"
        quantizing.quantize(FILES / "dense-as-source.safetensors", path, bits=1, method="uniform", activations=name,
                            overwrite=True)
        try:
            found[str(name)] = len(rounded_layers(ours(AS_FILED, path=path)))
        except PlanError as error:
            found[str(name)] = str(error)
    files.register_folders()
    schema = {i.id: i for i in VQCheckpointLoader.define_schema().inputs}["activations"]
    found["input"] = [schema.optional, schema.default, list(schema.options) == list(ACTIVATIONS)]
    VQCheckpointLoader.hidden = SimpleNamespace(unique_id="7")
    with mock.patch.object(files, "vq_path", lambda name: VQ):
        found["node"] = len(rounded_layers(VQCheckpointLoader.execute("x", COMPRESSED, activations=INT8).args[0]))
    return found


if __name__ == "__main__":
    with torch.inference_mode():
        result = {case: globals()[f"case_{case}"]() for case in CASE.split("+")}
    print("FOUND " + json.dumps(result))
