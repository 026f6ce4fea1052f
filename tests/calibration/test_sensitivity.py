"""Sensitivities: exact where the network is linear, close to what a perturbed layer of the testbed does."""
from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn
from vqpack.vq_core.calibration.sensitivity import Sensitivities, spread_calls
from vqpack.vq_core.gram import output_error


class Linear(nn.Module):
    """Tokens mixed, then a layer, then a fixed readout: linear in the layer's weight."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layer = nn.Linear(6, 4)
        self.mix = torch.randn(5, 5, generator=generator)
        self.out = torch.randn(3, 4, generator=generator)
        self.x = torch.randn(1, 5, 6, generator=generator) + 1.0                    # a mean input, as layers have
        self.requires_grad_(False)

    def forward(self) -> torch.Tensor:
        """[1, 5, 3]"""
        return self.mix @ (self.layer(self.x) @ self.out.t())


def measured(model: Linear, error: torch.Tensor) -> float:
    before, weight = model(), model.layer.weight.data.clone()
    model.layer.weight.data += error
    change = float((model() - before).square().sum())
    model.layer.weight.data = weight
    return change


def one(model, generator, *factors) -> Sensitivities:
    """One answer, the halves all alike."""
    found = Sensitivities({"a": model.layer})
    found.add([(factor, model) for factor in factors or (1.0,)], generator)
    return found


def test_expected_change_is_exact_for_independent_errors():
    model, generator = Linear(), torch.Generator().manual_seed(0)
    gram = (model.x[0].t() @ model.x[0] / 5)[None]                                  # [1, 6, 6]
    trace = float(gram[0].trace())
    rows = sum(one(model, generator).rows("a", 4, trace) for _ in range(4000)) / 4000
    deviations = torch.tensor([0.1, 0.3, 0.02, 0.2])
    errors = torch.randn(4000, 4, 6, generator=generator) * deviations[:, None]
    got = sum(measured(model, error) for error in errors) / len(errors)
    predicted = float((rows * deviations.square() * trace).sum())
    assert predicted == pytest.approx(got, rel=0.05)
    through_gram = sum(float((rows * output_error(error, gram)).sum()) for error in errors) / len(errors)
    assert through_gram == pytest.approx(got, rel=0.05)
    # the entries themselves: a single weight's error, averaged over all of them
    single = [measured(model, torch.zeros(4, 6).index_put((torch.tensor(o), torch.tensor(c)), torch.tensor(1.0)))
              for o in range(4) for c in range(6)]
    torch.testing.assert_close(rows * trace, torch.tensor(single).view(4, 6).sum(1), rtol=0.1, atol=0)


def test_halves_are_added_before_they_are_squared():
    """Guidance 3 of two equal halves is one half: -2 + 3 = 1; the power is that of the guided answer."""
    model = Linear()
    plain, guided = (one(model, torch.Generator().manual_seed(5), *factors) for factors in ((1.0,), (-2.0, 3.0)))
    torch.testing.assert_close(guided.rows("a", 4, 1.0), plain.rows("a", 4, 1.0))
    assert guided.noise_power() == pytest.approx(plain.noise_power())
    same = one(model, torch.Generator().manual_seed(5), 1.0, 1.0)
    torch.testing.assert_close(same.rows("a", 4, 1.0), 4 * plain.rows("a", 4, 1.0))


def test_answers_count_alike():
    """An answer 100 times larger has no more say in how the rows compare."""
    model, large = Linear(), Linear()
    large.layer, large.out = model.layer, model.out.flip(1) * 100
    found = Sensitivities({"a": model.layer})
    for ask in (model, large):
        found.add([(1.0, ask)], torch.Generator().manual_seed(5))
    alone = [one(ask, torch.Generator().manual_seed(5)).rows("a", 4, 1.0) for ask in (model, large)]
    squares = model.layer.weight.square().mean(1)
    shares = sum(rows / (rows * squares).sum() for rows in alone) / 2
    rows = found.rows("a", 4, 1.0)
    torch.testing.assert_close(rows / (rows * squares).sum(), shares)


def test_nothing_stays_on_the_model():
    model = Linear()
    found = one(model, torch.Generator().manual_seed(0), -2.0, 3.0)
    weight = model.layer.weight
    assert not weight.requires_grad and weight.grad is None and not weight._post_accumulate_grad_hooks
    assert found.noise_power() == pytest.approx(float(model().square().sum()))


def test_gradients_that_are_not_finite_are_left_out():
    model = Linear()
    found, generator = Sensitivities({"a": model.layer}), torch.Generator().manual_seed(0)
    model.out[0, 0] = float("nan")
    found.add([(1.0, model)], generator)
    assert (found.answers, found.left_out) == (0, 1) and not found.rows("a", 4, 1.0).any()


def test_calls_are_spread_over_pictures_and_steps():
    chosen = spread_calls([8] * 24, 16)
    assert len({picture for picture, _ in chosen}) == 16 and {step for _, step in chosen} == set(range(8))
    assert len(spread_calls([2, 2], 16)) == 16 and spread_calls([0, 0], 4) == []
    assert {picture for picture, _ in spread_calls([3, 0, 3], 8)} == {0, 2}


def noise(unet, calls, call: int) -> torch.Tensor:
    """What a step of guidance 3 is made with [4, h, w]."""
    empty, prompt = calls.ask(unet, call)
    return empty + 3 * (prompt - empty)


def test_prediction_meets_what_a_perturbed_layer_does(small, pipe, testbed, captions):
    """Random errors of 10 % in layers of every kind; the bounds are those docs/calibration.md states."""
    from vqpack.vq_core.calibration import Calibration
    from vqpack.vq_core.calibration.calls import draw
    from vqpack.vq_core.calibration.groups import coded_layers
    from vqpack.vq_core.calibration.settings import Picture, preset_settings
    from vqpack.vq_core.compare.models import open_checkpoint
    from vqpack.vq_core.encode import to_matrix

    settings = preset_settings("base", (64, 64), steps=2, timesteps=2, guidance=3.0)
    calls = draw(pipe, Picture(0, captions(9), 9, False), settings)
    generator, ratios = torch.Generator().manual_seed(0), []
    with Calibration(small.path) as calibration:
        before = [noise(pipe.unet, calls, i) for i in range(2)]
        layers = coded_layers(open_checkpoint(testbed, "A").shapes)
        for layer in layers[::23]:
            weight = pipe.unet.get_submodule(layer.module).weight
            error = torch.randn(weight.shape, generator=generator) * weight.square().mean().sqrt() * 0.1
            weight.data += error
            after = [noise(pipe.unet, calls, i) for i in range(2)]
            weight.data -= error
            got = math.exp(sum(math.log(float((a - b).square().sum())) for a, b in zip(after, before)) / 2)
            lost = to_matrix(error, 0, error.shape[1])
            rows = calibration.sensitivity(layer.key)
            ratios.append(float((rows * output_error(lost, calibration.gram(layer.key).blocks)).sum()) / got)
    logs = torch.tensor(ratios).log()
    assert 0.5 < float(logs.mean().exp()) < 2.0 and float(logs.abs().max().exp()) < 6.0, ratios


class Branch(torch.autograd.Function):
    """What it is given; its backward pass may stop."""

    @staticmethod
    def forward(ctx, x, stops):
        ctx.stops = stops
        return x + 0

    @staticmethod
    def backward(ctx, gradient):
        if ctx.stops:
            raise KeyboardInterrupt
        return gradient, None


def test_a_backward_pass_that_is_stopped_leaves_no_graph():
    """The branch differentiated first stops: torch has the other one, and all that is behind it, in its queue."""
    model = Linear()

    def ask() -> torch.Tensor:
        plain = model()
        return Branch.apply(plain, False) + Branch.apply(plain, True)

    with pytest.raises(KeyboardInterrupt):
        Sensitivities({"a": model.layer}).add([(1.0, ask)], torch.Generator())
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one).__name__ == "BranchBackward"]
