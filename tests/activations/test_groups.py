"""T12: DGQ's groups, the axis chosen by error and by the paper's criterion, against one range for all."""
from __future__ import annotations

import pytest
import torch
from vqpack.vq_core.activations.ranges import PointRanges, Seen
from vqpack.vq_core.activations.specs import BINS, GroupSpec, StaticSpec
from vqpack.vq_core.activations.tables import Table, group_table, grouped, sample_error, spread, static_table

TOKENS, CHANNELS = 96, 80
OUTLIERS = 5


def values(axis: str, sign: str, seed: int, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit noise with a few large channels or tokens -> [n, tokens, channels], which are not large [tokens, channels].
    """
    g = torch.Generator().manual_seed(seed)
    x, plain = torch.randn(n, TOKENS, CHANNELS, generator=g), torch.ones(TOKENS, CHANNELS, dtype=torch.bool)
    turned, marks = (x, plain) if axis == "channel" else (x.transpose(1, 2), plain.t())
    chosen = torch.randperm(turned.shape[2], generator=g)[:OUTLIERS]
    size = 40 + 20 * torch.rand(OUTLIERS, generator=g)
    if sign == "same":
        turned[..., chosen] += 2 * size
    else:
        turned[..., chosen] *= size
    marks[:, chosen] = False
    return x, plain


def seen(x: torch.Tensor) -> PointRanges:
    found = Seen(x.shape[2])
    found.widen(x, 3)
    found.sample(x, 3, 4096, torch.Generator().manual_seed(0))
    return found.ranges()


def error(table: Table, x: torch.Tensor, plain: torch.Tensor) -> float:
    """Of what is not large, at the bin that was seen."""
    got = table.quantize(x, torch.tensor([3 * table.intervals // BINS]), "x")
    return float((got - x).square()[:, plain].mean())


@pytest.mark.parametrize("sign", ["same", "any"])
@pytest.mark.parametrize("axis", ["channel", "token"])
def test_groups_along_the_right_axis_are_a_hundred_times_better(axis, sign):
    x, plain = values(axis, sign, 1)
    data = seen(x)
    whole = static_table(data, StaticSpec(6), [(0, CHANNELS)])
    right, wrong = (group_table(data, GroupSpec(6, axis=one)) for one in
                    ((axis, "token" if axis == "channel" else "channel")))
    assert error(whole, x, plain) >= 100 * error(right, x, plain)
    assert error(wrong, x, plain) >= 100 * error(right, x, plain)


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_axis_by_error_is_right_every_time(axis):
    """Outliers of any sign and size, 20 seeds."""
    for seed in range(20):
        data = seen(values(axis, "any", seed)[0])
        auto = group_table(data, GroupSpec(6))
        other = group_table(data, GroupSpec(6, axis="token" if axis == "channel" else "channel"))
        assert auto.axis == axis and sample_error(auto, data) < sample_error(other, data)


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_the_papers_criterion_is_right_where_outliers_have_one_sign(axis):
    data = seen(values(axis, "same", 2)[0])
    spreads = {one: spread(*data.merged(BINS, one)) for one in ("channel", "token")}
    other = "token" if axis == "channel" else "channel"
    assert spreads[axis] >= 3 * spreads[other]
    assert group_table(data, GroupSpec(6, axis="paper")).axis == axis


def test_groups_are_what_one_counts():
    """Two kinds of channels, two groups: each channel's range is its kind's."""
    low = torch.tensor([[-1.0, -9.0, -1.5, -8.0, -1.2]])
    table = grouped(low, -low, "channel", GroupSpec(6, groups=2))
    assert table.low.tolist() == [[-1.5, -9.0, -1.5, -9.0, -1.5]] and torch.equal(table.high, -table.low)
    assert torch.equal(grouped(low, -low, "channel", GroupSpec(6, groups=16)).low, low)    # fewer channels than that


def test_more_groups_lose_less_and_odd_sizes_work():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 7, 33, generator=g) * torch.rand(33, generator=g) ** 3 * 50
    data = seen(x)
    errors = [sample_error(group_table(data, GroupSpec(6, groups=n, axis="channel")), data) for n in (1, 4, 33)]
    assert errors[0] > errors[1] > errors[2]


def test_samples_tell_the_error_of_all_values():
    x, plain = values("channel", "any", 5)
    data = seen(x)
    table = group_table(data, GroupSpec(6, axis="channel"))
    everything = error(table, x, torch.ones_like(plain))
    assert sample_error(table, data) == pytest.approx(everything, rel=0.25)


def test_one_token_has_one_range():
    data = seen(torch.randn(4, 1, 9, generator=torch.Generator().manual_seed(0)))
    table = group_table(data, GroupSpec(8))
    assert table.axis == "whole" and table.low.shape == (BINS, 1)


def test_ranges_too_narrow_for_other_pictures_are_not_chosen():
    """Eight values a channel and a token say little about others: held-out samples show it, the same ones do not."""
    g = torch.Generator().manual_seed(0)
    found = Seen(8)
    found.widen(torch.randn(1, 8, 8, generator=g), 3)
    found.sample(torch.randn(64, 8, 8, generator=g), 3, 4096, g)
    held_out = found.ranges()
    assert group_table(held_out, GroupSpec(8, groups=8)).axis == "whole"
    assert group_table(held_out, GroupSpec(8, groups=8, axis="paper")).axis != "whole"
