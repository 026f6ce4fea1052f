"""Every kind of adapter in every memory mode, observed inside a ComfyUI process: usage as cases.py.

The reference is the same adapter in the host's own loader on the decompressed file: outputs of single layers, latents.
"""
from __future__ import annotations

import contextlib
import json
import logging
import sys

ARGUMENTS = sys.argv[4:]

import adapters  # noqa: E402
import cases  # noqa: E402, F401  (starts ComfyUI)
import comfy.hooks  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from cases import CPU, DENSE, UNET, apart, ours, stock  # noqa: E402
from vqpack.nodes import loading, patches  # noqa: E402
from vqpack.nodes.schema import DECODED  # noqa: E402

STRENGTH = 0.7
ADAPTED = adapters.LINEAR + adapters.CONV + adapters.DENSE_LAYERS
LAYERS_ONLY = ("novram", "unet")           # sampled without an adapter only: half of the time of a run
SHOWN = {"linear": adapters.LINEAR[:3], "conv": (adapters.CONV[0], adapters.CONV[1], adapters.CONV[3])}


def weights_of(layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """layer -> its decompressed weight"""
    sd = comfy.utils.load_torch_file(DENSE)
    return {layer: sd[f"model.diffusion_model.{layer}.weight"].float() for layer in layers}


def add(model, lora: dict, strength: float = STRENGTH):
    return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0)[0]


def bypass(model, lora: dict, strength: float = STRENGTH):
    return comfy.sd.load_bypass_lora_for_models(model, None, dict(lora), strength, 0)[0]


@contextlib.contextmanager
def state(model, how: str):
    """The model as that memory mode leaves it; nothing loads it otherwise until the block ends."""
    load, size = comfy.model_management.load_models_gpu, model.model_size()
    comfy.model_management.unload_all_models()
    budget = {"partial": size * 0.65, "novram": 0.1}.get(how, 0)             # 0: whole; 0.1 is what --novram gives
    model.patch_model(CPU, lowvram_model_memory=budget)
    if how == "unloaded":
        model.partially_unload(CPU, int(size * 0.2))
        model.partially_unload(CPU, int(size * 0.2))
    comfy.model_management.load_models_gpu = lambda *args, **kwargs: None
    try:
        yield model
    finally:
        comfy.model_management.load_models_gpu = load
        model.detach()


def short_sample(model, steps: int = 2, cfg: float = 1.0, positive_hooks=None, negative_hooks=None) -> torch.Tensor:
    """128 px, one half of guidance unless cfg says otherwise -> latents [1, 4, 16, 16]"""
    def conditioning(value: float, hooks):
        more = {} if hooks is None else {"hooks": hooks}
        return [[torch.full([1, 77, 2048], value), {"pooled_output": torch.full([1, 1280], value), **more}]]
    latent = torch.zeros([1, 4, 16, 16])
    return comfy.sample.sample(model, comfy.sample.prepare_noise(latent, 1), steps, cfg, "euler", "normal",
                               conditioning(0.1, positive_hooks), conditioning(0.0, negative_hooks), latent, seed=1,
                               disable_pbar=True)


def layer_outputs(model, group: str) -> list[torch.Tensor]:
    """What single layers of a group give for a fixed input, as the model is loaded now."""
    out = []
    for layer in SHOWN[group]:
        module = comfy.utils.get_attr(model.model, f"diffusion_model.{layer}")
        shape = [1, module.in_channels, 6, 6] if group == "conv" else [2, module.in_features]
        out.append(module(torch.randn(shape, generator=torch.Generator().manual_seed(3))))
    return out


def observed(model, how: str = "full", sampled: bool = True) -> dict:
    """{"linear": outputs, "conv": outputs, "latents": [latents]}, one line instead where an error was raised, and
    "lines" that were logged, "held": the share of adapted layers that is loaded."""
    steps = {group: lambda group=group: layer_outputs(model, group) for group in SHOWN}
    steps |= {"latents": lambda: [short_sample(model)]} if sampled else {}
    found = {}
    with logged() as lines, state(model, how):
        for name, step in steps.items():
            try:
                found[name] = step()
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                found[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        layers = [comfy.utils.get_attr(model.model, f"diffusion_model.{layer}") for layer in ADAPTED]
        held = sum(getattr(module, "comfy_patched_weights", False) for module in layers) / len(layers)
    return {**found, "held": held, "lines": sorted(line for line in lines if line.startswith(("ERROR", "WARNING")))}


@contextlib.contextmanager
def logged():
    """The lines that the root logger gets meanwhile, with their level's name."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


def compared(found: dict, reference: dict) -> dict:
    """Largest relative distance for each group of outputs; [error of ours, of the host's] where one was raised."""
    out = {}
    for name in ("linear", "conv", "latents"):
        if isinstance(found.get(name), str) or isinstance(reference.get(name), str):
            out[name] = [value if isinstance(value, str) else "" for value in (found.get(name), reference.get(name))]
        elif name in found:
            out[name] = max(apart(a, b) for a, b in zip(found[name], reference[name], strict=True))
    return out


def case_matrix() -> dict:
    """kinds (all, or those named as arguments) x memory modes."""
    weights = weights_of(ADAPTED)
    reference, compressed = stock(), ours()
    models = {"full": compressed, "partial": compressed, "novram": compressed, "unloaded": compressed,
              "decoded": ours(DECODED), "unet": loading.load_diffusion_model(UNET)}
    plain, found = observed(reference), {}
    for kind in ARGUMENTS or adapters.KINDS:
        lora = adapters.make(kind, weights)
        wanted = observed(add(reference, lora))
        row = {"effect": compared(wanted, plain), "host_lines": wanted["lines"]}
        for mode, model in models.items():
            got = observed(add(model, lora), mode, sampled=mode not in LAYERS_ONLY)
            row[mode] = {**compared(got, wanted), "lines": got["lines"], "held": got["held"]}
        wanted = observed(bypass(reference, lora))
        row["bypass_effect"] = compared(wanted, plain)
        row["bypass"] = compared(observed(bypass(compressed, lora)), wanted)
        found[kind] = row
    after = {mode: compared(observed(model), plain) for mode, model in models.items()}
    return {"kinds": found, "after": after, "versions": versions(), "coded": coded_layers(compressed)}



def coded_layers(model) -> list[str]:
    """Those of the adapted layers whose weight is coded."""
    keys = {key.removeprefix("diffusion_model.").removesuffix(".weight") for key, _ in model.coded_modules()}
    return sorted(keys.intersection(ADAPTED))


def versions() -> dict[str, str]:
    """What the matrix was made with."""
    import importlib.metadata

    import comfyui_version

    return {"ComfyUI": comfyui_version.__version__, "torch": torch.__version__.partition("+")[0],
            "comfy-kitchen": importlib.metadata.version("comfy-kitchen")}


def case_moved() -> dict:
    """Where the tensors of each kind of patch are once it was moved (device `meta` stands for another device)."""
    weights, found = weights_of(adapters.LINEAR[:1] + adapters.CONV[:1]), {}
    models = {kind: add(ours_once(), adapters.make(kind, weights)) for kind in adapters.KINDS if kind != "diff_b"}
    models["merge"] = ours_once().clone()
    models["merge"].add_patches(add(ours_once(), adapters.make("loha", weights)).get_key_patches("diffusion_model."))
    for kind, model in models.items():
        kept = [patches.VQPatch(key, model.patches[key], None) for key, _ in model.coded_modules()
                if key in model.patches]
        kept += [patches.HookPatch(p.key, p._original, None) for p in kept]
        here = [tensors(p._held) for p in kept]
        moved = [p.move_to(torch.device("meta")) for p in kept]
        there = [tensors(p._held) for p in kept]
        again, freed = [p.move_to(torch.device("meta")) for p in kept], [p.move_to(CPU) for p in kept]
        found[kind] = {"count": sum(map(len, there)), "same_count": [*map(len, there)] == [*map(len, here)],
                       "there": all(t.is_meta for ts in there for t in ts), "again": any(again),
                       "bytes": moved == freed == [sum(t.nbytes for t in ts) for ts in here],
                       "back": [[id(t) for t in tensors(p._held)] for p in kept] == [[id(t) for t in ts]
                                                                                     for ts in here]}
    return found


_ONE = []


def ours_once():
    _ONE or _ONE.append(ours())
    return _ONE[0]


def tensors(value) -> list[torch.Tensor]:
    """Every tensor in patches, whatever it hangs on (a search of its own, not the code under test)."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple, set)):
        return [t for item in value for t in tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    return tensors(vars(value)) if hasattr(value, "loaded_keys") else []


def case_padded() -> dict:
    """Patches that make a weight larger, as adapters for inpainting do: coded Linear and Conv2d, dense first conv."""
    reference, model, found = stock(), ours_once(), {}
    for layer, shape in (("input_blocks.3.0.in_layers.2", (320, 324, 3, 3)),
                         ("input_blocks.3.1.proj_in", (320, 328)), ("input_blocks.0.0", (320, 9, 3, 3))):
        key, x = f"diffusion_model.{layer}", torch.randn([2, *shape[1:2], *([6, 6] if len(shape) == 4 else [])])
        up, down = torch.randn([320, 4, *[1] * (len(shape) - 2)]), torch.randn([4, *shape[1:]])
        lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down,
                f"{key}.reshape_weight": torch.tensor(shape)}
        larger = {f"{key}.weight": ("diff", (torch.randn(shape), {"pad_weight": True}))}
        for name, make in (("reshape", lambda m, c=lora: add(m, c)), ("pad", lambda m, c=larger: patched(m, c))):
            wanted, distances = called(make(reference), "full", key, x), []
            for how in ("full", "partial", "novram", "unloaded"):
                distances.append(apart(called(make(model), how, key, x), wanted))
            narrow = x[:, :comfy.utils.get_attr(model.model, f"{key}.weight").shape[1]]
            found[f"{name} {layer}"] = {
                "apart": max(distances), "removed": apart(called(model, "full", key, narrow),
                                                          called(reference, "full", key, narrow)),
                "shape_changed": narrow.shape != x.shape}
    return found


def patched(model, contents: dict):
    changed = model.clone()
    changed.add_patches(contents)
    return changed


def called(model, how: str, key: str, x: torch.Tensor) -> torch.Tensor:
    with state(model, how):
        return comfy.utils.get_attr(model.model, key)(x)


def case_said() -> dict:
    """What our side logs about LoRA whose keys match no layer, and the host about tensors of a wrong shape."""
    model, reference, weights = ours_once(), stock(), weights_of(adapters.LINEAR[:1] + adapters.CONV[:1])
    fits, nothing = adapters.make("lora", weights), {"lora_unet_other_model_1.lora_up.weight": torch.ones(2, 2)}
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)}
    clip, empty = ours(), {}
    clip.is_clip = True                    # a patcher of text encoders, as far as patches go
    hook = comfy.hooks.create_hook_lora(lora=nothing, strength_model=0.7, strength_clip=0.7)
    found = {"model": said(lambda: add(model, nothing)),
             "model_and_clip": said(lambda: [p.clone().add_patches(empty) for p in (model, clip)]),
             "fits": said(lambda: add(model, fits)),
             "hook_used_twice": said(lambda: [short_sample(model, positive_hooks=hook) for _ in range(2)]),
             "hook_fits": said(lambda: hooked(model, fits)), "for_text_encoders": said(lambda: hooked(model, text)),
             "for_the_unet": said(lambda: patched(clip, {"diffusion_model.no.such.weight": ("diff", (1,))}))}
    wrong = {key: torch.ones(2, 3) if "alpha" not in key else value for key, value in fits.items()}
    lines, latents = {}, {}
    for name, one in (("ours", model), ("host", reference)):
        seen = observed(add(one, wrong), "full")
        lines[name], latents[name] = sum("ERROR" in line for line in seen["lines"]), seen["latents"][0]
    return {**found, "wrong_shape": {**lines, "apart": apart(latents["ours"], latents["host"])}}


def hooked(model, contents: dict) -> torch.Tensor:
    return short_sample(model, positive_hooks=comfy.hooks.create_hook_lora(contents, 0.7, 0.7))


def said(action) -> list[str]:
    """Lines of ours that an action logs."""
    with logged() as lines:
        action()
    return [line for line in lines if " VQ: " in line]


if __name__ == "__main__":
    with torch.inference_mode():
        result = globals()[f"case_{cases.CASE}"]()
    print("FOUND " + json.dumps(result))
