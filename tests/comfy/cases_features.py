"""Features of ComfyUI on VQ models, observed inside its process: usage cases_features.py HOST FILES CASE.

Like cases.py, whose start of the host and whose helpers it takes; FILES are those of test_features.py.
"""
from __future__ import annotations

import contextlib
import gc
import json
import weakref

from cases import CASE, CPU, apart, ours, stock, with_lora  # starts ComfyUI

import comfy.cldm.cldm  # isort: skip
import comfy.controlnet  # isort: skip
import comfy.model_management  # isort: skip
import comfy.model_patcher  # isort: skip
import comfy.ops  # isort: skip
import comfy.sample  # isort: skip
import comfy.samplers  # isort: skip
import comfy.utils  # isort: skip
import torch  # isort: skip
from vqpack.nodes import layout  # isort: skip

STEPS = 2


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(seed: int, width: int = 2048, **extra) -> list:
    return [[noise(1, 77, width, seed=seed), {"pooled_output": noise(1, 1280, seed=seed), **extra}]]


def sample(model, positive=None, latent=None, steps: int = STEPS, cfg: float = 2.0, **options) -> torch.Tensor:
    """-> latents [1, 4, 16, 16]"""
    latent = torch.zeros([1, 4, 16, 16]) if latent is None else latent
    negative = options.pop("negative", None) or conditioning(3)
    return comfy.sample.sample(model, noise(*latent.shape), steps, cfg, "euler", "normal",
                               positive or conditioning(2), negative, latent, seed=1, disable_pbar=True, **options)


def compare(tests: dict) -> dict:
    """name -> function(model) -> [how far ours is from the stock one, how far the stock one is from doing nothing]"""
    models = {"stock": stock(), "ours": ours()}
    plain, found = sample(models["stock"]), {}
    for name, test in tests.items():
        results = {side: test(model) for side, model in models.items()}
        effect = apart(results["stock"], plain) if results["stock"].shape == plain.shape else 1.0
        found[name] = [apart(results["ours"], results["stock"]), effect]
    found["after"] = [apart(sample(models["ours"]), plain), 1.0]
    assert still_coded_here(models["ours"])
    return found


def still_coded_here(model) -> bool:
    return len(list(model.coded_modules())) > 40


def result_of(output):
    """First output of a node of either API."""
    return output[0] if isinstance(output, tuple) else output.result[0]


def case_patches() -> dict:
    """Nodes that change what happens between the layers."""
    from comfy_extras import (
        nodes_attention_multiply,
        nodes_freelunch,
        nodes_hypertile,
        nodes_model_advanced,
        nodes_model_downscale,
        nodes_pag,
        nodes_perpneg,
        nodes_sag,
        nodes_tomesd,
    )

    advanced = nodes_model_advanced
    return compare({
        "lora": lambda m: sample(with_lora(m, 0.7)),
        "freeu": lambda m: sample(freeu(m, nodes_freelunch.FreeU)),
        "freeu_v2": lambda m: sample(freeu(m, nodes_freelunch.FreeU_V2)),
        "pag": lambda m: sample(result_of(nodes_pag.PerturbedAttentionGuidance.execute(m, 3.0))),
        "pag_and_lora": lambda m: sample(result_of(nodes_pag.PerturbedAttentionGuidance.execute(with_lora(m, .7), 3.))),
        "sag": lambda m: sample(result_of(nodes_sag.SelfAttentionGuidance.execute(m, 0.5, 2.0))),
        "hypertile": lambda m: sample(hypertile(m, nodes_hypertile)),
        "tome": lambda m: sample(result_of(nodes_tomesd.TomePatchModel.execute(m, 0.5))),
        "downscale": lambda m: sample(result_of(nodes_model_downscale.PatchModelAddDownscale.execute(
            m, 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"))),
        "attention_multiply": lambda m: sample(result_of(nodes_attention_multiply.UNetSelfAttentionMultiply.execute(
            m, 1.2, 1.0, 0.8, 1.0))),
        "rescale_cfg": lambda m: sample(advanced.RescaleCFG().patch(m, 0.7)[0], cfg=7.0),
        "v_prediction": lambda m: sample(advanced.ModelSamplingDiscrete().patch(m, "v_prediction", False)[0]),
        "zsnr": lambda m: sample(advanced.ModelSamplingDiscrete().patch(m, "v_prediction", True)[0]),
        "lcm": lambda m: sample(advanced.ModelSamplingDiscrete().patch(m, "lcm", False)[0]),
        "edm": lambda m: sample(advanced.ModelSamplingContinuousEDM().patch(m, "edm_playground_v2.5", 80.0, .002)[0]),
        "compute_dtype": lambda m: sample(advanced.ModelComputeDtype().patch(with_lora(m, 0.7), "fp32")[0]),
        "perp_neg": lambda m: sample(result_of(nodes_perpneg.PerpNeg.execute(m, conditioning(5), 1.0))),
        "ip_adapter": lambda m: sample(ip_adapter(m)),
        "ip_adapter_and_lora": lambda m: sample(ip_adapter(with_lora(m, 0.7))),
        "attention_patches": lambda m: sample(attention_patches(m)),
        "wrappers": lambda m: sample(wrappers(m)),
        "hidden_states": lambda m: sample(block_patches(m)),
    })


def freeu(model, node):
    """FreeU looks for layers twice and four times as wide as the first; here all are as wide."""
    config = model.model.model_config.unet_config
    with changed(config, "model_channels", config["model_channels"] // 2):
        return result_of(node.execute(model, 1.3, 1.4, 0.9, 0.2))


@contextlib.contextmanager
def changed(mapping: dict, key: str, value):
    before, mapping[key] = mapping[key], value
    yield
    mapping[key] = before


def hypertile(model, nodes_hypertile):
    """With tiles as small as the picture needs, cut the same way every time."""
    nodes_hypertile.random_divisor = lambda value, smallest, options=1: 2
    return result_of(nodes_hypertile.HyperTile.execute(model, 32, 2, 2, False))


def ip_adapter(model):
    """As the packs do it: cross attention of some blocks replaced by their own sum; widths read from the weights."""
    model = model.clone()
    tokens = noise(2, 4, 2048, seed=7)
    for block in (("input", 4, 0), ("middle", 0, 0), ("input", 7, 1)):
        place = model.model.diffusion_model.middle_block if block[0] == "middle" else (
            model.model.diffusion_model.input_blocks[block[1]])
        layer = place[1].transformer_blocks[block[2]].attn2
        width, context = layer.to_k.weight.shape
        assert (width, context) == (layer.to_k.out_features, layer.to_k.in_features) == (320, 2048)
        to_k, to_v = noise(width, context, seed=8) * .02, noise(width, context, seed=9) * .02
        model.set_model_attn2_replace(image_attention(tokens, to_k, to_v), *block)
    return model


def image_attention(tokens, to_k, to_v):
    from comfy.ldm.modules.attention import optimized_attention

    def attention(q, k, v, extra):
        out = optimized_attention(q, k, v, extra["n_heads"])
        image = tokens[:q.shape[0]].to(q)
        return out + 0.6 * optimized_attention(q, image @ to_k.T.to(q), image @ to_v.T.to(q), extra["n_heads"])
    return attention


def attention_patches(model):
    model = model.clone()
    model.set_model_attn1_patch(lambda q, k, v, extra: (q * 1.1, k, v * 0.9))
    model.set_model_attn1_output_patch(lambda out, extra: out * 1.05)
    model.set_model_attn2_patch(lambda q, k, v, extra: (q, torch.cat([k, k[:, :3]], 1), torch.cat([v, v[:, :3]], 1)))
    model.set_model_attn2_output_patch(lambda out, extra: out * 0.9)
    return model


def block_patches(model):
    model = model.clone()
    model.set_model_input_block_patch(lambda h, options: h * 1.02)
    model.set_model_output_block_patch(lambda h, skip, options: (h * 1.02, skip * 0.95))
    return model


def wrappers(model):
    """Function wrapper, diffusion wrapper, object patch and callbacks together."""
    model, called = model.clone(), []
    model.set_model_unet_function_wrapper(lambda apply, p: apply(p["input"], p["timestep"], **p["c"]) * 0.9)
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test",
                               lambda executor, *args, **kwargs: executor(*args, **kwargs) * 1.1)
    model.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, "test",
                                lambda *args: called.append(args))
    scaled = torch.nn.Sequential(model.model.diffusion_model.out[0], torch.nn.SiLU(),
                                 model.model.diffusion_model.out[2])
    model.add_object_patch("diffusion_model.out", scaled)
    model = model.clone()
    model.set_model_sampler_cfg_function(lambda args: args["uncond"] + 1.7 * (args["cond"] - args["uncond"]))
    return model


def case_control() -> dict:
    """Everything that steers by a picture."""
    found = compare({
        "controlnet": lambda m: sample(m, controlled(controlnet())),
        "controlnet_and_lora": lambda m: sample(with_lora(m, 0.7), controlled(controlnet())),
        "t2i_adapter": lambda m: sample(m, controlled(t2i_adapter())),
        "control_lora": lambda m: sample(m, controlled(control_lora())),
        "control_lora_and_lora": lambda m: sample(with_lora(m, 0.7), controlled(control_lora())),
        "two_chained": lambda m: sample(m, controlled(control_lora(), controlled(controlnet()))),
        "difference_net": lambda m: sample(m, controlled(difference_net(m))),
    })
    model = ours()
    found["lifetime"] = lifetime(model)
    found["partly_loaded"] = partly_loaded(model)
    return found


def lifetime(model) -> dict:
    """A ControlLora borrows the coded weights while it samples, keeps nothing and leaves the model as it was."""
    size, keys, control, seen = model.model_size(), sorted(model.model.state_dict()), control_lora(), []

    def look(args):
        net = control.control_model
        shared = [m for m in net.modules() if layout.is_coded(getattr(m, "weight", None))]
        seen.append((weakref.ref(net), len(shared), comfy.model_management.module_size(model.model)))
        base = {m.weight._qdata.data_ptr() for _, m in model.coded_modules()}
        assert all(m.weight._qdata.data_ptr() in base for m in shared)
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(look)
    positive = [[c, {**extra, "control": control.set_cond_hint(hint(), 0.8), "control_apply_to_uncond": True}]
                for c, extra in conditioning(2)]
    sample(watched, positive)
    gc.collect()
    return {"borrowed": seen[0][1], "freed": seen[0][0]() is None, "coded": still_coded_here(model),
            "same_keys": keys == sorted(model.model.state_dict()), "size_during": seen[0][2] == size,
            "size_after": comfy.model_management.module_size(model.model) == size}


def partly_loaded(model) -> float:
    """ControlLora while half of the model is offloaded, with a LoRA, against the fully loaded one."""
    model = with_lora(model, 0.7)
    whole = sample(model, controlled(control_lora()))
    model.partially_unload(CPU, int(model.model_size() * 0.5))
    return apart(sample(model, controlled(control_lora())), whole)


def hint() -> torch.Tensor:
    return noise(1, 3, 128, 128, seed=11).sigmoid()


def controlled(control, positive=None, strength: float = 0.8) -> list:
    """What ControlNetApply does."""
    out = []
    for cond, extra in positive or conditioning(2):
        one = control.copy().set_cond_hint(hint(), strength)
        one.set_previous_controlnet(extra.get("control"))
        out.append([cond, {**extra, "control": one, "control_apply_to_uncond": True}])
    return out


def control_shapes() -> dict:
    """Keys and shapes of a control net of this UNet."""
    config = {**CONFIG[0], "hint_channels": 3, "dtype": torch.float32, "device": "meta",
              "operations": comfy.ops.manual_cast}
    config.pop("out_channels")
    net = comfy.cldm.cldm.ControlNet(**config)
    return {key: value.shape for key, value in net.state_dict().items()}


CONFIG: list[dict] = []


def control_weights() -> dict:
    if not CONFIG:
        CONFIG.append(stock().model.model_config.unet_config)
    out = {}
    for number, (key, shape) in enumerate(sorted(control_shapes().items())):
        value = noise(*shape, seed=100 + number)
        norm = len(shape) == 1 and key.endswith("weight")
        out[key] = torch.ones(shape) if norm else value * (0.02 if len(shape) == 1 else value[0].numel() ** -0.5)
    return out


def controlnet():
    return comfy.controlnet.load_controlnet_state_dict(control_weights())


def difference_net(model):
    """A control net stored as its difference from the UNet."""
    weights = {f"control_model.{key}": value * 0.3 for key, value in control_weights().items()}
    return comfy.controlnet.load_controlnet_state_dict({**weights, "difference": torch.ones(1)}, model)


def control_lora():
    """Own hint, zero convolutions and middle; low-rank changes on every other layer of the UNet's input blocks."""
    weights, out = control_weights(), {"lora_controlnet": torch.zeros(0)}
    for number, (key, value) in enumerate(sorted(weights.items())):
        if not key.startswith(("input_blocks", "time_embed", "label_emb", "middle_block.")):
            out[key] = value
        elif key.endswith(".weight") and value.dim() > 1 and number % 2:
            at = key.removesuffix("weight")
            out[f"{at}up"] = noise(value.shape[0], 4, seed=500 + number) * 0.05
            out[f"{at}down"] = noise(4, *value.shape[1:], seed=900 + number) * 0.05
    return comfy.controlnet.load_controlnet_state_dict(out)


def t2i_adapter():
    from comfy.t2i_adapter.adapter import Adapter

    net = Adapter(cin=768, channels=[320, 320, 320, 320], nums_rb=2, ksize=1, sk=True, use_conv=False, xl=True)
    weights = {key: noise(*value.shape, seed=40 + number) * 0.05 for number, (key, value) in
               enumerate(sorted(net.state_dict().items()))}
    net.load_state_dict(weights)
    return comfy.controlnet.T2IAdapter(net, 3, 8, "nearest-exact")


if __name__ == "__main__":
    with torch.inference_mode():
        outcome = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(outcome))
