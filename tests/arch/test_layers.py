"""Layer census, concat splits, coding order, detection of every family."""
from __future__ import annotations

import pytest
from arch_shapes import FAMILY, SMALL, UNET, listed, openclip_shapes, unet_shapes
from vqpack.vq_core.arch import component_of, detect, make_layers
from vqpack.vq_core.errors import UnsupportedError


def coded(shapes, component="unet"):
    return [layer for layer in make_layers(shapes) if layer.component == component and not layer.dense]


@pytest.mark.parametrize("name, family", [("base", "sdxl"), ("vega", "segmind-vega")])
def test_second_description_gives_the_published_list(name, family):
    unet = {key: shape for key, shape in listed(name).items() if key.startswith(UNET)}
    assert unet_shapes(FAMILY[family]) == unet


def test_census_of_sdxl():
    layers = coded(listed("base"))
    assert len(layers) == 771
    assert sum(len(layer.shape) == 4 for layer in layers) == 49
    assert sum(layer.numel for layer in layers) == 2_540_953_600
    total = sum(layer.numel for layer in make_layers(listed("base")) if layer.component == "unet")
    assert total == 2_567_463_684


def test_what_stays_dense_in_the_unet():
    dense = {}
    for layer in make_layers(listed("base")):
        if layer.component == "unet" and layer.dense:
            dense[layer.role] = dense.get(layer.role, 0) + layer.numel
    assert set(dense) == {"time_embed", "label_embed", "conv_in", "conv_out", "time_proj", "norm", "bias"}
    assert dense["label_embed"] == 2816 * 1280 + 1280 * 1280
    assert dense["conv_in"] == dense["conv_out"] == 4 * 320 * 9


def test_text_encoder_census():
    layers = make_layers(listed("base"))
    first = [layer for layer in layers if layer.component == "te1" and not layer.dense]
    second = [layer for layer in layers if layer.component == "te2" and not layer.dense]
    assert len(first) == 12 * 6 + 1
    assert len(second) == 32 * 4 + 1                        # q, k and v are still one matrix here
    assert [layer.role for layer in first].count("embedding") == 1
    assert all(layer.dense for layer in layers if layer.component in ("vae", "other"))


def test_splits_of_sdxl():
    expected = [(1280, 1280), (1280, 1280), (1280, 640), (1280, 640), (640, 640), (640, 320), (640, 320), (320, 320),
                (320, 320)]
    layers = {layer.key: layer for layer in make_layers(listed("base"))}
    for index, split in enumerate(expected):
        for leaf in ("skip_connection", "in_layers.2"):
            assert layers[f"{UNET}output_blocks.{index}.0.{leaf}.weight"].splits == split
    assert sum(bool(layer.splits) for layer in layers.values()) == 18
    assert layers[f"{UNET}input_blocks.4.0.skip_connection.weight"].splits == ()


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_splits_cover_the_input(name):
    layers = make_layers(unet_shapes(FAMILY[name]))
    fed = [layer for layer in layers if ".output_blocks." in layer.key and layer.role in ("conv1", "shortcut")]
    assert fed and all(sum(layer.splits) == layer.shape[1] and len(layer.splits) == 2 for layer in fed)
    assert not any(layer.splits for layer in layers if layer not in fed)


def test_a_split_that_does_not_add_up_is_dropped():
    shapes = unet_shapes(SMALL)
    key = f"{UNET}output_blocks.1.0.in_layers.2.weight"
    shapes[key] = (*shapes[key][:1], shapes[key][1] + 1, 3, 3)
    layers = {layer.key: layer for layer in make_layers(shapes)}
    assert layers[key].splits == () and not layers[key].dense
    assert layers[f"{UNET}output_blocks.1.0.skip_connection.weight"].splits


def test_order_is_forward_and_does_not_depend_on_the_file():
    shapes = {**unet_shapes(SMALL), **openclip_shapes(), "first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3),
              "model_ema.decay": ()}
    keys = [layer.key for layer in make_layers(shapes)]
    assert keys == [layer.key for layer in make_layers(dict(reversed(shapes.items())))]
    assert sorted(keys) == sorted(shapes)
    place = keys.index
    assert place(f"{UNET}input_blocks.3.0.in_layers.2.weight") < place(f"{UNET}middle_block.0.in_layers.2.weight")
    assert place(f"{UNET}middle_block.2.in_layers.2.weight") < place(f"{UNET}output_blocks.0.0.in_layers.2.weight")
    block = f"{UNET}output_blocks.0.1."
    names = ["proj_in", "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_out.0",
             "transformer_blocks.0.attn2.to_q", "transformer_blocks.0.ff.net.0.proj", "proj_out"]
    places = [place(f"{block}{name}.weight") for name in names]
    assert places == sorted(places)
    components = [component_of(key) for key in keys]
    assert components == sorted(components, key=["unet", "te2", "vae", "other"].index)


def test_blocks_sort_by_number():
    keys = [layer.key for layer in make_layers(listed("base"))]
    blocks = list(dict.fromkeys(int(key.split(".")[3]) for key in keys if ".output_blocks." in key))
    assert blocks == list(range(9))


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_families_are_told_apart(name):
    assert detect(unet_shapes(FAMILY[name])).name == name


def test_other_numbers_are_sdxl_like():
    assert detect(listed("tiny")).name == "sdxl-like"
    assert detect(unet_shapes(SMALL)).name == "sdxl-like"


@pytest.mark.parametrize("markers, prediction, zero_snr", [
    ((), "eps", False), (("v_pred",), "v", False), (("v_pred", "ztsnr"), "v", True), (("ztsnr",), "eps", False),
    (("edm_mean", "edm_std"), "edm", False), (("edm_vpred.sigma_max",), "edm-v", False)])
def test_prediction_markers(markers, prediction, zero_snr):
    found = detect({**unet_shapes(SMALL), **{marker: () for marker in markers}})
    assert (found.prediction, found.zero_terminal_snr) == (prediction, zero_snr)


def test_unknown_keys_inside_the_unet_stay_dense():
    shapes = {**unet_shapes(SMALL), f"{UNET}input_blocks.2.1.motion.weight": (8, 8),
              f"{UNET}adapter.weight": (8, 8), f"{UNET}input_blocks.1.0.in_layers.2.scale": (1,)}
    layers = {layer.key: layer for layer in make_layers(shapes)}
    assert all(layers[key].dense for key in shapes if key not in unet_shapes(SMALL))


REFUSED = {
    "Stable Diffusion 1": {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
                           f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
                           f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)},
    "Stable Diffusion 2": {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
                           f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320),
                           f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)},
    "Flux": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9, 3)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (9, 3)},
    "Qwen": {"transformer_blocks.0.attn.add_q_proj.weight": (3, 3)},
    "transformer": {"transformer_blocks.0.attn1.to_q.weight": (3, 3)},
    "LoRA": {"lora_unet_input_blocks_1_0.lora_down.weight": (4, 320)},
    "VAE": {"decoder.conv_in.weight": (512, 4, 3, 3)},
    "text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)},
    "no UNet": {"something.weight": (3, 3)},
    "incomplete": {key: shape for key, shape in unet_shapes(SMALL).items() if "output_blocks.3." not in key},
    "scaled fp8": {**unet_shapes(SMALL), "scaled_fp8": (0,)},
    "ComfyUI mixed precision": {**unet_shapes(SMALL), f"{UNET}input_blocks.2.1.proj_in.comfy_quant": (8,)},
    "already quantized": {**unet_shapes(SMALL), f"{UNET}input_blocks.2.1.proj_in.weight_scale": (1,)},
    "bitsandbytes": {**unet_shapes(SMALL), f"{UNET}input_blocks.2.1.proj_in.weight.absmax": (1,)},
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_refusals_name_what_it_is(what):
    with pytest.raises(UnsupportedError, match=what) as error:
        detect(REFUSED[what], "some file")
    assert "\n" not in str(error.value) and "some file" in str(error.value)
