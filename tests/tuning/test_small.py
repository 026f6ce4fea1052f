"""Loss, weights, order of examples, schedule, memory: by hand."""
from __future__ import annotations

import json

import pytest
import torch
from vqpack.vq_core.tuning import memory
from vqpack.vq_core.tuning.lessons import order, spread
from vqpack.vq_core.tuning.loss import INTERVALS, Loss, interval, relative_weights
from vqpack.vq_core.tuning.settings import gentler, schedule

EVEN = torch.ones(INTERVALS)
SDXL = {"act_fn": "silu", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True, "sample_size": 128,
        "projection_class_embeddings_input_dim": 2816}


def test_losses_of_both_halves_and_of_what_guidance_makes_of_them():
    said, answers = torch.zeros(1, 2, 4, 2, 2), torch.zeros(1, 2, 4, 2, 2)
    said[:, 0], said[:, 1] = 1.0, 2.0                                  # errors of u and c; guided: 1 + 3 * (2 - 1) = 4
    assert float(Loss("halves", 3.0, 0.5, EVEN).each(said, answers)) == pytest.approx(2.5 / 0.5)
    assert float(Loss("guided", 3.0, 0.5, EVEN).each(said, answers)) == pytest.approx(16 / (0.5 * 13))
    assert float(Loss("both", 3.0, 0.5, EVEN).each(said, answers)) == pytest.approx((5 + 16 / 6.5) / 2)
    assert float(Loss("guided", 1.0, 1.0, EVEN).each(said[:, :1], answers[:, :1])) == pytest.approx(1.0)


def test_independent_errors_cost_the_same_with_guidance():
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(64, 2, 4, 8, 8, generator=generator)
    values = [float(Loss(kind, 5.0, 1.0, EVEN).each(said, 0 * said).mean()) for kind in ("halves", "guided")]
    assert values[0] == pytest.approx(values[1], rel=0.03)


def test_relative_weights_even_out_the_levels():
    levels, losses = torch.tensor([50.0, 60.0, 950.0, 999.0]), torch.tensor([4.0, 2.0, 0.1, 0.1])
    weights = relative_weights(losses, levels)
    weighed = losses * weights[interval(levels)]
    assert float(weighed[:2].mean()) == pytest.approx(float(weighed[2:].mean()))
    assert float(weights[interval(levels)].mean()) == pytest.approx(1.0) and weights[3] == weights[0]


def test_every_example_comes_once_an_epoch():
    seen = [i for step in range(5) for i in order(17, 4, step, seed=1)]
    assert len(seen) == 20 and len(set(seen[:16])) == 16
    assert order(17, 4, 2, 1) == order(17, 4, 2, 1) != order(17, 4, 6, 1) and order(3, 8, 0, 1) != []
    assert spread(list(range(10)), 3) == [1, 5, 8] and spread([1, 2], 3) == [1, 2]


def test_the_rate_rises_then_falls_to_nothing():
    shares = [schedule(step, 100, 10) for step in range(101)]
    assert shares[0] == pytest.approx(0.1) and max(shares) > 0.95 and shares[100] == pytest.approx(0, abs=1e-9)
    assert shares[10:] == sorted(shares[10:], reverse=True) and schedule(50, None, 10) == 1.0


def test_better_students_take_smaller_steps():
    assert gentler(1.0) == gentler(0.1) == 1.0                         # steps were made for these
    assert gentler(4e-4) == pytest.approx(2 * gentler(1e-4)) and 0 < gentler(1e-5) < gentler(1e-4) < 1


def test_memory_of_a_unet_is_counted(testbed):
    config = json.loads((testbed / "unet" / "config.json").read_text())
    once, block = memory.activations(config, 2, (16, 16), checkpoint=False)
    held, again = memory.activations(config, 2, (16, 16), checkpoint=True)
    assert block == 0 and 8e6 < once < 3e7 and held + again < 0.5 * once


def test_sdxl_fits_a_24_gb_card():
    found = memory.needed(SDXL, int(2.541e9 * 3.05 / 8), 26_500_000, 28_000_000, 1280 * 2560 * 9, 2, (128, 128))
    assert found.checkpoint and 4e9 < found.total < 16e9 and f"{found.total / 1e9:.2f} GB" in found.sentence()
