"""Roundings of a block learned together: gain on its output, hard at the end, the same again, never worse."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vqpack.vq_core.calibration import reconstruct as module
from vqpack.vq_core.calibration.accumulate import input_rows
from vqpack.vq_core.calibration.groups import Group
from vqpack.vq_core.calibration.reconstruct import START, LayerRounding, Schedule, reconstruct
from vqpack.vq_core.calibration.recorded import Asked, Block, Recorded
from vqpack.vq_core.calibration.stages import unit_of, unit_stages
from vqpack.vq_core.encode import encode_weight, to_matrix, with_codes
from vqpack.vq_core.errors import Interrupted
from vqpack.vq_core.gram import Gram
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.spec import UniformSpec

SPLITS = {"shortcut": (7, 12)}
GROUPED = {"out": 16}                      # group_size


class Small(nn.Module):
    """A convolution, a 1x1 shortcut of concatenated inputs and attention over a text, all of odd sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(19, 13, 3, padding=1), nn.Conv2d(19, 13, 1, bias=False)
        self.q, self.k, self.v = nn.Linear(13, 10), nn.Linear(9, 10, bias=False), nn.Linear(9, 10)
        self.out = nn.Linear(10, 13)

    def forward(self, x, *, text, flag=None):
        """x [n, 19, h, w], text [n, tokens, 9] -> [n, 13, h, w]"""
        y = F.silu(self.conv(F.silu(x)))
        tokens = y.flatten(2).transpose(1, 2)                                       # [n, h * w, 13]
        seen = F.scaled_dot_product_attention(self.q(tokens), self.k(text), self.v(text))
        return self.shortcut(x) + (tokens + self.out(seen)).transpose(1, 2).view_as(y)


def made(seed):
    """One call with two halves; inputs are correlated, those of the shortcut's second range four times larger."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(28, 28, generator=torch.Generator().manual_seed(99)) / 28**0.5
    x = torch.randn(2, 25, 28, generator=g) @ (mix @ mix)                           # [2, h * w, 28]
    image = x[:, :, :19].transpose(1, 2).reshape(2, 19, 5, 5).clone()
    image[:, 7:] *= 4
    return Asked((image,), {"text": x[:, :6, 19:].contiguous(), "flag": None})


def ask(block, asked):
    with torch.no_grad():
        return block(*asked.args, **asked.named)


def grams(block, calls):
    """Layer -> Gram of its inputs in these calls; the last quarter is held out."""
    rows, found = {}, {}
    hooks = [layer.register_forward_pre_hook(
        lambda m, args, n=name: rows.setdefault(n, []).append(input_rows(m, args[0], 1 << 20, (0,)).flatten(1)))
        for name, layer in block.named_children()]
    for asked in calls:
        ask(block, asked)
    for hook in hooks:
        hook.remove()
    for name, seen in rows.items():
        cut = len(seen) * 3 // 4
        sets = [torch.cat(part) for part in (seen[:cut], seen[cut:])]
        found[name] = Gram(*[v for x in sets for v in ((x.t() @ x / len(x))[None], len(x))])
    return found


@pytest.fixture(scope="module")
def given():
    """A block with 32 calls, eight of them held out, and its layers coded by themselves at 3 bits."""
    torch.manual_seed(3)
    block = Small().eval().requires_grad_(False)
    calls = [made(seed) for seed in range(32)]
    known = grams(block, calls)

    def coded(rounding):
        return {name: encode_weight(layer.weight, UniformSpec(3, GROUPED.get(name, 0), rounding), gram=known[name],
                                    splits=SPLITS.get(name, ())).weight for name, layer in block.named_children()}

    return SimpleNamespace(block=block, calls=calls, nearest=coded("nearest"), layerwise=coded("block"),
                           weights={name: layer.weight for name, layer in block.named_children()})


def recorded(given):
    """The block's calls as they are captured; the student gets slightly other inputs than the original."""
    block = Block("up.0", {name: f"up.0.{name}" for name in given.weights})
    block.module = given.block
    for i, asked in enumerate(given.calls):
        noise = torch.randn(asked.args[0].shape, generator=torch.Generator().manual_seed(i))
        block.offer(Asked((asked.args[0] + 0.02 * noise,), asked.named), ask(given.block, asked), i % 4 == 3)
    return block


def learned(given, fixed=(), **named):
    layers = {name: (coded, given.weights[name]) for name, coded in given.layerwise.items() if name not in fixed}
    return reconstruct(recorded(given), layers, {name: given.layerwise[name] for name in fixed}, 0,
                       named.pop("progress", Progress()), Schedule(**named))


@pytest.fixture(scope="module")
def found(given):
    return learned(given)


def lost(given, weights):
    """Squared error of the block's outputs in calls that nobody has seen."""
    total = 0.0
    for seed in range(1000, 1016):
        asked = made(seed)
        with torch.no_grad():
            got = torch.func.functional_call(given.block, {f"{name}.weight": w for name, w in weights.items()},
                                             asked.args, asked.named)
        total += float((got - ask(given.block, asked)).square().sum())
    return total


def decoded(coded, codes=None):
    if codes is None:
        return {name: weight.decode() for name, weight in coded.items()}
    return {name: with_codes(weight, codes[name], weight.decode()).weight.decode() for name, weight in coded.items()}


def test_beats_nearest_by_a_fifth_and_the_layer_wise_roundings_on_the_blocks_output(given, found):
    nearest, layerwise = (lost(given, decoded(coded)) for coded in (given.nearest, given.layerwise))
    together = lost(given, decoded(given.layerwise, found.codes))
    assert together < 0.8 * nearest and together < 0.95 * layerwise < nearest
    assert 0 < found.error < 1


def test_codes_are_neighbors_of_the_weights_and_nothing_else_changes(given, found):
    changed = 0
    for name, coded in given.layerwise.items():
        again = with_codes(coded, found.codes[name], given.weights[name])
        rounding = LayerRounding(coded, given.weights[name], torch.device("cpu"))
        assert len(rounding.parts) == len(SPLITS.get(name, (1,))) == len(found.codes[name])
        for part, codes in zip(rounding.parts, found.codes[name], strict=True):
            up = codes - part.low
            assert codes.dtype == torch.int32 and set(up.unique().tolist()) <= {0.0, 1.0}
            assert codes.min() >= 0 and codes.max() <= 7
        for (*ours, new), (*theirs, old) in zip(again.weight.parts, coded.parts, strict=True):
            assert ours == theirs and new.bits == old.bits and torch.equal(new.zero_points, old.zero_points)
            assert new.scales.gain == old.scales.gain
            changed += not torch.equal(new.codes, old.codes)
        assert again.weight.nbytes == coded.nbytes and again.relative_error > 0
    assert changed == 7                    # six layers, one of them in two ranges


def test_low_and_the_code_above_hold_the_layer_wise_code_and_the_weight(given):
    for name, coded in given.layerwise.items():
        for (start, stop, _, _), part in zip(coded.parts, LayerRounding(coded, given.weights[name], torch.device("cpu"))
                                             .parts, strict=True):
            matrix = to_matrix(given.weights[name], start, stop)
            place = matrix / part.step + part.zero
            inside = (place > part.low) & (place < part.low + 1)
            between = matrix + START * (to_matrix(coded.decode(), start, stop) - matrix)
            assert inside.float().mean() > 0.7                     # the rest is clamped or was refitted across a code
            assert torch.allclose(part.weights(part.share().detach())[inside], between[inside], atol=1e-5)
        rounding = LayerRounding(coded, coded.decode(), torch.device("cpu"))
        assert torch.equal(rounding.weight([part.hard() for part in rounding.parts]), coded.decode())


def test_shares_end_at_zero_or_one(given, monkeypatch):
    ends = []
    monkeypatch.setattr(module.PartRounding, "codes", lambda self: ends.append(self.share().detach()) or self.low.int())
    learned(given)
    between = torch.cat([share.flatten() for share in ends])
    assert ((between > 0.1) & (between < 0.9)).float().mean() < 0.05


def test_the_same_whatever_the_number_of_threads_and_another_for_another_seed(given, found):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = learned(given)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert again.error == found.error
    assert all(torch.equal(a, b) for name in found.codes for a, b in zip(found.codes[name], again.codes[name],
                                                                         strict=True))


def test_what_does_no_better_on_held_out_calls_is_dropped(given):
    assert learned(given, rate=5.0, iterations=1) == module.Learned({}, 1.0)
    block = recorded(given)
    block.held_out = Recorded(1 << 20)
    layers = {name: (coded, given.weights[name]) for name, coded in given.layerwise.items()}
    assert reconstruct(block, layers, {}, 0, Progress()) == module.Learned({}, 1.0)


def test_layers_of_other_codes_stay_and_are_reckoned_with(given):
    assert set(learned(given, fixed=("q", "shortcut")).codes) in ({"conv", "k", "v", "out"}, set())
    calls = recorded(given).held_out
    layers = {name: (coded, given.weights[name]) for name, coded in given.layerwise.items()}
    whole = module._Reconstruction(given.block, layers, {}, Schedule())
    layers.pop("conv")
    partly = module._Reconstruction(given.block, layers, {"conv": given.layerwise["conv"]}, Schedule())
    assert partly.error(partly.start, calls) == whole.error(whole.start, calls) > 0


def test_can_be_stopped_and_leaves_the_block_as_it_was(given):
    asked, before = [], given.block.conv.weight.clone()
    with pytest.raises(Interrupted):
        learned(given, progress=Progress(should_stop=lambda: asked.append(1) or len(asked) > 20))
    assert len(asked) == 21 and torch.equal(given.block.conv.weight, before)


def test_recorded_calls_fit_into_memory_and_lie_evenly():
    one = (Asked((torch.zeros(2, 5), None), {"text": torch.zeros(2, 3)}), torch.zeros(2, 2))
    nbytes = 4 * 2 * (5 + 3 + 2)
    kept = Recorded(6 * nbytes)
    for i in range(41):
        asked = Asked((torch.full((2, 5), float(i)), None), one[0].named)
        kept.offer(asked, torch.full((2, 2), float("nan")) if i == 3 else one[1])
        assert kept.used == nbytes * len(kept.calls) <= 6 * nbytes
    numbers = [int(asked.args[0][0, 0]) for asked, _ in kept.calls]
    assert numbers == [0, 9, 17, 25, 33]                           # every eighth of those that were finite
    asked, output = kept.batch([1, 3], torch.device("cpu"))
    assert asked.args[0].shape == (4, 5) and asked.args[1] is None and output.shape == (4, 2)
    assert asked.args[0][:, 0].tolist() == [9.0, 9.0, 25.0, 25.0]
    large = Recorded(1)
    large.offer(*one)
    assert len(large.calls) == 1                                   # one call in any case


PATHS = {"a": "down_blocks.0.resnets.0.conv1", "b": "down_blocks.0.resnets.0.conv2",
         "c": "down_blocks.0.attentions.0.proj_in", "q": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
         "t": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "m": "mid_block.resnets.1.conv1",
         "u": "mid_block.attentions.0.transformer_blocks.11.attn2.to_v"}


def stage_lists(coded, together):
    groups = [Group((key,), PATHS[key], 1, 4) for key in "abcqm"]
    groups.insert(4, Group(("t", "u"), PATHS["t"], 1, 4, text=True))
    return [(stage.unit, "".join(stage.keys), "".join(key for group in stage.groups for key in group.layers))
            for stage in unit_stages(groups, PATHS, set(coded), together)]


def test_stages_are_residual_and_transformer_blocks_and_single_layers():
    transformer, resnet = "down_blocks.0.attentions.0.transformer_blocks.0", "down_blocks.0.resnets.0"
    assert unit_of(PATHS["u"]) == "mid_block.attentions.0.transformer_blocks.11" and unit_of(PATHS["c"]) is None
    assert stage_lists("abcqtmu", "abcqtmu") == [
        (resnet, "ab", "ab"), (None, "c", "c"), (transformer, "qt", "q"), ("mid_block.resnets.1", "m", "m"),
        (unit_of(PATHS["u"]), "u", "")]
    # A block of other codes has no unit, and what sees the text stays out of it; what is not coded is no stage.
    assert stage_lists("abqt", "a") == [(resnet, "ab", "ab"), (None, "q", "q")]
