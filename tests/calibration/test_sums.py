"""Grams against explicit im2col, chosen rows, shared inputs, sweeps, steps and held-out pictures: no pipeline."""
from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vqpack.vq_core.calibration.accumulate import Sums, chosen_rows, input_rows, interval_of
from vqpack.vq_core.calibration.calls import noise_levels
from vqpack.vq_core.calibration.groups import CodedLayer, Group, _grouped, sweeps
from vqpack.vq_core.calibration.kept import Snapshot
from vqpack.vq_core.calibration.settings import PRESETS, chosen_steps, pictures, preset_settings
from vqpack.vq_core.encode import to_matrix
from vqpack.vq_core.errors import Interrupted, PlanError
from vqpack.vq_core.progress import Progress

CONVOLUTIONS = [dict(kernel_size=3, padding=1), dict(kernel_size=3, padding=1, stride=2), dict(kernel_size=1),
                dict(kernel_size=(3, 5), padding=(0, 2), stride=(2, 1)), dict(kernel_size=3, dilation=2, padding=1)]


def gram_of(module, x, blocks=1, most=1 << 20):
    rows = input_rows(module, x, most, (0,))
    sums = Sums(Group(("a",), "a", blocks, rows[0].numel() // blocks))
    sums.add(rows, False, 10.0)
    return sums.mean(False), rows


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution_gram_is_that_of_the_coded_matrix_inputs(options):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(5, 7, **options), torch.randn(2, 5, 9, 7)
    gram, rows = gram_of(conv, x)
    columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)     # [n, channels * taps, places]
    taps = columns.shape[1] // 5
    expected = columns.unflatten(1, (5, taps)).transpose(1, 2).flatten(1, 2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows.flatten(1), expected)
    torch.testing.assert_close(gram[0].double(), expected.double().t() @ expected.double() / len(expected),
                               rtol=1e-5, atol=1e-6)
    matrix, bias = to_matrix(conv.weight.detach(), 0, 5), conv.bias.detach()
    answered = rows.flatten(1) @ matrix.t() + bias                  # the order of the columns is that of the weights
    torch.testing.assert_close(answered, conv(x).detach().permute(0, 2, 3, 1).flatten(0, 2), rtol=1e-4, atol=1e-5)


def test_one_gram_a_tap_is_the_block_diagonal_of_the_whole_one():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 6, 5)
    whole, blocks = gram_of(conv, x)[0][0], gram_of(conv, x, blocks=9)[0]
    for tap in range(9):
        torch.testing.assert_close(blocks[tap], whole[4 * tap:4 * tap + 4, 4 * tap:4 * tap + 4])


def test_linear_inputs_are_taken_as_they_are():
    x = torch.randn(2, 3, 11)
    rows = input_rows(nn.Linear(11, 2), x, 100, (0,))
    assert torch.equal(rows[:, 0], x.reshape(6, 11))


def test_chosen_rows_are_spread_and_depend_on_the_seed_alone():
    rows = chosen_rows(1000, 64, (3, 1, 4))
    assert torch.equal(rows, chosen_rows(1000, 64, (3, 1, 4))) and not torch.equal(rows, chosen_rows(1000, 64, (3, 1)))
    assert len(rows) == 64 and len(rows.unique()) == 64 and int(rows.min()) >= 0 and int(rows.max()) < 1000
    assert all(15.625 * i - 1 <= int(row) < 15.625 * (i + 1) for i, row in enumerate(rows))
    assert torch.equal(chosen_rows(5, 64, (0,)), torch.arange(5))


def test_nan_inputs_are_left_out_and_counted():
    sums = Sums(Group(("a",), "a", 1, 3))
    good = torch.ones(2, 1, 3)
    sums.add(good, False, 500.0)
    sums.add(torch.full((2, 1, 3), float("nan")), False, 500.0)
    sums.add(torch.full((2, 1, 3), float("inf")), True, 500.0)
    assert sums.left_out == 2 and sums.counts.tolist() == [2, 0]
    assert torch.equal(sums.mean(False), torch.ones(1, 3, 3)) and not sums.mean(True).any()


def test_intervals_count_what_was_seen_where():
    sums = Sums(Group(("a",), "a", 1, 2))
    for level, value in ((0.0, 1.0), (249.0, 3.0), (250.0, 2.0), (1000.0, 5.0)):
        sums.add(torch.full((4, 1, 2), value), False, level)
    note = sums.note()
    assert note["interval_counts"] == [8, 4, 0, 4] and note["interval_squares"] == [5.0, 4.0, 0.0, 25.0]
    assert [interval_of(level) for level in (-1, 0, 499.9, 500, 999, 1000)] == [0, 0, 1, 2, 3, 3]


def test_the_same_tensor_and_geometry_share_a_gram():
    layers = [CodedLayer(name, shape, name) for name, shape in (
        ("q", (4, 8)), ("k", (4, 8)), ("other", (4, 8)), ("wide", (4, 300, 3, 3)), ("narrow", (4, 300, 1, 1)))]
    conv, point = ("conv", (3, 3), (1, 1), (1, 1), (1, 1)), ("conv", (1, 1), (1, 1), (0, 0), (1, 1))
    seen = {"q": (0, ("linear",), False), "k": (0, ("linear",), False), "other": (1, ("linear",), True),
            "wide": (2, conv, False), "narrow": (2, point, False)}
    groups = _grouped(layers, seen, full_columns=2304)
    assert [group.layers for group in groups] == [("q", "k"), ("other",), ("wide",), ("narrow",)]
    assert [(group.blocks, group.size, group.text) for group in groups] == [
        (1, 8, False), (1, 8, True), (9, 300, False), (1, 300, False)]
    assert _grouped(layers, seen, full_columns=2700)[2].blocks == 1


def test_sweeps_keep_to_the_memory():
    groups = [Group((str(i),), str(i), 1, size) for i, size in enumerate((10, 20, 30, 10, 30))]
    most = 8 * 1000
    found = sweeps(groups, most)
    assert [group for part in found for group in part] == groups and len(found) > 1
    assert all(sum(group.nbytes for group in part) <= most for part in found)
    assert all(sum(g.nbytes for g in a) + b[0].nbytes > most for a, b in pairwise(found))
    with pytest.raises(PlanError, match="allow more memory"):
        sweeps(groups, 8 * 899)


def test_steps_are_spread_and_all_come_up():
    assert chosen_steps([3, 4, 5], 8, 0) == [3, 4, 5]
    found = [chosen_steps(list(range(25)), 8, picture) for picture in range(8)]
    for steps in found:
        gaps = [b - a for a, b in pairwise(steps)]
        assert len(steps) == 8 and set(gaps) <= {3, 4}
    assert set().union(*found) == set(range(25))


def test_held_out_pictures_are_others():
    settings = preset_settings("base", (64, 64))
    for count in (2, 3, 4, 24, 100):
        drawn = pictures(tuple(map(str, range(count))), settings)
        held = [p.prompt for p in drawn if p.held_out]
        assert len(held) == max(1, round(count / 4)) and len(drawn) == count == len({p.seed for p in drawn})
        assert not set(held) & {p.prompt for p in drawn if not p.held_out}
    one, other = pictures(("alone",), settings)
    assert (one.held_out, other.held_out) == (False, True) and one.seed != other.seed
    taken = [list(range(77))[p.tokens[0]::p.tokens[1]] for p in (one, other)]
    assert not set(taken[0]) & set(taken[1]) and len(taken[0]) + len(taken[1]) == 77


def test_presets_are_as_their_kinds_are_drawn():
    assert all(4 <= PRESETS[name]["steps"] <= 8 and 1 <= PRESETS[name]["guidance"] <= 2
               for name in ("lcm", "lightning", "hyper"))
    assert PRESETS["turbo"]["steps"] <= 4 and PRESETS["turbo"]["guidance"] <= 1         # one half
    assert preset_settings("turbo", (64, 64), steps=1, guidance=None).steps == 1
    with pytest.raises(PlanError, match="unknown preset"):
        preset_settings("base2", (64, 64))


@pytest.mark.parametrize("change, words", [
    ({"steps": 0}, "--steps"), ({"timesteps": 0}, "--timesteps"), ({"guidance": 99.0}, "--cfg"), ({"seed": -1}, "seed"),
    ({"sampler": "x"}, "--sampler"), ({"scheduler": "x"}, "--scheduler"), ({"window": (500, 500)}, "--window"),
    ({"window": (0, 2000)}, "--window"), ({"held_out_share": 1.0}, "held-out"), ({"tokens": 0}, "tokens")])
def test_impossible_settings_are_refused_by_name(change, words):
    with pytest.raises(PlanError, match=words):
        preset_settings("base", (64, 64), **change).check(4)


def test_times_of_another_kind_become_places_in_the_trajectory():
    assert noise_levels(torch.tensor([951.0, 501.0, 1.0])) == [951.0, 501.0, 1.0]
    assert noise_levels(torch.tensor([1.2, 0.1, -1.5, -1.9])) == [1000.0, 750.0, 500.0, 250.0]


def test_a_stop_while_sums_are_copied_leaves_the_copy_before(tmp_path):
    def sums(value: float) -> dict[int, Sums]:
        found = {index: Sums(Group((str(index),), str(index), 2, 3)) for index in range(4)}
        for one in found.values():
            one.totals += value
        return found

    path, asked = tmp_path / "sums.npz", []
    Snapshot(path, sums(1.0), Progress())._save()
    stopping = Progress(should_stop=lambda: len(asked) > 2)
    stopped = Snapshot(path, sums(2.0), stopping)
    asked += [1, 2, 3]
    with pytest.raises(Interrupted):
        stopped._save()
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    found = sums(0.0)
    Snapshot(path, found, Progress())
    assert all(torch.equal(one.totals, torch.ones(2, 2, 3, 3)) for one in found.values())
