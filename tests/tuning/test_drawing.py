"""The held-out prompt that is drawn to be looked at, against diffusers' own pipeline; noise of other kinds."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from vqpack.vq_core import trajectory
from vqpack.vq_core.compare.models import Models, open_checkpoint
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.tuning.drawing import Drawing, Look

GUIDANCE = 3.0                             # as lessons were recorded


@pytest.fixture(scope="module")
def student(coarse):
    return open_checkpoint(coarse, "B")


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_original_draws_what_its_pipeline_draws(lessons, student, testbed):
    checkpoint = open_checkpoint(testbed, "A")
    pipe = Models((checkpoint,), "cpu", None).pipeline(checkpoint)
    drawing = Drawing.of(lessons, student, testbed, GUIDANCE)
    picture = lessons.pictures[drawing.picture]
    assert picture.held_out
    wanted = trajectory.sample(pipe, [picture.prompt], [picture.seed], 3, GUIDANCE, (64, 64), decode=False).images
    assert apart(drawing.by_teacher(), wanted) < 1e-4
    assert apart(drawing.by(pipe.unet, Progress()), wanted) < 1e-3
    unguided = Drawing.of(lessons, student, testbed, 1.0)
    assert apart(unguided.by(pipe.unet, Progress()), wanted) > 0.05


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_step_takes_off_the_noise_that_was_predicted(prediction):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 5, generator=generator)
    first, second = 2.0, 0.5
    calls = SimpleNamespace(calls=lambda _: SimpleNamespace(steps=(0, 1)))
    drawing = Drawing(calls, 0, torch.tensor([first, second, 0.0]), prediction, 1.0)
    for call, sigma, after in ((0, first, second), (1, second, 0.0)):
        size = (1 + sigma**2) ** 0.5
        sample = (clean + sigma * noise) / size
        said = noise if prediction == "eps" else (noise - sigma * clean) / size
        assert torch.allclose(drawing._next(call, sample, said), clean + after * noise, atol=1e-5)


def test_where_noise_is_counted_otherwise_nothing_is_drawn(lessons, student, testbed):
    other = replace(student, architecture=replace(student.architecture, prediction="edm-v"))
    assert Drawing.of(lessons, other, testbed, GUIDANCE) is None
    assert Look(((0, 1.0),), None).pictures == {}
