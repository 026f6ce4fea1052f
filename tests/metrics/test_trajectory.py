"""Trajectories of the testbed: what the pipeline itself draws, the same noise for all, predictions on given states."""
from __future__ import annotations

import copy
import math

import pytest
import torch
from vqpack.vq_core import trajectory
from vqpack.vq_core.errors import Interrupted, PlanError, UnsupportedError
from vqpack.vq_core.metrics import bootstrap, noise_snr
from vqpack.vq_core.progress import Progress

PROMPTS = ("a large red circle on a plain blue background", "a small white star above a large purple square")
SEEDS = (1000, 1001)
HOW = {"steps": 3, "guidance": 3.0, "size": (64, 64)}


@pytest.fixture(scope="module")
def pipe(testbed):
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(testbed, low_cpu_mem_usage=False, local_files_only=True,
                                                     add_watermarker=False).to(torch.float32)


@pytest.fixture(scope="module")
def drawn(pipe):
    return trajectory.sample(pipe, PROMPTS, SEEDS, **HOW)


@pytest.fixture(scope="module")
def worse(pipe):
    """The pipeline with noise on every weight of its UNet, 5 % of each tensor's size."""
    parts = {**pipe.components, "unet": copy.deepcopy(pipe.unet)}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in parts["unet"].parameters():
            weight += 0.05 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return type(pipe)(**parts, add_watermarker=False)


def test_it_is_what_the_pipeline_draws(pipe, drawn):
    before = pipe.scheduler, dict(vars(pipe))
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEEDS[1]))
    shared = {"prompt": PROMPTS[1], "height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 3.0,
              "latents": noise}
    with torch.no_grad():
        assert torch.equal(pipe(**shared, output_type="pt").images[0], drawn.images[1])
        assert torch.equal(pipe(**shared, output_type="latent").images[0], drawn.latents[1])
    assert torch.equal(drawn.initial[1], noise[0]) and drawn.images.std() > 0.05
    assert before[0] is pipe.scheduler and not pipe.unet._forward_hooks


def test_shapes(drawn):
    assert drawn.prompts == PROMPTS and drawn.seeds == SEEDS
    assert drawn.steps.shape == (3, 2, 4, 16, 16) and drawn.predictions.shape == (3, 2, 2, 4, 16, 16)
    assert drawn.images.shape == (2, 3, 64, 64) and 0 <= drawn.images.min() < drawn.images.max() <= 1
    assert drawn.timesteps.tolist() == sorted(drawn.timesteps.tolist(), reverse=True) and len(drawn.timesteps) == 3


def test_predictions_and_guidance_explain_the_steps(pipe, drawn):
    """Euler by hand: latents move by the guided prediction times the change of sigma."""
    pipe.scheduler.set_timesteps(3)
    without, with_prompt = drawn.predictions.unbind(1)
    guided = without + 3.0 * (with_prompt - without)
    state = drawn.initial * pipe.scheduler.init_noise_sigma
    for i, (low, high) in enumerate(zip(pipe.scheduler.sigmas[1:], pipe.scheduler.sigmas)):
        state = state + guided[i] * (low - high)
        torch.testing.assert_close(state, drawn.steps[i], rtol=1e-5, atol=1e-5)
    assert not torch.equal(without, with_prompt)


def test_two_runs_and_two_models_alike(pipe, drawn):
    again = trajectory.sample(pipe, PROMPTS, SEEDS, **HOW)
    assert torch.equal(again.steps, drawn.steps) and torch.equal(again.images, drawn.images)
    assert trajectory.latent_psnr_along(again, drawn).tolist() == [[math.inf] * 2] * 3
    assert (trajectory.noise_along(pipe, drawn).snr() == math.inf).all()
    assert (trajectory.noise_along(pipe, drawn, "teacher").snr() == math.inf).all()


def test_batches_draw_the_same(pipe, drawn):
    together = trajectory.sample(pipe, PROMPTS, SEEDS, **HOW, batch=2)
    torch.testing.assert_close(together.steps, drawn.steps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.predictions, drawn.predictions, rtol=1e-4, atol=1e-4)
    assert trajectory.noise_along(pipe, together, batch=2).snr().isinf().all()


def test_a_worse_model_departs_step_by_step(worse, drawn):
    theirs = trajectory.sample(worse, PROMPTS, SEEDS, **HOW)
    psnr = trajectory.latent_psnr_along(theirs, drawn)
    assert torch.equal(theirs.initial, drawn.initial)
    assert psnr.isfinite().all() and (psnr[0] > psnr[-1]).all() and 5 < psnr[-1].mean() < 45


def test_predictions_are_made_on_the_teachers_states(worse, drawn):
    pair = trajectory.noise_along(worse, drawn)
    assert torch.equal(pair.teacher, drawn.predictions) and pair.snr().shape == (3, 2, 2)
    worse.scheduler.set_timesteps(3)
    state = worse.scheduler.scale_model_input(drawn.steps[1, :1], drawn.timesteps[2])       # before the last step
    size = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    with torch.no_grad():
        said = worse.unet(state, drawn.timesteps[2], encoder_hidden_states=drawn.embeddings["prompt_embeds"][:1],
                          added_cond_kwargs={"text_embeds": drawn.embeddings["pooled_prompt_embeds"][:1],
                                             "time_ids": size}).sample
    torch.testing.assert_close(said[0], pair.ours[2, 1, 0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(pair.ours, pair.teacher)


def test_own_text_encoders_count_unless_the_teachers_are_asked_for(pipe, drawn):
    encoder = copy.deepcopy(pipe.text_encoder)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.2)
    student = type(pipe)(**{**pipe.components, "text_encoder": encoder}, add_watermarker=False)
    assert trajectory.noise_along(student, drawn).snr()[:, 1].isfinite().all()
    assert (trajectory.noise_along(student, drawn, "teacher").snr() == math.inf).all()


def test_a_known_error_is_recovered(pipe, drawn):
    """A UNet whose output is off by noise of 1 % power has 20 dB, at every step and in both halves."""
    generator = torch.Generator().manual_seed(5)

    def disturb(_, __, output):
        power = output[0].square().mean((1, 2, 3), keepdim=True)
        return (output[0] + 0.1 * power.sqrt() * torch.randn(output[0].shape, generator=generator),)

    hook = pipe.unet.register_forward_hook(disturb)
    try:
        snr = trajectory.noise_along(pipe, drawn).snr()
    finally:
        hook.remove()
    found = bootstrap(snr.mean((0, 1)))
    assert snr.shape == (3, 2, 2) and (snr - 20).abs().max() < 1
    assert found.low - 0.2 <= 20 <= found.high + 0.2
    said = drawn.predictions[0, 0]
    assert noise_snr(1.1 * said, said).tolist() == pytest.approx([20, 20], abs=1e-4)


def test_without_guidance_there_is_one_half(pipe):
    drawn = trajectory.sample(pipe, PROMPTS[:1], SEEDS[:1], steps=1, guidance=1.0, size=(64, 48))
    assert drawn.predictions.shape == (1, 1, 1, 4, 16, 12) and drawn.images.shape == (1, 3, 64, 48)
    assert trajectory.noise_along(pipe, drawn).snr().shape == (1, 1, 1)


@pytest.mark.parametrize("sampler", trajectory.SAMPLERS)
def test_every_sampler_is_deterministic_and_followed(pipe, sampler):
    drawn, again = (trajectory.sample(pipe, PROMPTS[:1], SEEDS[:1], **HOW, sampler=sampler) for _ in range(2))
    assert torch.equal(drawn.steps, again.steps) and drawn.images.isfinite().all()
    assert (trajectory.noise_along(pipe, drawn).snr() == math.inf).all()


def test_intervals_of_timesteps():
    values, times = torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([900.0, 750.0, 10.0])
    groups = trajectory.by_interval(values, times)
    assert {key: value.tolist() for key, value in groups.items()} == {(0, 250): [7.0], (750, 1000): [2.0]}


def test_progress_stops_and_everything_is_undone(pipe):
    scheduler = pipe.scheduler
    calls = []
    progress = Progress(should_stop=lambda: len(calls) > 1 or calls.append(1))
    with pytest.raises(Interrupted):
        trajectory.sample(pipe, PROMPTS, SEEDS, **HOW, progress=progress)
    assert pipe.scheduler is scheduler and not pipe.unet._forward_hooks


def test_a_stop_waits_for_one_layer_of_a_call(pipe):
    begun, ended = [], []
    hooks = [pipe.unet.conv_in.register_forward_hook(lambda *_: begun.append(1)),
             pipe.unet.conv_out.register_forward_hook(lambda *_: ended.append(1))]
    try:
        with pytest.raises(Interrupted):
            trajectory.sample(pipe, PROMPTS, SEEDS, **HOW, progress=Progress(should_stop=lambda: len(begun) > 1))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(begun) == 2 and len(ended) == 1
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


@pytest.mark.parametrize("change, words", [
    ({"prompts": ()}, "0 prompts and 2 seeds"), ({"prompts": "a circle"}, "list of prompts"),
    ({"seeds": (1,)}, "2 prompts and 1 seeds"), ({"sampler": "best"}, "unknown sampler 'best'"),
    ({"steps": 0}, "at least 1"), ({"batch": 0}, "at least 1"), ({"size": (64, 60)}, "multiples of 8")])
def test_bad_requests_are_one_sentence(pipe, change, words):
    with pytest.raises(PlanError, match=words) as caught:
        trajectory.sample(pipe, **{"prompts": PROMPTS, "seeds": SEEDS, **HOW, **change})
    assert "\n" not in str(caught.value)


def test_other_families_are_refused(pipe, drawn):
    import dataclasses

    other = dataclasses.replace(drawn, prediction_type="v_prediction")
    with pytest.raises(UnsupportedError, match="teacher predicts 'v_prediction', this model 'epsilon'"):
        trajectory.noise_along(pipe, other)
    other = dataclasses.replace(drawn, initial=torch.zeros(2, 16, 8, 8))
    with pytest.raises(UnsupportedError, match="16 latent channels, this model 4"):
        trajectory.noise_along(pipe, other)
    with pytest.raises(PlanError, match="one shape"):
        trajectory.latent_psnr_along(drawn, dataclasses.replace(drawn, steps=drawn.steps[:2]))
    with pytest.raises(PlanError, match="conditioning must be"):
        trajectory.noise_along(pipe, drawn, "none")
