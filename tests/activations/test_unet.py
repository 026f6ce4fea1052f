"""Activations of a whole UNet: what is changed, by which interval's table, for whom, and that all of it comes off."""
from __future__ import annotations

import copy

import pytest
import torch
from vqpack.vq_core.activations import calibrate_activations, make_activations, quantize_activations
from vqpack.vq_core.activations.attention import ScoreProcessor
from vqpack.vq_core.activations.grids import affine, symmetric
from vqpack.vq_core.activations.levels import LOG_SIGMA, Levels, levels_of
from vqpack.vq_core.activations.points import find_points
from vqpack.vq_core.activations.specs import (
    PRESETS,
    Activations,
    GroupSpec,
    KeepSpec,
    ScoreSpec,
    StaticSpec,
    TokenSpec,
)
from vqpack.vq_core.activations.tables import static_table
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.errors import PlanError, UnsupportedError
from vqpack.vq_core.layers import replace_layers
from vqpack.vq_core.spec import TrellisSpec

LAYER = "model.diffusion_model.middle_block.1.proj_in.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"                            # its input: the latents
MODULE = "mid_block.attentions.0.proj_in"


def difference(unet, calls, settings, ranges=None, call=0):
    """Largest change of the answer, whether it is gone after removal."""
    before = calls.ask(unet, call)
    with quantize_activations(unet, settings, ranges):
        during = calls.ask(unet, call)
    assert torch.equal(calls.ask(unet, call), before)
    return float((during - before).abs().max())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_changes_the_answer_a_little_and_comes_off(unet, calls, ranges, name):
    own = [type(module.processor) for module in unet.modules() if hasattr(module, "processor")]
    size = float(calls.ask(unet, 1).abs().max())
    assert 0 < difference(unet, calls, name, ranges, 1) < 0.5 * size
    assert [type(module.processor) for module in unet.modules() if hasattr(module, "processor")] == own
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unet.modules())


def test_hard_spots_stay(unet, ranges):
    attached = quantize_activations(unet, "int8")
    kept = {point.module for point in find_points(unet) if point.side == "input"
            and point.name not in attached.quantizers}
    attached.remove()
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2"} <= kept
    for name in kept - {"conv_in", "conv_out"}:
        assert name.endswith(("attn2.to_k", "attn2.to_v", "time_emb_proj", "linear_1", "linear_2")), name
    named = Activations(TokenSpec(8), layers=(("model.diffusion_model.out.2.weight", TokenSpec(6)),))
    with quantize_activations(unet, named) as attached:
        assert attached.quantizers["model.diffusion_model.out.2.weight"].bits == 6
    with quantize_activations(unet, "dgq8", ranges) as attached:
        assert sum("attn2.to_k.weight:output" in name for name in attached.quantizers) == 7
        assert "model.diffusion_model.out.2.weight" not in attached.quantizers


def test_points_are_the_coded_layers_of_the_checkpoint(testbed):
    from diffusers import UNet2DConditionModel
    from vqpack.vq_core.calibration.groups import coded_layers
    from vqpack.vq_core.compare.models import open_checkpoint

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(testbed / "unet"))
    points = {point.key: point for point in find_points(unet) if point.side == "input"}
    layers = coded_layers(open_checkpoint(testbed, "A").shapes)
    assert all(points[layer.key].module == layer.module and points[layer.key].channels == layer.shape[1]
               for layer in layers)
    assert len(points) == len(layers) + 4 + 2 + 11         # embeddings, first and last convolution, time projections


def only(spec):
    """One layer's input alone."""
    return Activations(layers=((LAYER, spec),), rules=(("", KeepSpec()),))


def seen_by(unet, calls, settings, ranges, call):
    """The input of the one layer, as it is and as it is quantized."""
    found = []
    module = unet.get_submodule(MODULE)
    for each in (None, settings):
        with quantize_activations(unet, each, ranges):
            hook = module.register_forward_hook(lambda _, args, __: found.append(args[0]))
            calls.ask(unet, call)
            hook.remove()
    return found


def test_one_layer_is_what_one_computes(unet, calls, ranges):
    x, got = seen_by(unet, calls, only(TokenSpec(6)), None, 0)
    assert torch.equal(got, symmetric(x, 6, (2,)))
    x, got = seen_by(unet, calls, only(StaticSpec(8)), ranges, 2)
    seen = ranges.points[LAYER]
    assert torch.allclose(got, affine(x, seen.channel_low.min(), seen.channel_high.max(), 8))
    x, got = seen_by(unet, calls, only(StaticSpec(8, 4)), ranges, 3)               # the last quarter: its own range
    assert torch.allclose(got, affine(x, x.min(), x.max(), 8))
    assert float(ranges.points[LAYER].channel_high.max()) > 1.01 * float(x.max())


def test_tables_are_found_by_noise_level_whatever_the_number_of_steps(unet, calls, ranges, more_calls):
    """Other steps, another number of them: the interval they lie in decides, the nearest where nothing was seen."""
    other = more_calls(told=(998.0, 990.0, 951.0, 949.0, 20.0, 0.0), seed=1)
    with quantize_activations(unet, only(StaticSpec(8, 20)), ranges) as attached:
        table, clock = attached.quantizers[LAYER].table, attached.quantizers[LAYER].clock
        lows = []
        for call in range(6):
            other.ask(unet, call)
            lows.append(float(table.low[clock.intervals(20, 2, torch.device("cpu"))].min()))
    seen = ranges.points[LAYER].channel_low
    at = {told: float(seen[int(told // 50)].min()) for told in (999.0, 760.0, 420.0, 30.0)}
    # 949 lies in an interval nothing was seen in; the nearest is that of 999
    assert lows == [at[999.0]] * 4 + [at[30.0]] * 2
    assert len(set(at.values())) == 4


def test_per_step_tables_lose_less_than_one_range(unet, more_calls):
    """AQ thesis: where the spread falls over time to a seventh, at least half the squared error goes at A8."""
    calls = more_calls(told=tuple(975.0 - 50 * i for i in range(20)))
    ranges = calibrate_activations(unet, [calls])
    x = calls.samples.flatten(3).transpose(2, 3)                                    # [steps, halves, pixels, channels]
    errors = []
    for intervals in (1, 20):
        table = static_table(ranges.points[FIRST], StaticSpec(8, intervals), [(0, 4)])
        found = ranges.levels.intervals_of(calls.timesteps, intervals)
        errors.append(sum(float((table.quantize(x[i], found[i:i + 1], FIRST) - x[i]).square().mean())
                          for i in range(20)))
    assert errors[0] >= 2 * errors[1]


def test_held_out_pictures_give_samples_and_no_ranges(unet, calls, more_calls):
    loud = more_calls(seed=1)
    loud.samples.mul_(100)
    first, both = (calibrate_activations(unet, drawn).points[FIRST] for drawn in ([calls], [calls, loud]))
    assert torch.equal(both.channel_high, first.channel_high) and torch.equal(both.counts, first.counts)
    assert both.values.abs().max() > 10 * first.values.abs().max()
    x = calls.samples[0].flatten(2).transpose(1, 2)                                # what the first layer saw
    assert torch.equal(first.token_high[19], x.amax((0, 2))) and torch.equal(first.channel_low[19], x.amin((0, 1)))
    which = first.places[:, 0] == 19
    assert set(first.values[which].tolist()) <= set(x.flatten().tolist()) and int(which.sum()) == 1024


def test_coded_layers_are_quantized_where_their_codes_are(unet, calls):
    """A rotated layer in a UNet, its sources concatenated: found by itself, and undone."""
    weight = encode_weight(unet.get_submodule(MODULE).weight, TrellisSpec(4, 8, 16)).weight
    replace_layers(unet, {MODULE: weight})
    with quantize_activations(unet, "int8") as attached:
        assert [part.block for part in attached.quantizers[LAYER].ranges] == [16]
    answers = []
    for rotated in (True, False):
        with quantize_activations(unet, only(TokenSpec(3, rotated))):
            answers.append(calls.ask(unet, 1))
    assert not torch.equal(*answers)
    assert 0 < difference(unet, calls, "int8") < 0.5
    ranges = calibrate_activations(unet, [calls])
    assert 0 < difference(unet, calls, only(StaticSpec(8)), ranges) < 0.5


def test_schedules_of_their_own_kind_are_told_by_the_logarithm_of_sigma():
    assert levels_of([999.0, 1.0]) == Levels(0.0, 1000.0) and levels_of([1.09, -1.5]) == Levels(*LOG_SIGMA)
    found = Levels(*LOG_SIGMA).intervals_of(torch.tensor([-9.0, -1.6, 1.1999, 5.0]), 20)
    assert found.tolist() == [0, 0, 19, 19]
    assert Levels(0.0, 1000.0).intervals_of(torch.tensor([0.0, 49.9, 50.0, 1000.0]), 20).tolist() == [0, 0, 1, 19]


@pytest.mark.parametrize("name", ["int6", "dgq6", "talsq6"])
def test_samples_do_not_depend_on_their_company(unet, calls, ranges, name):
    """The first of two samples is the same to the bit beside another prompt, louder latents, another noise level."""
    text, added = calls.fixed["text"], {k[6:]: v for k, v in calls.fixed.items() if k.startswith("added.")}
    quiet, loud = calls.samples[1, :1], 10 * calls.samples[0, 1:]

    def ask(samples, told, rows):
        return unet(torch.cat(samples), torch.tensor(told), encoder_hidden_states=text[rows],
                    added_cond_kwargs={k: v[rows] for k, v in added.items()}, return_dict=False)[0]

    with quantize_activations(unet, name, ranges):
        wanted = ask([quiet, quiet], [30.0, 30.0], [0, 0])[0]
        assert torch.equal(ask([quiet, loud], [30.0, 760.0], [0, 1])[0], wanted)
        assert torch.equal(ask([quiet, quiet], 30.0, [0, 0])[0], wanted)           # one timestep for both
        swapped = ask([loud, quiet], [760.0, 30.0], [1, 0])[1]
        assert float((swapped - wanted).abs().mean()) < 0.01 * float(wanted.abs().mean())


def test_the_papers_logarithm_depends_on_the_company(unet, calls):
    """DGQ's largest score of the whole batch, the documented exception; with one a sample nothing depends on it."""
    text, added = calls.fixed["text"], {k[6:]: v for k, v in calls.fixed.items() if k.startswith("added.")}
    for scale_of, depends in (("batch", True), ("sample", False)):
        answers = []
        for loud in (1, 100):
            samples = torch.cat([calls.samples[1, :1], loud * calls.samples[0, 1:]])
            with quantize_activations(unet, Activations(scores=ScoreSpec("log2", 4, scale_of=scale_of))):
                answers.append(unet(samples, 30.0, encoder_hidden_states=torch.cat([text[:1], loud * text[1:]]),
                                    added_cond_kwargs=added, return_dict=False)[0][0])
        assert torch.equal(*answers) != depends


def test_attention_written_out_is_diffusers_own(unet, calls):
    before = calls.ask(unet, 2)
    for module in unet.modules():
        if hasattr(module, "processor"):
            module.set_processor(ScoreProcessor(ScoreSpec()))
    assert torch.allclose(calls.ask(unet, 2), before, atol=1e-5)


def test_start_tokens_key_is_exact(unet, calls, ranges):
    settings = Activations(attention=StaticSpec(2), scores=ScoreSpec())
    layer, found = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k, []
    for each in (None, settings):
        with quantize_activations(unet, each, ranges):
            hook = layer.register_forward_hook(lambda _, __, output: found.append(output))
            calls.ask(unet, 0)
            hook.remove()
    assert torch.equal(found[0][:, 0], found[1][:, 0]) and not torch.equal(found[0][:, 1:], found[1][:, 1:])


def test_not_a_number_is_named(unet, calls, ranges):
    calls.samples[0, 0, 0, 0, 0] = torch.nan
    for settings in ("int8", "talsq8"):
        with quantize_activations(unet, settings, ranges), pytest.raises(UnsupportedError, match="NaN or infinite"):
            calls.ask(unet, 0)


def test_dead_layers_stay_exact(unet, calls):
    """A layer whose inputs are all the same number: nothing to divide by, nothing changes."""
    norm = unet.mid_block.attentions[0].norm
    norm.weight.zero_()
    norm.bias.fill_(0.3)
    ranges = calibrate_activations(unet, [calls])
    for spec in (StaticSpec(6), GroupSpec(6), StaticSpec(2, 20)):
        x, got = seen_by(unet, calls, only(spec), ranges, 0)
        assert torch.equal(got, x) and torch.equal(x, torch.full_like(x, 0.3))


def test_bad_settings_are_refused_and_nothing_stays_attached(unet, calls, ranges, more_calls):
    def refused(settings, given, words):
        with pytest.raises(PlanError, match=words):
            quantize_activations(unet, settings, given)
        assert not unet._forward_pre_hooks and not unet.get_submodule(MODULE)._forward_pre_hooks

    refused("dgq8", None, "calibrate them")
    refused("int9", None, "unknown activations 'int9'")
    refused(Activations(layers=(("no.such.weight", TokenSpec()),)), None, "no.such.weight")
    partial = copy.copy(ranges)
    object.__setattr__(partial, "points", {k: v for k, v in ranges.points.items() if k != LAYER})
    refused("talsq8", partial, "middle_block.1.proj_in")
    with quantize_activations(unet, "int8"), pytest.raises(PlanError, match="already"):
        quantize_activations(unet, "int8")
    assert not unet._forward_pre_hooks
    larger = more_calls(side=16)
    with quantize_activations(unet, only(GroupSpec(8, axis="token")), ranges), pytest.raises(PlanError, match="tokens"):
        larger.ask(unet, 0)
    with pytest.raises(PlanError, match="one size"):
        calibrate_activations(unet, [calls, larger])
    with pytest.raises(UnsupportedError, match="finite"):
        calibrate_activations(unet, [more_calls(finite=(False,) * 4)])


def test_attention_of_another_kind_keeps_its_scores(unet):
    class Own:
        def __call__(self, *_, **__):
            raise AssertionError

    unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(Own())
    settings = Activations(scores=ScoreSpec("row_uniform"))
    with pytest.raises(UnsupportedError, match="processor of kind Own"):
        quantize_activations(unet, settings)
    quantize_activations(unet, make_activations("int8")).remove()
