"""load_unet and load_pipeline: the right weights in the right places, offline, and clear refusals."""
from __future__ import annotations

import socket

import pytest
import torch
from vqpack.vq_core import pipeline
from vqpack.vq_core.errors import FormatError, PlanError, UnsupportedError
from vqpack.vq_core.layers import VQConv2d, VQLinear


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may so much as look up a name."""
    def refuse(*_, **__):
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def original(testbed, component):
    from safetensors.torch import load_file

    (path,) = (testbed / component).glob("*.safetensors")
    return load_file(path)


def test_unet_has_the_original_weights(small_file, testbed):
    unet = pipeline.load_unet(small_file, configs=testbed)
    wanted = original(testbed, "unet")
    got = unet.state_dict()
    assert got.keys() == wanted.keys()
    assert not unet.training and not any(p.requires_grad for p in unet.parameters())
    for name, weight in wanted.items():
        assert got[name].dtype == torch.float32
        error = (got[name] - weight.float()).norm() / weight.float().norm()
        assert error <= (0.02 if name.endswith("weight") and weight.dim() > 1 else 0), name


def test_decoding_per_call_computes_the_same(small_file, testbed):
    once = pipeline.load_unet(small_file, configs=testbed)
    per_call = pipeline.load_unet(small_file, decode="per_call", configs=testbed)
    assert sum(isinstance(m, VQLinear | VQConv2d) for m in per_call.modules()) > 100
    assert not any(isinstance(m, VQLinear | VQConv2d) for m in once.modules())
    g = torch.Generator().manual_seed(0)
    arguments = {"sample": torch.randn(2, 4, 16, 16, generator=g), "timestep": torch.tensor(321),
                 "encoder_hidden_states": torch.randn(2, 7, 192, generator=g),
                 "added_cond_kwargs": {"text_embeds": torch.randn(2, 128, generator=g),
                                       "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}}
    with torch.no_grad():
        assert torch.equal(once(**arguments).sample, per_call(**arguments).sample)


def test_activations_of_8_bits(small_file, testbed):
    """Layers that round their input are found by name, in either way of decoding; the others are as they were."""
    g = torch.Generator().manual_seed(0)
    arguments = {"sample": torch.randn(1, 4, 8, 8, generator=g), "timestep": torch.tensor(321),
                 "encoder_hidden_states": torch.randn(1, 7, 192, generator=g),
                 "added_cond_kwargs": {"text_embeds": torch.randn(1, 128, generator=g),
                                       "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}}
    answers = []
    for decode in pipeline.DECODE:
        unet = pipeline.load_unet(small_file, decode=decode, configs=testbed, activations="int8")
        rounded = [name for name, m in unet.named_modules() if getattr(m, "product", None) is not None]
        assert len(rounded) > 50 and not any("attn2.to_k" in n or "attn2.to_v" in n or "emb" in n for n in rounded)
        with torch.no_grad():
            answers.append(unet(**arguments).sample)
    plain = pipeline.load_unet(small_file, configs=testbed, activations="file")
    with torch.no_grad():
        want = plain(**arguments).sample
    assert 1e-4 < float((answers[0] - want).norm() / want.norm()) < 0.1
    assert float((answers[0] - answers[1]).norm() / want.norm()) < 0.05
    with pytest.raises(PlanError, match="expected int8, int6 or none"):
        pipeline.load_unet(small_file, configs=testbed, activations="dgq6")


@pytest.mark.parametrize("decode", pipeline.DECODE)
def test_pipeline_draws_what_the_original_draws(small_file, testbed, decode):
    from diffusers import StableDiffusionXLPipeline

    settings = {"prompt": "a large red circle on a plain blue background", "height": 64, "width": 64,
                "num_inference_steps": 3, "guidance_scale": 3.0, "original_size": (64, 64), "target_size": (64, 64),
                "output_type": "pt"}
    first = StableDiffusionXLPipeline.from_pretrained(testbed, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    second = pipeline.load_pipeline(small_file, decode=decode, configs=testbed)
    pictures = []
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
        pictures.append(pipe(**settings, generator=torch.Generator().manual_seed(3)).images)
    assert type(second) is StableDiffusionXLPipeline
    error = (pictures[0] - pictures[1]).square().mean()
    assert error < 1e-3                      # 8-bit codes: the same picture
    assert pictures[0].std() > 0.05          # and not a gray one


def test_half_precision(small_file, testbed):
    pipe = pipeline.load_pipeline(small_file, dtype=torch.float16, configs=testbed)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert part.dtype == torch.float16
    assert pipe.text_encoder.state_dict().keys() and not any(b.is_meta for b in pipe.text_encoder.buffers())


def test_missing_parts_are_named_or_taken(write_file, testbed, tmp_path):
    path = write_file(tmp_path / "unet only.safetensors", keep=lambda layer: layer.component == "unet")
    with pytest.raises(UnsupportedError, match=r"holds no VAE: give one as vae="):
        pipeline.load_pipeline(path, configs=testbed)
    given = dict.fromkeys(("vae", "text_encoder", "text_encoder_2"))
    pipe = pipeline.load_pipeline(path, configs=testbed, **given)
    assert pipe.unet is not None and pipe.text_encoder is None


def test_wrong_configuration_is_named(small_file):
    with pytest.raises(FormatError, match=r"configs=FOLDER"):
        pipeline.load_pipeline(small_file)


def test_unknown_decode_is_refused(small_file):
    with pytest.raises(PlanError, match="once"):
        pipeline.load_unet(small_file, decode="never")


def test_damaged_file_is_refused(small_file, testbed, tmp_path):
    data = bytearray(small_file.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        pipeline.load_unet(path, configs=testbed)
