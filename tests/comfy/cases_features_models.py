"""Other shapes of models, pictures in parts, the life of a model: usage cases_features_models.py HOST FILES CASE."""
from __future__ import annotations

import copy
import gc
import json
import os
import shutil
import weakref
from unittest import mock

from cases_features import compare, conditioning, control_lora, controlled, noise, result_of, sample, still_coded_here

from cases import CASE, CPU, DENSE, FILES, VQ, apart, ours, stock, with_lora  # isort: skip
import comfy.hooks  # isort: skip
import comfy.model_base  # isort: skip
import comfy.model_detection  # isort: skip
import comfy.model_management  # isort: skip
import comfy.model_patcher  # isort: skip
import comfy.sd  # isort: skip
import comfy.utils  # isort: skip
import nodes as stock_nodes  # isort: skip
import torch  # isort: skip
from vqpack.nodes import host, layout, loading  # isort: skip
from vqpack.nodes.schema import COMPRESSED, DECODED  # isort: skip


def case_pictures() -> dict:
    """Regions, masks, schedules, second passes, tiles."""
    from comfy_extras import nodes_differential_diffusion

    mask = (noise(1, 16, 16, seed=21) > 0).float()
    picture = noise(1, 4, 16, 16, seed=22)
    region = [*conditioning(2), *conditioning(5, area=(8, 8, 0, 8), strength=1.0, set_area_to_bounds=False)]
    masked = [*conditioning(2), *conditioning(5, mask=mask, mask_strength=0.9, set_area_to_bounds=False)]
    later = [*conditioning(5, start_percent=0.0, end_percent=0.4), *conditioning(2, start_percent=0.4, end_percent=1.0)]
    differential = nodes_differential_diffusion.DifferentialDiffusion
    found = compare({
        "area": lambda m: sample(m, region),
        "mask": lambda m: sample(with_lora(m, 0.7), masked),
        "schedule": lambda m: sample(m, later),
        "inpaint": lambda m: sample(m, latent=picture, noise_mask=mask),
        "differential": lambda m: sample(result_of(differential.execute(m)), latent=picture,
                                         noise_mask=noise(1, 16, 16, seed=23).sigmoid()),
        "hires": lambda m: second_pass(m),
    })
    vaes = [comfy.sd.load_checkpoint_guess_config(DENSE, output_vae=True, output_clip=False, output_model=False)[2],
            loading.load_checkpoint(VQ)[2]]
    pictures = [vae.decode_tiled(noise(1, 4, 32, 32), tile_x=16, tile_y=16, overlap=4) for vae in vaes]
    whole = vaes[0].decode(noise(1, 4, 32, 32))
    return {**found, "tiled_vae": [apart(pictures[1], pictures[0]), apart(pictures[0], whole)]}


def second_pass(model) -> torch.Tensor:
    small = sample(with_lora(model, 0.7))
    large = comfy.utils.common_upscale(small, 24, 24, "bislerp", "disabled")
    return sample(with_lora(model, 0.7), latent=large, denoise=0.6)


def case_shapes() -> dict:
    """An inpaint UNet of nine channels that predicts v with a terminal SNR of zero; the refiner after the base."""
    found, results = {}, {}
    for side in ("stock", "ours"):
        model, vae = load(side, "inpaint")
        pixels, mask = noise(1, 128, 128, 3, seed=31).sigmoid(), (noise(1, 128, 128, seed=32) > 0.3).float()
        positive, negative, latent = stock_nodes.InpaintModelConditioning().encode(
            conditioning(2), conditioning(3), vae=vae, pixels=pixels, mask=mask)
        results[side] = [sample(m, positive, latent["samples"], negative=negative, noise_mask=latent["noise_mask"])
                         for m in (model, with_lora(model, 0.7))]
        sampling = model.model.model_sampling
        results[side + "_kind"] = [model.model.model_type.name, float(sampling.sigma_max), model.model.concat_keys,
                                   model.model.diffusion_model.input_blocks[0][0].weight.shape[1]]
    found["inpaint"] = [apart(a, b) for a, b in zip(results["ours"], results["stock"], strict=True)]
    found["lora_matters"] = apart(results["stock"][1], results["stock"][0])
    found["kinds"] = [results["ours_kind"], results["stock_kind"]]
    found["refiner"] = refined()
    return found


def load(side: str, name: str) -> tuple:
    if side == "ours":
        model, _, vae = loading.load_checkpoint(str(FILES / f"{name}-vq.safetensors"))
    else:
        model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(str(FILES / f"{name}-dense.safetensors"),
                                                                 output_clip=False)
    return model, vae


def refined() -> dict:
    """Two steps of the base with noise left over, then one of the refiner, as KSamplerAdvanced runs them."""
    results, kinds = {}, {}
    for side in ("stock", "ours"):
        base, refiner = (stock() if side == "stock" else ours()), load(side, "refiner")[0]
        kinds[side] = type(refiner.model).__name__
        first = sample(base, steps=3, last_step=2, force_full_denoise=False)
        texts = [conditioning(seed, 1280, aesthetic_score=6.0) for seed in (2, 3)]
        last = sample(refiner, texts[0], first, steps=3, negative=texts[1], start_step=2, disable_noise=True,
                      force_full_denoise=True)
        results[side] = [first, last, sample(base, steps=3, last_step=2, force_full_denoise=False)]
    return {"apart": [apart(a, b) for a, b in zip(results["ours"], results["stock"], strict=True)],
            "effect": apart(results["stock"][1], results["stock"][0]), "kinds": kinds}


def case_markers() -> dict:
    """What a checkpoint says about its prediction beside the UNet reaches both loaders as it reaches the stock one."""
    found = {}
    coded, metadata = loading.read_state_dict(VQ)
    dense = comfy.utils.load_torch_file(DENSE)
    one = torch.ones(1)
    for name, markers in {"none": {}, "v_pred": {"v_pred": one}, "zsnr": {"v_pred": one, "ztsnr": one},
                          "playground": {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)},
                          "edm_vpred": {"edm_vpred.sigma_max": one * 120, "edm_vpred.sigma_min": one * 0.002}}.items():
        files = {"checkpoint": {**coded, **markers}}
        files["unet_file"] = {k.removeprefix("model.diffusion_model."): v for k, v in files["checkpoint"].items()
                              if not k.startswith("first_stage_model.")}
        config = comfy.model_detection.model_config_from_unet(dense, "model.diffusion_model.")
        kind = config.model_type({**dense, **markers}, "model.diffusion_model.")
        wanted = described(kind, comfy.model_base.model_sampling(config, kind), config.latent_format)
        loads = {"checkpoint": lambda: loading.load_checkpoint(VQ)[0],
                 "unet_of_checkpoint": lambda: loading.load_diffusion_model(VQ)}
        loads["unet_file"] = loads["unet_of_checkpoint"]
        got = {}
        for way, open_it in loads.items():
            sd = files["unet_file" if way == "unet_file" else "checkpoint"]
            with mock.patch.object(loading, "read_state_dict", lambda path, sd=sd: (dict(sd), dict(metadata))):
                model = open_it().model
            got[way] = described(model.model_type, model.model_sampling, model.latent_format)
        found[name] = {"wanted": wanted, **got}
    return found


def described(kind, sampling, latent_format) -> list:
    return [kind.name, [c.__name__ for c in type(sampling).__bases__], round(float(sampling.sigma_max), 3),
            round(float(sampling.sigma_min), 5), type(latent_format).__name__]


def case_life() -> dict:
    """Foreign patchers, copies, interrupts, compiling."""
    reference = stock()
    wanted = {"plain": sample(reference), "lora": sample(with_lora(reference, 0.7)),
              "two": sample(with_lora(reference, 0.7, -0.4))}
    model = ours()
    return {"effect": apart(wanted["lora"], wanted["plain"]), "foreign": foreign(model, wanted),
            "copies": copies(model, wanted), "interrupted": interrupted(model, wanted),
            "preview": preview(model, wanted), "extracted": extracted(reference, model),
            "files": files_and_modes(wanted)}


def foreign(model, wanted: dict) -> dict:
    """A pack that builds the host's own patcher around our model, before and after ours."""
    def build(**shared):
        other = comfy.model_patcher.ModelPatcher(model.model, model.load_device, model.offload_device)
        vars(other).update(shared)
        return other

    found = {"lora": apart(sample(with_lora(build(), 0.7)), wanted["lora"]),
             "then_ours": apart(sample(model), wanted["plain"]), "coded": still_coded_here(model),
             "ours_with_lora": apart(sample(with_lora(model, 0.7)), wanted["lora"])}
    other = with_lora(build(), 0.7, -0.4)
    found["after_ours_with_lora"] = apart(sample(other), wanted["two"])
    found["ours_after_two"] = apart(sample(with_lora(model, 0.7)), wanted["lora"])
    found["again"] = apart(sample(other), wanted["two"])
    found["plain_after_all"] = apart(sample(model), wanted["plain"])
    shared = with_lora(build(backup=model.backup, object_patches_backup=model.object_patches_backup), 0.7)
    found["shared_backup"] = apart(sample(shared), wanted["lora"])
    found["plain_after_shared"] = apart(sample(model), wanted["plain"])
    comfy.model_management.unload_all_models()
    partly = with_lora(build(), 0.7)
    partly.patch_model(CPU, lowvram_model_memory=int(partly.model_size() * 0.5))
    found["partly"] = apart(sample(partly), wanted["lora"])
    found["plain_after_partly"] = apart(sample(model), wanted["plain"])
    lora = comfy.utils.load_torch_file(str(FILES / "lora1.safetensors"), safe_load=True)
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=0.7, strength_clip=0.0)
    hooked = [[c, {**extra, "hooks": hooks}] for c, extra in conditioning(2)]
    right = sample(model.clone(), hooked)
    found["hooks"] = message(lambda: found.update(hooked=apart(sample(build(), hooked), right)))
    found["plain_after_hooks"] = apart(sample(model), wanted["plain"])
    found["coded_at_the_end"] = still_coded_here(model)
    return found


def copies(model, wanted: dict) -> dict:
    """The host's deep clones, and a copied UNet: independent of ours, with the same picture."""
    base = {m.weight._qdata.data_ptr() for _, m in model.coded_modules()}
    lora = with_lora(model, 0.7)
    ways = {"factory": lambda: lora.deepclone_multigpu(CPU), "forced": lambda: lora.clone(force_deepcopy=True)}
    found = {}
    for name, way in ways.items():
        made = way()
        found[name] = {"apart": apart(sample(made), wanted["lora"]), "type": type(made).__name__,
                       "own": not base & {m.weight._qdata.data_ptr() for _, m in made.coded_modules()},
                       "coded": still_coded_here(made)}
        ghost = weakref.ref(made.model)
        comfy.model_management.unload_all_models()
        del made
        gc.collect()
        comfy.model_management.cleanup_models()
        gc.collect()
        found[name]["freed"] = ghost() is None
    comfy.model_management.unload_all_models()
    unet = copy.deepcopy(model.model.diffusion_model)
    blobs = {m.weight._qdata.data_ptr() for m in unet.modules() if layout.is_coded(getattr(m, "weight", None))}
    replaced = model.clone()
    replaced.add_object_patch("diffusion_model", unet)
    found["deepcopy"] = {"apart": apart(sample(replaced), wanted["plain"]), "own": not base & blobs,
                         "coded": len(blobs) == len(base), "with_lora": apart(sample(with_lora(replaced, 0.7)),
                                                                              wanted["lora"])}
    from comfy_extras import nodes_multigpu

    placed = result_of(nodes_multigpu.SelectModelDeviceNode.execute(lora, "cpu"))
    found["selected"] = apart(sample(placed), wanted["lora"])
    found["after"] = apart(sample(model), wanted["plain"])
    return found


def interrupted(model, wanted: dict) -> dict:
    """Stopped at a layer of any step, with LoRA, hook or ControlLora in use, and while loading."""
    lora = comfy.utils.load_torch_file(str(FILES / "lora1.safetensors"), safe_load=True)
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=0.7, strength_clip=0.0)
    hooked = [[c, {**extra, "hooks": hooks}] for c, extra in conditioning(2)]
    found = {}
    for name, start in {"plain": lambda: sample(model), "lora": lambda: sample(with_lora(model, 0.7)),
                        "hook": lambda: sample(model.clone(), hooked),
                        "control_lora": lambda: sample(with_lora(model, 0.7), controlled(control_lora()))}.items():
        found[name] = [stopped(model, start, calls) for calls in (1, 90)]
        found[name] += [apart(sample(with_lora(model, 0.7)), wanted["lora"]), apart(sample(model), wanted["plain"])]
    calls = []

    def count():
        calls.append(0)
        if len(calls) == 50:
            comfy.model_management.interrupt_current_processing(True)
        comfy.model_management.throw_exception_if_processing_interrupted()

    with mock.patch.object(host, "raise_if_interrupted", count):
        found["loading"] = kind_of_end(lambda: loading.load_checkpoint(VQ))
    found["loaded_after"] = apart(sample(ours()), wanted["plain"])
    return found


def stopped(model, start, layers: int) -> str:
    """Run until a number of coded layers has run, then press stop."""
    seen, hooks = [], []

    def press(*_):
        seen.append(0)
        if len(seen) == layers:
            comfy.model_management.interrupt_current_processing(True)

    for _, module in model.coded_modules():
        hooks.append(module.register_forward_pre_hook(press))
    try:
        return kind_of_end(start)
    finally:
        for hook in hooks:
            hook.remove()


def kind_of_end(start) -> str:
    try:
        start()
    except BaseException as error:
        return type(error).__name__
    finally:
        comfy.model_management.interrupt_current_processing(False)
    return "finished"


def extracted(reference, model) -> float:
    """Differences of weights taken out by key, as LoraSave does, from a model with a LoRA."""
    from comfy_extras import nodes_lora_extract as extract
    from comfy_extras import nodes_model_merging

    results = []
    for base in (reference, model):
        difference = nodes_model_merging.ModelSubtract().merge(with_lora(base, 0.7), base, 1.0)[0]
        results.append(extract.calc_lora_model(difference, 8, "diffusion_model.", "d.", {}, extract.LORAType.FULL_DIFF))
    assert results[0].keys() == results[1].keys()
    return max(float((results[1][k].float() - v.float()).abs().max()) for k, v in results[0].items()) / max(
        float(v.float().abs().max()) for v in results[0].values())


def files_and_modes(wanted: dict) -> dict:
    """One file in two modes at once; the file deleted, replaced by a newer version, after the model was loaded."""
    path = FILES / "moved-vq.safetensors"
    shutil.copy(VQ, path)
    small, _, _ = loading.load_checkpoint(str(path), COMPRESSED)
    large, _, _ = loading.load_checkpoint(str(path), DECODED)
    found = {"both": [apart(sample(with_lora(small, 0.7)), wanted["lora"]), apart(sample(large), wanted["plain"]),
                      apart(sample(small), wanted["plain"]), apart(sample(with_lora(large, 0.7)), wanted["lora"])]}
    os.unlink(path)
    found["deleted"] = message(lambda: small.deepclone_multigpu(CPU))
    found["still_samples"] = apart(sample(small), wanted["plain"])
    data = bytearray(open(VQ, "rb").read(200_000))
    at = data.index(b'"vqpack.version":"') + len(b'"vqpack.version":"')
    data[at:at + 1] = b"9"
    with open(path, "wb") as out, open(VQ, "rb") as rest:
        rest.seek(200_000)
        out.write(data)
        shutil.copyfileobj(rest, out)
    found["newer"] = message(lambda: loading.load_diffusion_model(str(path)))
    os.unlink(path)
    return found


def message(start) -> str:
    try:
        start()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def preview(model, wanted: dict) -> dict:
    """Pictures during sampling, as the server sends them."""
    import latent_preview

    latent_preview.args.preview_method = latent_preview.LatentPreviewMethod.Latent2RGB
    shown = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, image, **_: shown.append((value, total, image)))
    callback = latent_preview.prepare_callback(model, 2)
    out = sample(with_lora(model, 0.7), callback=callback)
    comfy.utils.set_progress_bar_global_hook(None)
    pictures = [image[1].size for _, _, image in shown if image is not None]
    return {"apart": apart(out, wanted["lora"]), "steps": [value for value, _, _ in shown], "pictures": pictures}


def case_compiled() -> dict:
    """The TorchCompileModel node, without and with a LoRA, and a LoRA changed afterwards."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    reference, model = stock(), ours()
    wanted = [sample(reference), sample(with_lora(reference, 0.7)), sample(with_lora(reference, 0.7, -0.4))]
    found = {}
    for backend in os.environ.get("COMPILE_BACKENDS", "eager").split(","):
        compiled = model.clone(disable_dynamic=True)
        set_torch_compile_wrapper(model=compiled, backend=backend)
        outs = [sample(compiled), sample(with_lora(compiled, 0.7)), sample(with_lora(compiled, 0.7, -0.4))]
        found[backend] = [apart(a, b) for a, b in zip(outs, wanted, strict=True)]
        found[backend].append(apart(sample(compiled), wanted[0]))
        graphs = torch._dynamo.utils.counters
        found[backend + "_breaks"] = {str(k)[:150]: v for k, v in graphs["graph_break"].items()}
        found[backend + "_graphs"] = dict(graphs["stats"])
    found["after"] = [apart(sample(model), wanted[0]), 1.0]
    found["coded"] = still_coded_here(model)
    return found


if __name__ == "__main__":
    with torch.inference_mode():
        outcome = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(outcome))
