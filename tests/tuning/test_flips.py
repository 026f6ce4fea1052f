"""Windows of trellis codes coded again: optimal, invisible outside, and counted."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vqpack.kernels.dispatch import decode_part
from vqpack.kernels.parts import Scales
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.spec import make_spec
from vqpack.vq_core.tuning import flips, regroup
from vqpack.vq_core.tuning import loop as loops
from vqpack.vq_core.tuning.groups import integers_of
from vqpack.vq_core.tuning.masters import PartMasters, Trained
from vqpack.vq_core.tuning.rewindow import WINDOW, Windows, count, possible, recode, replaced, tail_steps
from vqpack.vq_core.tuning.student import Student


def coded(bits, rows=70, cols=12, window=8):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(3))
    return encode_weight(weight, make_spec("trellis", bits, window=window, rotation=0)).weight.parts[0][3]


def integers(part):
    return decode_part(replace(part, rotation=0, scales=Scales(1.0)))


@pytest.mark.parametrize(("bits", "tail"), [(1, 8), (2, 4), (3, 3), (1.5, 3), (4, 2)])
def test_only_window_and_tail_change_and_the_error_falls(bits, tail):
    part, generator = coded(bits), torch.Generator().manual_seed(1)
    assert tail_steps(part) == tail
    old = integers(part)
    targets = old + 30 * torch.randn(old.shape, generator=generator)
    windows = possible(part, 8, 3)
    assert len(windows.first) and count(part, 8) == 12 * -(-(70 // part.vector) // 8)
    codes, gain = recode(part, targets, windows)
    assert gain.min() > -1e-2 and gain.max() > 50
    new = integers(replace(part, codes=replaced(part, windows, codes)))
    allowed = torch.zeros(70, 12, dtype=torch.bool)
    for column, first in zip(windows.columns.tolist(), windows.first.tolist()):
        allowed[first * part.vector:(first + 8 + tail) * part.vector, column] = True
    assert torch.equal(new[~allowed], old[~allowed]) and not torch.equal(new, old)
    fell = (targets - old).square().sum() - (targets - new).square().sum()
    assert float(fell) == pytest.approx(float(gain.sum()), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3])
def test_the_best_of_all_bits_is_found(bits):
    """A window of a few steps, all ways tried."""
    part, steps = coded(bits), 8 // bits
    targets = integers(part) + 20 * torch.randn(70, 12, generator=torch.Generator().manual_seed(2))
    window = Windows(torch.tensor([5]), torch.tensor([10]), steps)
    codes, gain = recode(part, targets, window)
    errors = []
    for number in range(2 ** (bits * steps)):
        way = torch.tensor([[number >> bits * i & 2**bits - 1 for i in range(steps)]])
        errors.append(float((targets - integers(replace(part, codes=replaced(part, window, way)))).square().sum()))
    best = float((targets - integers(replace(part, codes=replaced(part, window, codes)))).square().sum())
    assert best == pytest.approx(min(errors), rel=1e-6)
    before = float((targets - integers(part)).square().sum())
    assert before - best == pytest.approx(float(gain[0]), rel=1e-3)


def test_windows_at_the_start_of_columns_know_the_state_before():
    part = coded(2)
    part = replace(part, chain=3)                                      # read as chains: other integers, still a code
    targets = integers(part) + 20 * torch.randn(70, 12, generator=torch.Generator().manual_seed(4))
    windows = possible(part, 8, 0)
    codes, gain = recode(part, targets, windows)
    new = integers(replace(part, codes=replaced(part, windows, codes)))
    fell = (targets - integers(part)).square().sum() - (targets - new).square().sum()
    assert float(fell) == pytest.approx(float(gain.sum()), rel=1e-4) and float(gain.min()) > -1e-2


def test_nothing_to_gain_changes_nothing():
    part = coded(2)
    windows = possible(part, 8, 0)
    codes, gain = recode(part, integers(part), windows)
    assert torch.equal(replaced(part, windows, codes), part.codes) and not gain.any()


class Layer:
    """What a Flipper asks of a layer."""

    def __init__(self, part):
        self.parts = [PartMasters(part, Trained(), None)]


class Students:
    """Three layers of one student."""

    def __init__(self):
        self.layers = {name: Layer(coded(2, rows=96, cols=24)) for name in "abc"}


def test_at_most_a_share_flips_and_only_where_it_was_gathered(monkeypatch):
    student = Students()
    monkeypatch.setattr(flips, "GATHERED_BYTES", 4 * 96 * 24)          # a layer a turn
    flipper = flips.Flipper(student, 0.05, step=1.0)
    assert flipper.turns == 3
    wanted = {id(part): torch.randn(96, 24, generator=torch.Generator().manual_seed(5)) * 15 for part in flipper.parts}

    def judge() -> float:
        return sum(float((integers(part.part) - goal[id(part)]).square().sum()) for part in flipper.parts)

    goal = {id(part): integers(part.part) + wanted[id(part)] for part in flipper.parts}
    codes = [part.part.codes.clone() for part in flipper.parts]
    flipper.gather(1)
    assert [part.gathered is None for part in flipper.parts] == [True, False, True]
    flipper.parts[1].gathered -= wanted[id(flipper.parts[1])]
    done = flipper.flip(1, judge)
    groups = 24 * 6
    assert done.groups == groups and 0 < done.flipped <= int(0.05 * groups) and done.kept
    same = [torch.equal(part.part.codes, old) for part, old in zip(flipper.parts, codes)]
    assert same == [True, False, True]
    moved = (integers(flipper.parts[1].part) != integers(replace(flipper.parts[1].part, codes=codes[1])))
    assert int(moved.any(1).sum()) > 0 and int(moved.sum()) <= done.flipped * (WINDOW + 6)
    # a loss that does not fall: everything as before, a smaller step
    now, step = flipper.parts[1].part.codes.clone(), flipper.step
    flipper.gather(1)
    flipper.parts[1].gathered += wanted[id(flipper.parts[1])]
    assert not flipper.flip(1, iter([1.0, 2.0]).__next__).kept
    assert torch.equal(flipper.parts[1].part.codes, now) and flipper.step == 0.5 * step


def test_a_run_tries_flips_and_its_state_holds_the_codes(coarse, testbed, quick, lessons, tmp_path):
    """Frozen scales and all, a rate of zero: nothing but codes can move."""
    trained = Trained(scales=False, tables="frozen", biases=False, dense=False, codes=True)
    tuning = replace(quick["tuning"], trained=trained, flips=0.001, flip_every=2, steps=2, checks=1, rate=0.0)
    first = Student(coarse, trained, "cpu", testbed)
    before = first.values()
    loop = loops.Loop(first, lessons, tuning, 3.0, Progress(), tmp_path / "state.npz")
    course = loop.run()
    assert course.flip_step != flips.FIRST_STEP and course.best <= course.start
    assert (course.flipped > 0) == (course.flip_step > flips.FIRST_STEP)
    part = next(iter(first.layers.values())).parts[0]
    windows = possible(part.part, 16, 0)
    part.part = replace(part.part, codes=replaced(part.part, windows, torch.ones(len(windows.first), 16)))
    loop.best = first.values()
    loop._save()
    second = Student(coarse, trained, "cpu", testbed)
    again = loops.Loop(second, lessons, tuning, 3.0, Progress(), tmp_path / "state.npz")
    assert again.course == course and again.finished() is again.course
    changed = [name for name, value in second.values().items() if not torch.equal(value, before[name])]
    assert changed and all(name.endswith(".codes") for name in changed)
    assert all(torch.equal(value, second.values()[name]) for name, value in first.values().items())


PLAIN = [("additive", 1, {}, (40, 50)), ("additive", 2, {}, (40, 50)),
         ("product", 2, {"max_codebook_bits": 4.0}, (40, 50)),
         ("additive", 1, {"conv_group": "kernel"}, (24, 10, 3, 3)), ("palette", 3, {}, (40, 50)),
         ("palette", 2, {"group_size": 20}, (40, 50)), ("uniform", 3, {}, (40, 50)),
         ("uniform", 4, {"group_size": 16}, (40, 50))]


def plain(kind, bits, options, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return encode_weight(weight, make_spec(kind, bits, **options)).weight.parts[0][3]


@pytest.mark.parametrize(("kind", "bits", "options", "shape"), PLAIN)
def test_a_group_alone_is_coded_again(kind, bits, options, shape):
    """Only the chosen groups change, and by as much as is said; targets at the codes change nothing."""
    part = plain(kind, bits, options, shape)
    old = integers_of(part)
    groups = regroup.count(part)
    chosen = torch.arange(1, groups, 3)
    codes, gain = regroup.recode(part, old, chosen)
    assert not regroup.differs(part, chosen, codes).any() and not gain.any()
    spread = 3 * regroup.error(part, old)
    targets = old + spread * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    codes, gain = regroup.recode(part, targets, chosen)
    new = replace(part, codes=regroup.replaced(part, chosen, codes))
    moved = integers_of(new) != old
    allowed = torch.zeros(groups)
    allowed[chosen] = 1
    everywhere = regroup.sums(torch.ones_like(old), part, torch.arange(groups))
    assert int(everywhere.sum()) == old.numel()
    mask = regroup.sums(moved.float(), part, torch.arange(groups)) > 0
    assert bool(mask.any()) and not bool((mask & (allowed == 0)).any())
    assert regroup.changed(part, new) == int(regroup.differs(part, chosen, codes).sum()) >= int(mask.sum())
    fell = (targets - old).double().square().sum() - (targets - integers_of(new)).double().square().sum()
    assert float(fell) == pytest.approx(float(gain.double().sum()), rel=1e-3) and float(gain.min()) >= 0


@pytest.mark.parametrize(("kind", "bits", "options", "shape"), PLAIN)
def test_scalar_codes_and_entries_take_the_nearest(kind, bits, options, shape):
    if (kind, bits) == ("additive", 2):
        pytest.skip("a beam over two books may miss the nearest sum")
    part = plain(kind, bits, options, shape)
    targets = integers_of(part) + 2 * regroup.error(part, integers_of(part)) * torch.randn(
        part.out_features, part.channels * part.taps, generator=torch.Generator().manual_seed(1))
    everything = torch.arange(regroup.count(part))
    best = None
    for code in range(2**part.bits):                                   # every code everywhere
        same = torch.full((len(everything), 1), code)
        values = integers_of(replace(part, codes=regroup.replaced(part, everything, same)))
        lost = regroup.sums((targets - values).square(), part, everything)
        best = lost if best is None else torch.minimum(best, lost)
    codes, _ = regroup.recode(part, targets, everything)
    found = integers_of(replace(part, codes=regroup.replaced(part, everything, codes)))
    torch.testing.assert_close(regroup.sums((targets - found).square(), part, everything), best, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("kind", "bits", "options", "shape"), PLAIN)
def test_at_most_the_share_flips_and_layers_not_flagged_never(kind, bits, options, shape, monkeypatch):
    """T7, for codes that are not trellis codes."""
    student = Students()
    student.layers = {name: Layer(plain(kind, bits, options, shape)) for name in "abc"}
    part = student.layers["a"].parts[0].part
    monkeypatch.setattr(flips, "GATHERED_BYTES", 4 * part.out_features * part.channels * part.taps)
    flipper = flips.Flipper(student, 0.02, step=1.0)
    assert flipper.turns == 3 and len(flipper.parts) == 3
    old = [masters.part for masters in flipper.parts]
    wish = 4 * regroup.error(part, integers_of(part)) * torch.randn(
        integers_of(part).shape, generator=torch.Generator().manual_seed(5))
    goal = integers_of(old[1]) + wish
    flipper.gather(1)
    flipper.parts[1].gathered -= wish
    done = flipper.flip(1, lambda: float((integers_of(flipper.parts[1].part) - goal).square().sum()))
    most = int(0.02 * regroup.count(part))
    changed = [regroup.changed(before, masters.part) for before, masters in zip(old, flipper.parts)]
    assert done.kept and changed == [0, done.flipped, 0] and 0 < done.flipped <= most
    assert done.flipped == most or bits == 1                           # enough wished for it
    flipper.gather(2)
    flipper.parts[2].gathered += 1e-3
    before = [masters.part for masters in flipper.parts]
    assert not flipper.flip(2, iter([1.0, 1.0]).__next__).kept
    assert all(a is b for a, b in zip(before, (masters.part for masters in flipper.parts)))
