"""A UNet of SDXL's architecture and a few channels, with recorded calls."""
from __future__ import annotations

import pytest
import torch

CONFIG = {"sample_size": 8, "block_out_channels": (8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1,
          "attention_head_dim": (2, 2, 4), "cross_attention_dim": 12, "addition_embed_type": "text_time",
          "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30, "use_linear_projection": True,
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
TOLD = (999.0, 760.0, 420.0, 30.0)         # timesteps


@pytest.fixture
def unet():
    """Fresh, random weights, evaluation mode."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**CONFIG).eval().requires_grad_(False)


def make_calls(told=TOLD, side=8, seed=0, finite=None):
    """Calls of two halves at the given timesteps; the latents' spread falls with the noise."""
    from vqpack.vq_core.calibration.calls import Calls

    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.5 + abs(t) / 250 for t in told]).view(-1, 1, 1, 1, 1)
    fixed = {"text": torch.randn(2, 5, 12, generator=g), "added.text_embeds": torch.randn(2, 6, generator=g),
             "added.time_ids": torch.rand(2, 6, generator=g) * 64}
    return Calls(tuple(range(len(told))), tuple(told), finite or (True,) * len(told), torch.tensor(told),
                 spread * torch.randn(len(told), 2, 4, side, side, generator=g), fixed)


@pytest.fixture
def calls():
    """One picture's calls."""
    return make_calls()


@pytest.fixture
def ranges(unet, calls):
    """Statistics of the UNet in these calls."""
    from vqpack.vq_core.activations import calibrate_activations

    return calibrate_activations(unet, [calls])


@pytest.fixture
def more_calls():
    """make_calls, for other pictures."""
    return make_calls
