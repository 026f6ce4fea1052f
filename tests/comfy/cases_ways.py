"""Every way adapters and merges reach a model, observed inside a ComfyUI process: usage as cases.py.

Each way is one function of a model (and of a second one); it runs on the host's model of the decompressed file and on
ours, and the latents or conditionings are compared. `effect` is how far they are from the model left alone.
"""
from __future__ import annotations

import json

import cases_adapters as base  # first: it starts ComfyUI, whose folder takes the place of this one in sys.path

# isort: split
import adapters
import cases
import comfy.hooks
import comfy.sd
import torch
from cases import FILES, apart, ours, stock
from cases_adapters import add, bypass, short_sample, state, weights_of
from comfy_extras import nodes_hooks, nodes_model_merging
from vqpack.nodes import loading, ops, patcher

OTHER, OTHER_DENSE = (str(FILES / f"{name}.safetensors") for name in ("other-vq", "other-dense"))
A, B = "lora", "loha"


def lora(kind: str, layers=adapters.LINEAR + adapters.CONV + adapters.DENSE_LAYERS, seed: int = 7) -> dict:
    return adapters.make(kind, weights_of(layers), seed=seed)


def hook(contents: dict, strength: float = 0.7) -> comfy.hooks.HookGroup:
    return comfy.hooks.create_hook_lora(lora=contents, strength_model=strength, strength_clip=strength)


def scheduled(contents: dict) -> comfy.hooks.HookGroup:
    """Full strength in the first half, a fifth of it in the second."""
    frames, hooks = comfy.hooks.HookKeyframeGroup(), hook(contents)
    for strength, start in ((1.0, 0.0), (0.2, 0.5)):
        frames.add(comfy.hooks.HookKeyframe(strength, start, guarantee_steps=1))
    hooks.set_keyframes_on_hooks(frames)
    return hooks


def strengths(model, other) -> list[torch.Tensor]:
    return [short_sample(add(model, lora(A), s)) for s in (0.7, 0.2, -0.5, 0.7)]


def hooked(model, other) -> list[torch.Tensor]:
    """On one half of guidance, on both (no cache of the host then), twice with the same hook."""
    hooks = hook(lora(A))
    return [short_sample(model, cfg=2.0, positive_hooks=hooks),
            short_sample(model, cfg=2.0, positive_hooks=hooks, negative_hooks=hooks),
            short_sample(model, cfg=2.0, positive_hooks=hooks)]


def in_half(way):
    """The same way with half of the model loaded and nothing else allowed; the reference needs no such state."""
    def run(model, other) -> list[torch.Tensor]:
        if not isinstance(model, patcher.VQModelPatcher):
            return way(model, other)
        with state(model, "partial"):
            return way(model, other)
    return run


def hook_and_patch(model, other) -> list[torch.Tensor]:
    return [short_sample(add(model, lora(B)), cfg=2.0, positive_hooks=hook(lora(A)))]


def two_hooks(model, other) -> list[torch.Tensor]:
    return [short_sample(model, cfg=2.0, positive_hooks=hook(lora(A)), negative_hooks=hook(lora(B), 0.5))]


def schedule(model, other) -> list[torch.Tensor]:
    return [short_sample(model, 4, 2.0, positive_hooks=scheduled(lora(A))),
            short_sample(model, 4, 2.0, positive_hooks=scheduled(lora(A)), negative_hooks=scheduled(lora(B)))]


def model_as_lora(model, other) -> list[torch.Tensor]:
    weights = comfy.hooks.get_patch_weights_from_model(stock(OTHER_DENSE))
    hooks = comfy.hooks.create_hook_model_as_lora(weights, None, 0.6, 0.0)
    return [short_sample(model, cfg=2.0, positive_hooks=hooks)]


def two_bypassed(model, other) -> list[torch.Tensor]:
    return [short_sample(bypass(bypass(model, lora(A)), lora(B)))]


def bypassed_dora(model, other) -> list[torch.Tensor]:
    return [short_sample(bypass(model, lora("dora")))]


def merged(model, other):
    return nodes_model_merging.ModelMergeSimple().merge(model, other, 0.4)[0]


def merge(model, other) -> list[torch.Tensor]:
    return [short_sample(merged(model, other)), short_sample(model), short_sample(other)]


def merge_and_lora(model, other) -> list[torch.Tensor]:
    return [short_sample(add(merged(model, add(other, lora(A))), lora(B)))]


def merge_in_half(model, other) -> list[torch.Tensor]:
    both = merged(model, other)
    found = []
    for how in ("partial", "unloaded") if isinstance(model, patcher.VQModelPatcher) else ("full", "full"):
        with state(both, how):
            found.append(short_sample(both))
    return found


def blocks(model, other) -> list[torch.Tensor]:
    node = nodes_model_merging.ModelMergeBlocks()
    return [short_sample(node.merge(model, other, input=0.2, middle=0.5, out=0.9)[0])]


def add_difference(model, other) -> list[torch.Tensor]:
    difference = nodes_model_merging.ModelSubtract().merge(other, model, 1.0)[0]
    return [short_sample(nodes_model_merging.ModelAdd().merge(add(model, lora(A)), difference)[0])]


def stacked(model, other) -> list[torch.Tensor]:
    return [short_sample(add(add(model, lora(A)), lora(B), -0.4))]


WAYS = {"strengths": strengths, "stacked": stacked, "hooked": hooked, "hooked_in_half": in_half(hooked),
        "hook_and_patch": hook_and_patch, "two_hooks": two_hooks, "schedule": schedule,
        "schedule_in_half": in_half(schedule), "model_as_lora": model_as_lora, "two_bypassed": two_bypassed,
        "bypassed_dora": bypassed_dora}
MERGES = {"merge": merge, "merge_and_lora": merge_and_lora, "merge_in_half": merge_in_half, "blocks": blocks,
          "add_difference": add_difference}


def far(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    return max(apart(a, b) for a, b in zip(found, wanted, strict=True))


def case_ways() -> dict:
    """LoRA stacked, by hook, by schedule, in bypass."""
    reference, model = stock(), ours()
    plain, found = {cfg: short_sample(reference, cfg=cfg) for cfg in (1.0, 2.0)}, {}
    for name in base.ARGUMENTS or WAYS:
        wanted = WAYS[name](reference, None)
        cfg = 2.0 if "hook" in name or name.startswith(("schedule", "model_as")) else 1.0
        found[name] = {"apart": far(WAYS[name](model, None), wanted), "effect": apart(wanted[0], plain[cfg]),
                       "removed": apart(short_sample(model), plain[1.0])}
    limits = {"second_of_two": short_sample(bypass(model, lora(B))),
              "first_of_two": short_sample(bypass(model, lora(A)))}
    both, dora = two_bypassed(model, None)[0], bypassed_dora(model, None)[0]
    found["limits"] = {**{name: apart(both, value) for name, value in limits.items()},
                       "dora_without_scale": apart(dora, short_sample(bypass(model, without_scale(lora("dora")))))}
    return found


def without_scale(contents: dict) -> dict:
    return {key: value for key, value in contents.items() if not key.endswith("dora_scale")}


def case_merges() -> dict:
    """Two coded models, coded with dense, dense with coded, against two dense ones."""
    references = stock(), stock(OTHER_DENSE)
    coded = ours(), loading.load_checkpoint(OTHER)[0]
    pairs = {"coded": coded, "coded_dense": (coded[0], references[1]), "dense_coded": (references[0], coded[1])}
    plain, found = short_sample(references[0]), {}
    for name, way in MERGES.items():
        wanted = way(*references)
        found[name] = {"effect": apart(wanted[0], plain)}
        for pair, (model, other) in pairs.items():
            if pair == "coded" or name in ("merge", "add_difference"):
                found[name][pair] = far(way(model, other), wanted)
    found["still_coded"] = all(cases.still_coded(model) for model in coded)
    return found


def case_key_styles() -> dict:
    """One LoRA in the names of different trainers: ours in every style against the host's in kohya's."""
    contents = lora(A, tuple(adapters.DIFFUSERS))
    reference, model = stock(), ours()
    wanted, found = short_sample(add(reference, contents)), {}
    found["effect"] = apart(wanted, short_sample(reference))
    for style, other in styles(contents).items():
        found[style] = {"apart": apart(short_sample(add(model, other)), wanted), "tensors": len(other) == len(contents)}
    return found


def styles(contents: dict) -> dict[str, dict]:
    plain = {end: f".{end}" for end in ("lora_up.weight", "lora_down.weight", "alpha")}
    peft = {"lora_up.weight": ".lora_B.weight", "lora_down.weight": ".lora_A.weight", "alpha": ".alpha"}
    old = {"lora_up.weight": "_lora.up.weight", "lora_down.weight": "_lora.down.weight", "alpha": ".alpha"}

    def renamed(endings: dict, name) -> dict:
        layers = {f"lora_unet_{k.replace('.', '_')}": name(k, d) for k, d in adapters.DIFFUSERS.items()}
        return adapters.renamed(contents, layers, endings)

    return {"kohya": contents,
            "kohya, diffusers' names": renamed(plain, lambda k, d: f"lora_unet_{d.replace('.', '_')}"),
            "LyCORIS": renamed(plain, lambda k, d: f"lycoris_{d.replace('.', '_')}"),
            "diffusers (lora_A, lora_B)": renamed(peft, lambda k, d: "unet." + d.replace(".to_", ".processor.to_")),
            "diffusers (processor, lora.up)": renamed(old, lambda k, d: "unet." + d.replace(".to_", ".processor.to_")),
            "ComfyUI (lora_A, lora_B)": renamed(peft, lambda k, d: f"diffusion_model.{k}"),
            "ComfyUI (lora_up, lora_down)": renamed(plain, lambda k, d: f"diffusion_model.{k}")}


TEXT_LAYERS = {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (64, 64),
               "lora_te1_text_model_encoder_layers_1_mlp_fc1": (256, 64),
               "lora_te2_text_model_encoder_layers_0_self_attn_v_proj": (64, 64),
               "lora_te2_text_model_encoder_layers_1_mlp_fc2": (64, 256)}


def text_lora(kind: str, seed: int = 5) -> dict:
    weights = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1
               for name, shape in TEXT_LAYERS.items()}
    return adapters.make(kind, weights, prefix="", seed=seed)


def clip_with(clip, contents: dict, strength: float = 0.7):
    return comfy.sd.load_lora_for_models(None, clip, dict(contents), 0, strength)[1]


def clip_hooked(clip, hooks, in_schedule: bool) -> list[torch.Tensor]:
    """Encoded twice: what a hook changed stays so."""
    changed = nodes_hooks.SetClipHooks().apply_hooks(clip, in_schedule, False, hooks)[0]
    return [*conditionings(changed), *conditionings(changed)]


def conditionings(clip) -> list[torch.Tensor]:
    rows = clip.encode_from_tokens_scheduled(clip.tokenize("a red fox in the (snow:1.2)"))
    return [tensor for cond, extra in rows for tensor in (cond, extra["pooled_output"])]


def text_ways() -> dict:
    hooked_lora = {**text_lora("lora"), **text_lora("diff_b")}       # biases are dense: both kinds of weight are met
    node = nodes_model_merging
    other = lambda clip: clip_with(clip, text_lora("diff"))  # noqa: E731
    peft = adapters.renamed(text_lora("lora"), {
        name: f"text_encoder{'_2' if name.startswith('lora_te2') else ''}.text_model.encoder.layers."
              f"{name.split('_')[6]}.{'.'.join(('self_attn', name[-6:]) if 'attn' in name else ('mlp', name[-3:]))}"
        for name in TEXT_LAYERS},
        {"lora_up.weight": ".lora_B.weight", "lora_down.weight": ".lora_A.weight", "alpha": ".alpha"})
    kinds = {kind: lambda clip, kind=kind: conditionings(clip_with(clip, text_lora(kind))) for kind in adapters.KINDS}
    return {**kinds,
            "diffusers' names": lambda clip: conditionings(clip_with(clip, peft)),
            "hook": lambda clip: clip_hooked(clip, hook(hooked_lora), False),
            "scheduled hook": lambda clip: clip_hooked(clip, scheduled(hooked_lora), True),
            "CLIPMergeSimple": lambda clip: conditionings(node.CLIPMergeSimple().merge(clip, other(clip), 0.4)[0]),
            "CLIPSubtract, CLIPAdd": lambda clip: conditionings(node.CLIPAdd().merge(
                clip, node.CLIPSubtract().merge(other(clip), clip, 1.0)[0])[0])}


def case_text() -> dict:
    """Text encoders under every kind of adapter, hooks, schedules and merges."""
    small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    options = {"clip_l_model_config": small, "clip_g_model_config": small, "dtype": torch.float32}
    clips = {}
    for kind, operations in (("stock", None), ("compressed", ops.VQOps), ("decoded", ops.VQOpsDecoded)):
        custom = {"custom_operations": operations} if operations else {}
        sd = cases.text_state_dict(operations is not None)
        clips[kind] = comfy.sd.load_state_dict_guess_config(sd, output_vae=False, model_options=custom,
                                                            te_model_options={**options, **custom})[1]
        if operations:
            patcher.adopt(clips[kind].patcher)
    plain, found = conditionings(clips["stock"]), {}
    for name, way in text_ways().items():
        wanted = way(clips["stock"])
        found[name] = {"effect": [apart(a, b) for a, b in zip(wanted, plain, strict=False)],
                       **{kind: far(way(clips[kind]), wanted) for kind in ("compressed", "decoded")}}
        found[name]["after"] = max(far(conditionings(clips[kind]), plain) for kind in ("compressed", "decoded"))
    return found


if __name__ == "__main__":
    with torch.inference_mode():
        result = globals()[f"case_{cases.CASE}"]()
    print("FOUND " + json.dumps(result))
