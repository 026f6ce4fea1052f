"""Learned step sizes: the differentiable grid, what is learned, that it never ends worse, and comes off."""
from __future__ import annotations

import copy

import pytest
import torch
from vqpack.vq_core.activations import calibrate_activations, quantize_activations
from vqpack.vq_core.activations.grids import affine
from vqpack.vq_core.activations.learn import LearnedTable, learn_steps, straight_through
from vqpack.vq_core.activations.specs import Activations, GroupSpec, StaticSpec
from vqpack.vq_core.errors import PlanError, UnsupportedError


def test_the_grid_is_the_plain_one_and_has_lsqs_gradient():
    x, low, high = torch.linspace(-3, 3, 601), torch.tensor(-1.0), torch.tensor(1.5)
    step = torch.tensor(2.5 / 15, requires_grad=True)
    found = straight_through(x, -step * 6, step * 9, 4)
    assert torch.equal(straight_through(x, low, high, 4), affine(x, low, high, 4))
    grads = torch.stack([torch.autograd.grad(v, step, retain_graph=True)[0] for v in found])
    place = x / step.detach()
    inside = (place > -6) & (place < 9)    # LSQ, eq. 3: -v + round(v) inside, the end outside
    torch.testing.assert_close(grads[inside], (place.round() - place)[inside], atol=2e-5, rtol=0)
    assert torch.allclose(grads[place < -6.5], torch.tensor(-6.0)) and torch.allclose(grads[place > 9.5],
                                                                                       torch.tensor(9.0))
    same = straight_through(x, torch.zeros(()), torch.zeros(()), 4)
    assert torch.equal(same, x)


@pytest.mark.parametrize("spec", [StaticSpec(3, 5), GroupSpec(3, 4, "channel", 1)])
def test_learning_brings_the_answers_nearer(unet, more_calls, spec):
    drawn = [more_calls(seed=seed) for seed in range(2)]
    settings, ranges = Activations(spec), calibrate_activations(unet, drawn)
    wanted = [drawn[0].ask(unet, call) for call in range(4)]
    before = copy.deepcopy(unet.state_dict())

    def error(attached):
        with attached:
            return float(sum((drawn[0].ask(unet, call) - want).square().sum() for call, want in enumerate(wanted)))
    plain = error(quantize_activations(unet, settings, ranges))
    learned = learn_steps(unet, settings, ranges, drawn, steps=30, rate=0.05)
    assert not any(isinstance(made.table, LearnedTable) for made in learned.quantizers.values())
    assert error(learned) < 0.95 * plain
    assert torch.equal(drawn[0].ask(unet, 0), wanted[0])
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())


def test_steps_that_make_it_worse_are_not_kept(unet, calls):
    settings, ranges = Activations(StaticSpec(8)), calibrate_activations(unet, [calls])
    plain = quantize_activations(unet, settings, ranges)
    tables = {name: made.table for name, made in plain.quantizers.items()}
    plain.remove()
    with learn_steps(unet, settings, ranges, [calls], steps=3, rate=50.0) as attached:
        assert all(torch.equal(made.table.low, tables[name].low) for name, made in attached.quantizers.items())


def test_what_cannot_be_learned(unet, calls, more_calls, ranges):
    with pytest.raises(PlanError, match="no table whose steps"):
        learn_steps(unet, "int8", ranges, [calls], steps=1)
    with pytest.raises(UnsupportedError, match="no recorded call"):
        learn_steps(unet, "qdiffusion8", ranges, [more_calls(finite=(False,) * 4)], steps=1)
    assert not any(module._forward_pre_hooks for module in unet.modules())
