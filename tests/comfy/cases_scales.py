"""VQ Scale Adapter, observed inside a ComfyUI process: usage as cases.py, files of conftest.py.

The reference is the host's own loader on the decompressed file whose weights were scaled by hand.
"""
from __future__ import annotations

import json

import cases  # noqa: F401  (starts ComfyUI)

from cases import CASE, CPU, DENSE, FILES, UNET, VQ, apart, ours, sample, stock, with_lora  # isort: skip
import comfy.model_management  # isort: skip
import comfy.sd  # isort: skip
import comfy.utils  # isort: skip
import folder_paths  # isort: skip
import torch  # isort: skip
from vqpack.nodes import files, kept, kept_files, loading, scales  # isort: skip
from vqpack.nodes.scale_adapter import VQScaleAdapter  # isort: skip
from vqpack.nodes.schema import DECODED  # isort: skip
from vqpack.vq_core.adapters.file import Adapter, base_id, save_adapter  # isort: skip
from vqpack.vq_core.container import Reader  # isort: skip

BOUNDARY = 2.5                             # sigma
PREFIX = "model.diffusion_model."


def folder():
    from pathlib import Path

    found = Path(folder_paths.get_folder_paths(kept_files.FOLDER)[0])
    found.mkdir(parents=True, exist_ok=True)
    return found


def made(name: str, seed: int, experts: int, base: str | None = None) -> Adapter:
    """An adapter of the tiny file with large scales, saved under a name."""
    chance = torch.Generator().manual_seed(seed)

    def logs(count: int) -> torch.Tensor:
        return (0.15 * torch.randn(experts, count, generator=chance)).half()
    with Reader(VQ, mapped=False) as reader:
        keys = [key for key in reader.coded_keys() if key.startswith(PREFIX)]
        layers = {key: (logs(reader.layout(key).shape[0]), logs(reader.layout(key).shape[1])) for key in keys}
        found = Adapter(base or base_id(reader), (BOUNDARY,) * (experts - 1), layers)
    save_adapter(folder() / name, found, overwrite=True)
    return found


def around(weight: torch.Tensor, out: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """diag(exp(out)) W diag(exp(into))"""
    ones = [1] * (weight.dim() - 2)
    return weight.float() * out.float().exp().view(-1, 1, *ones) * into.float().exp().view(1, -1, *ones)


def scaled_model(*chosen: tuple[Adapter, int, float]):
    """The host's own model, float32, its weights scaled: (adapter, expert, strength) of each."""
    sd = comfy.utils.load_torch_file(DENSE)
    for adapter, expert, strength in chosen:
        for key, (out, into) in adapter.layers.items():
            sd[key] = around(sd[key], strength * out[expert].float(), strength * into[expert].float())
    return comfy.sd.load_state_dict_guess_config(sd, output_vae=False, output_clip=False)[0]


def scaled_lora(adapter: Adapter, expert: int) -> dict[str, torch.Tensor]:
    """lora1 as it is inside the scales."""
    lora = dict(comfy.utils.load_torch_file(str(FILES / "lora1.safetensors"), safe_load=True))
    for key, (out, into) in adapter.layers.items():
        name = "lora_unet_" + key.removeprefix(PREFIX).removesuffix(".weight").replace(".", "_")
        if f"{name}.lora_up.weight" in lora:
            up, down = lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"]
            lora[f"{name}.lora_up.weight"] = around(up, out[expert], torch.zeros(up.shape[1]))
            lora[f"{name}.lora_down.weight"] = around(down, torch.zeros(down.shape[0]), into[expert])
    return lora


def adapted(model, name: str, strength: float = 1.0, **more):
    return VQScaleAdapter.execute(model=model, adapter=name, strength=strength, **more).args[0]


def predicted(model, sigmas: list[float], rows: list[int] | None = None) -> torch.Tensor:
    """The denoised latents for these sigmas, one sample each, in one call -> [n, 4, 16, 16]"""
    chance, rows = torch.Generator().manual_seed(5), rows or list(range(len(sigmas)))
    x = torch.randn([8, 4, 16, 16], generator=chance)[rows]
    comfy.model_management.load_models_gpu([model])
    options = {"wrappers": {}, "sample_sigmas": torch.tensor(sigmas)}
    comfy.patcher_extension.merge_nested_dicts(options["wrappers"], model.wrappers, copy_dict1=False)
    y = torch.zeros([len(sigmas), 2816])
    with torch.inference_mode():
        return model.model.apply_model(x, torch.tensor(sigmas), c_crossattn=torch.zeros([len(sigmas), 77, 2048]), y=y,
                                       transformer_options=options)


def case_all() -> dict:
    files.register_folders()
    kept_files.register_folders()
    one, two = made("one.vqscales.safetensors", 1, 1), made("two", 2, 2)
    other = made("other", 3, 1, "0" * 64)
    assert other.base != one.base
    return {"one": one_expert(one), "experts": two_experts(two), "stacked": stacked(one, two), "host": host_side(),
            "trouble": trouble()}


def case_short() -> dict:
    """For an old host."""
    files.register_folders()
    kept_files.register_folders()
    one, two = made("one.vqscales.safetensors", 1, 1), made("two", 2, 2)
    return {"one": one_expert(one, ("compressed",)), "experts": two_experts(two)}


def one_expert(one: Adapter, modes: tuple[str, ...] = ("compressed", "decoded", "kept", "unet")) -> dict:
    """Every memory mode, with and without LoRA."""
    name, plain, found = "one.vqscales.safetensors", sample(stock()), {}
    reference = sample(scaled_model((one, 0, 1.0)))
    inside = comfy.sd.load_lora_for_models(scaled_model((one, 0, 1.0)), None, scaled_lora(one, 0), 0.7, 0)[0]
    inside, outside = sample(inside), sample(with_lora(scaled_model((one, 0, 1.0)), 0.7))
    found["matters"], found["order_matters"] = apart(reference, plain), apart(inside, outside)
    load = {"compressed": ours, "decoded": lambda: ours(DECODED), "kept": keeping,
            "unet": lambda: loading.load_diffusion_model(UNET)}
    for mode in modes:
        model = load[mode]()
        with_scales = adapted(model, name)
        found[mode] = {"scaled": apart(sample(with_scales), reference),
                       "lora_before": apart(sample(adapted(with_lora(model, 0.7), name)), inside),
                       "lora_after": apart(sample(with_lora(with_scales, 0.7)), inside),
                       "without": apart(sample(model), plain), "same": bool(torch.equal(sample(model), sample(
                           adapted(model, name, 0.0))))}
    half = adapted(ours(), name)
    comfy.model_management.unload_all_models()
    half.patch_model(CPU, lowvram_model_memory=int(half.model_size() * 0.5))
    found["half_loaded"] = apart(predicted(half, [3.0]), predicted(scaled_model((one, 0, 1.0)), [3.0]))
    found["half_strength"] = apart(sample(adapted(ours(), name, 0.5)), sample(scaled_model((one, 0, 0.5))))
    return found


def keeping():
    """The model with all its weights kept decoded."""
    model = ours()
    kept.set_budget(model, 1 << 30)
    return model


def two_experts(two: Adapter) -> dict:
    """Each sample of a batch gets its own; a boundary belongs to the noisier one."""
    model, low, high = adapted(ours(), "two.vqscales.safetensors"), scaled_model((two, 0, 1.0)), scaled_model(
        (two, 1, 1.0))
    below = float(torch.nextafter(torch.tensor(BOUNDARY), torch.tensor(0.0)))
    mixed = [9.0, 0.5, BOUNDARY, below, 0.1]
    together = predicted(model, mixed)
    single = [predicted(expert, [sigma], [row]) for row, (sigma, expert) in
              enumerate(zip(mixed, (high, low, high, low, low)))]
    wrong = [predicted(expert, [sigma], [row]) for row, (sigma, expert) in
             enumerate(zip(mixed, (low, high, low, high, high)))]
    return {"apart": max(apart(a[None], b[0][None]) for a, b in zip(together, single)),
            "matters": min(apart(a[None], b[0][None]) for a, b in zip(together, wrong))}


def stacked(one: Adapter, two: Adapter) -> dict:
    """Two adapters in both orders, against both by hand."""
    names = ("one.vqscales.safetensors", "two.vqscales.safetensors")
    reference = predicted(scaled_model((one, 0, 0.8), (two, 1, -0.5)), [4.0, 6.0])
    orders = [adapted(adapted(ours(), names[0], 0.8), names[1], -0.5),
              adapted(adapted(ours(), names[1], -0.5), names[0], 0.8)]
    undone = adapted(adapted(ours(), names[0]), names[0], -1.0)
    return {"apart": [apart(predicted(model, [4.0, 6.0]), reference) for model in orders],
            "wrappers": [len(model.get_wrappers("apply_model", scales.KEY)) for model in orders],
            "undone": apart(predicted(undone, [4.0]), predicted(ours(), [4.0]))}


def host_side() -> dict:
    """Nothing is loaded again, nothing is left."""
    model = ours()
    sample(model)
    weights = [layer.weight.data_ptr() if not hasattr(layer.weight, "_qdata") else layer.weight._qdata.data_ptr()
               for _, layer in model.coded_modules()]
    with_scales = adapted(model, "one.vqscales.safetensors")
    sample(with_scales)
    same = weights == [layer.weight._qdata.data_ptr() for _, layer in with_scales.coded_modules()]
    left = sum(getattr(layer, "scales", None) is not None for layer in model.model.modules())
    return {"same_weights": same, "left": left, "size": [model.model_size(), with_scales.model_size()],
            "listed": kept_files.adapters(), "clone": bool(with_scales.clone().get_wrappers("apply_model", scales.KEY)),
            "schema": [[entry.id for entry in VQScaleAdapter.define_schema().inputs],
                       [entry.io_type for entry in VQScaleAdapter.define_schema().outputs]]}


def trouble() -> dict:
    """One sentence each."""
    (folder() / "cut.vqscales.safetensors").write_bytes((folder() / "one.vqscales.safetensors").read_bytes()[:2000])
    cases_of = {"stock": lambda: adapted(stock(), "one.vqscales.safetensors"),
                "other": lambda: adapted(ours(), "other.vqscales.safetensors"),
                "cut": lambda: adapted(ours(), "cut.vqscales.safetensors"),
                "gone": lambda: adapted(ours(), "gone.vqscales.safetensors"),
                "outside": lambda: adapted(ours(), "../one.vqscales.safetensors")}
    found = {}
    for name, call in cases_of.items():
        try:
            call()
            found[name] = "accepted"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    found["none"] = adapted(ours(), kept_files.NONE).get_wrappers("apply_model", scales.KEY) == []
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(globals()[f"case_{CASE}"]()), flush=True)
