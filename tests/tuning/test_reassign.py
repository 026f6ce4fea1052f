"""Codes that follow their books: nearest by brute force, exact gradients, mixtures that harden, runs that go on."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from vqpack.kernels.dispatch import decode_part
from vqpack.kernels.gradients import entry_sums, grouped, ungrouped
from vqpack.vq_core.container import Reader
from vqpack.vq_core.encode import encode_weight, to_matrix
from vqpack.vq_core.errors import Interrupted, PlanError, UnsupportedError
from vqpack.vq_core.inspection import inspect_file
from vqpack.vq_core.layers import VQConv2d, VQLinear
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.source_reader import open_reader
from vqpack.vq_core.spec import make_spec
from vqpack.vq_core.tuning import reassign, run
from vqpack.vq_core.tuning.assigned import Assigned, assign_groups, codes_of, over_scales, packed
from vqpack.vq_core.tuning.candidates import HARD_FROM, Candidates
from vqpack.vq_core.tuning.coded import TunedLayer
from vqpack.vq_core.tuning.groups import groups_changed, integers_of
from vqpack.vq_core.tuning.loop import Loop
from vqpack.vq_core.tuning.masters import Trained
from vqpack.vq_core.tuning.settings import Tuning
from vqpack.vq_core.tuning.student import Student

KINDS = [("product", 2, {}, (40, 50)), ("product", 3, {"max_codebook_bits": 4.0}, (40, 52)),
         ("additive", 1, {}, (40, 50)), ("additive", 1, {"conv_group": "kernel"}, (24, 10, 3, 3)),
         ("product", 2, {}, (24, 10, 3, 3))]
COLUMNS, BOOKS = Trained(columns=True), {"max_codebook_bits": 4.0}


def made(kind, bits, options, shape):
    """-> float weight, coded weight"""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.1
    return weight, encode_weight(weight, make_spec(kind, bits, **options)).weight


def layer_of(coded, trained=COLUMNS):
    return TunedLayer(VQLinear(coded, None) if len(coded.shape) == 2 else VQConv2d(coded, None), trained, {})


def moved(layer, seed=1):
    """Books and scales somewhere else."""
    for parameter in layer.parts.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))


def distances(part, vectors):
    """Squared, of each group to each entry of its book, padding left out: [out, groups, K]"""
    blocks, _, size, _ = part.codebooks.shape
    groups = vectors.shape[1]
    books = part.codebooks[torch.arange(groups) * blocks // groups, 0].double()         # [groups, K, g]
    real = grouped(torch.ones(1, part.channels * part.taps, dtype=torch.float64), part)  # [1, groups, g]
    return ((vectors[:, :, None].double() - books[None]) * real[:, :, None]).square().sum(3)


@pytest.mark.parametrize(("kind", "bits", "options", "shape"), KINDS)
def test_groups_take_the_nearest_entry_of_their_book(kind, bits, options, shape):
    weight, coded = made(kind, bits, options, shape)
    layer = layer_of(coded)
    masters = layer.parts[0]
    masters.assigned = Assigned(masters.part, to_matrix(weight, 0, shape[1]), latent=False)
    moved(layer)
    before = masters.part
    layer.reassign()
    now = masters.now()
    vectors = masters.assigned.vectors(now)
    every = distances(now, vectors)
    taken = every.gather(2, codes_of(now))[..., 0]
    assert bool((taken <= every.min(2).values + 1e-7 * every.max()).all())               # no group on another entry
    some, all_ = groups_changed(before, masters.part)
    assert 0 < some < all_ == taken.numel()
    assert some == int((codes_of(before) != codes_of(masters.part)).any(2).sum())
    # what was assigned is the weight: decoded from an entry exactly there, it would be the weight again
    exact = ungrouped(vectors, now) * now.scales.gain * now.scales.row[:, None].float()
    exact = exact * now.scales.col.float().repeat(now.taps)
    torch.testing.assert_close(exact, to_matrix(weight, 0, shape[1]), rtol=1e-4, atol=1e-5)


def test_books_where_they_were_give_the_codes_of_the_nearest_entries():
    weight, coded = made("product", 2, BOOKS, (40, 50))
    layer = layer_of(coded)
    masters = layer.parts[0]
    masters.assigned = Assigned(masters.part, to_matrix(weight, 0, 50), latent=False)
    layer.reassign()
    vectors = over_scales(weight, masters.part)
    assert torch.equal(codes_of(masters.part), assign_groups(vectors, masters.part, codes_of(masters.part)))
    assert torch.equal(codes_of(masters.part)[..., 0], distances(masters.part, vectors).argmin(2))
    before = masters.part
    assert not layer.reassign() and masters.part is before


def test_sums_of_books_never_get_worse_and_rotation_is_undone():
    weight, coded = made("additive", 2, {}, (40, 64))
    part = coded.parts[0][3]
    vectors = over_scales(weight, part)

    def lost(codes):
        return (vectors - grouped(integers_of(replace(part, codes=packed(part, codes))), part)).square().sum(2)

    shuffled = codes_of(part)[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    for old in (codes_of(part), shuffled):
        assert bool((lost(assign_groups(vectors, part, old)) <= lost(old) * (1 + 1e-5)).all())
    turned = replace(part, rotation=16, rotation_seed=5)
    torch.testing.assert_close(over_scales(decode_part(turned), turned), grouped(integers_of(part), part),
                               rtol=1e-3, atol=1.0)


def test_a_books_gradient_is_that_of_a_gather():
    weight, coded = made("product", 2, BOOKS, (40, 50))
    layer = layer_of(coded, Trained())
    masters = layer.parts[0]
    masters.assigned = Assigned(masters.part, to_matrix(weight, 0, 50), latent=True)
    assert groups_changed(coded.parts[0][3], masters.part)[0] == 0
    moved(layer)
    layer.reassign()
    now, x = masters.now(), torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    layer(x).square().sum().backward()
    books, groups = now.codebooks[:, 0].float().requires_grad_(True), 13
    block = torch.arange(groups) * len(books) // groups
    integers = books[block, codes_of(now)[..., 0]].flatten(1)[:, :50]                   # the gather
    integers.retain_grad()
    dense = integers * (now.scales.row.float() * now.scales.gain)[:, None]
    (x @ dense.t()).square().sum().backward()
    torch.testing.assert_close(entry_sums(integers.grad, now)[:, 0], books.grad, rtol=1e-4, atol=1e-4)
    unit = masters.unit * masters.part.scales.gain / now.scales.gain
    torch.testing.assert_close(masters.book.grad[:, 0], books.grad * unit, rtol=1e-3, atol=1e-3)
    # straight through: the latent's gradient is that of the decoded groups
    latent = masters.assigned.trained
    torch.testing.assert_close(latent.grad, grouped(integers.grad, now) * masters.assigned.step / now.scales.gain,
                               rtol=1e-3, atol=1e-3)


def test_latents_begin_where_no_code_changes_and_follow_their_gradient():
    weight, coded = made("product", 2, BOOKS, (40, 50))
    part = coded.parts[0][3]
    other = codes_of(part).roll(1, 0)                                   # codes that are not the nearest, as with a gram
    masters = layer_of(coded, Trained()).parts[0]
    masters.part = replace(part, codes=packed(part, other))
    masters.assigned = Assigned(masters.part, to_matrix(weight, 0, 50), latent=True)
    assert torch.equal(masters.assigned.codes(masters.part), other)
    assert not torch.equal(Assigned(masters.part, weight, latent=False).codes(masters.part), other)
    wish = torch.randn(masters.assigned.trained.shape, generator=torch.Generator().manual_seed(7))
    masters.assigned.trained.data += wish
    vectors = masters.assigned.vectors(masters.part)
    expected = distances(masters.part, vectors).argmin(2)
    assert torch.equal(masters.assigned.codes(masters.part)[..., 0], expected) and not torch.equal(expected, other)


def soft(count=3, shape=(40, 50)):
    weight, coded = made("product", 2, BOOKS, shape)
    layer = layer_of(coded, Trained())
    masters = layer.parts[0]
    wanted = Assigned(masters.part, to_matrix(weight, 0, shape[1]), latent=False).vectors(masters.part)
    masters.assigned = Candidates(masters.part, wanted, count)
    return layer, masters, wanted


@pytest.mark.parametrize("shape", [(40, 50), (24, 10, 3, 3)])
def test_mixtures_harden_to_the_nearest_entry(shape):
    layer, masters, wanted = soft(shape=shape)
    candidates, nearest = masters.assigned, distances(masters.part, wanted).argmin(2)
    order = distances(masters.part, wanted).argsort(2)[..., :3]
    assert torch.equal(candidates.near.long().sort(2).values, order.sort(2).values)
    largest = []
    for progress in (0.0, 0.3, 0.6, 0.74):
        candidates.sharpen(progress)
        shares = candidates.shares()
        assert not candidates.hard and torch.allclose(shares.sum(2), torch.ones(()))
        largest.append(float(shares.max(2).values.mean()))
    assert largest == sorted(largest) and largest[0] < 0.8 and largest[-1] > 0.95
    mixture = masters.decode(masters.part, torch.float32)
    candidates.sharpen(HARD_FROM)
    layer.reassign()
    assert candidates.hard and torch.equal(codes_of(masters.part)[..., 0], nearest)
    assert torch.equal(masters.decode(masters.part, torch.float32), decode_part(masters.part))
    assert not torch.equal(mixture, decode_part(masters.part))


@pytest.mark.parametrize("shape", [(40, 50), (24, 10, 3, 3)])
def test_gradients_of_a_mixture_are_autograds(shape):
    layer, masters, _ = soft(shape=shape)
    masters.assigned.sharpen(0.4)
    moved(layer)
    now, candidates = masters.now(), masters.assigned
    cols = now.channels * now.taps
    direction = torch.randn(shape[0], cols, generator=torch.Generator().manual_seed(2))
    books, logits = now.codebooks.float().requires_grad_(True), candidates.trained.detach().clone().requires_grad_(True)
    groups = logits.shape[1]
    block = (torch.arange(groups) * len(books) // groups)[None, :, None]
    mixed = ((candidates.sharpness * logits).softmax(2)[..., None] * books[block, 0, candidates.near.long()]).sum(2)
    matrix = ungrouped(mixed, now)
    (matrix * direction).sum().backward()
    decoded = masters.decode(now, torch.float32) / (now.scales.gain * now.scales.row.float()[:, None])
    torch.testing.assert_close(decoded, matrix.detach(), rtol=1e-4, atol=0.5)
    torch.testing.assert_close(candidates.entry_sums(direction, now), books.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(candidates.pull_back(direction, now)[candidates.trained], logits.grad, rtol=1e-3,
                               atol=1e-2)


@pytest.mark.parametrize(("trained", "flips", "said"), [
    ({"reassign": "latent", "codes": True}, 0.01, "both change codes"), ({"reassign": "near"}, 0.0, "--reassign must"),
    ({"candidates": 3}, 0.0, "need --reassign frozen"), ({"reassign": "latent", "candidates": 2}, 0.0, "frozen"),
    ({"reassign": "frozen", "candidates": 17}, 0.0, "--candidates must be 1 to 16")])
def test_settings_that_make_no_sense_are_one_sentence(trained, flips, said):
    with pytest.raises(PlanError, match=said):
        Tuning(steps=1, flips=flips, trained=Trained(**trained)).check()


def test_files_without_such_codes_are_refused(coarse, testbed, quick, tmp_path):
    tuning = replace(quick["tuning"], trained=Trained(reassign="frozen"))
    with pytest.raises(UnsupportedError, match="holds no product or additive codes"):
        run.tune(coarse, testbed, tmp_path / "x", **{**quick, "tuning": tuning})
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def product(testbed, tmp_path_factory):
    """The testbed's UNet in product codes of 1 bit."""
    from vqpack.vq_core.quantize import quantize

    return quantize(testbed, tmp_path_factory.mktemp("product") / "product", bits=1, method="product",
                    parts=("unet",)).path


@pytest.fixture(scope="module")
def followed(product, testbed, quick, tmp_path_factory):
    """A run whose codes follow a latent weight -> (result, arguments)"""
    arguments = {**quick, "tuning": replace(quick["tuning"], trained=Trained(reassign="latent"))}
    return run.tune(product, testbed, tmp_path_factory.mktemp("latent") / "tuned", **arguments), arguments


def test_codes_follow_and_the_share_is_stated(product, followed, testbed):
    result, _ = followed
    assert result.after < result.before
    with Reader(product) as before, Reader(result.path) as after:
        some = all_ = 0
        for key in before.coded_keys():
            for (*_, old), (*_, new) in zip(before.weight(key).parts, after.weight(key).parts):
                changed, groups = groups_changed(old, new)
                some, all_ = some + changed, all_ + groups
    assert 0 < some < all_ and result.changed == pytest.approx(some / all_)
    said = inspect_file(result.path)["settings"]["tuning"]
    assert said["reassign"] == "latent" and said["changed"] == pytest.approx(result.changed, rel=1e-4)
    assert said["trained"]["latents"] > 1_000_000
    assert result.path.stat().st_size - product.stat().st_size < 2000


def test_a_stopped_run_goes_on_to_the_same_bytes(product, followed, testbed, tmp_path):
    result, arguments = followed
    stages = []

    def stop() -> bool:
        return stages.count("tuning") > 6

    with pytest.raises(Interrupted):
        run.tune(product, testbed, tmp_path / "tuned", **arguments,
                 progress=Progress(lambda stage, *_: stages.append(stage), stop, interval=0.0))
    notes = []
    again = run.tune(product, testbed, tmp_path / "tuned", tell=notes.append, **arguments)
    assert any("Going on after step" in note for note in notes)
    assert again.path.read_bytes() == result.path.read_bytes() and json.dumps(again.history) == json.dumps(
        result.history)


def test_a_latent_whose_code_changed_forgets_its_moments(product, testbed, quick, lessons, tmp_path):
    trained = Trained(reassign="latent")
    student = Student(product, trained, "cpu", testbed)
    with open_reader(testbed) as original:
        reassign.prepare(student, original, Progress())
    loop = Loop(student, lessons, replace(quick["tuning"], trained=trained), 3.0, Progress(), tmp_path / "state.npz")
    part = next(iter(student.layers.values())).parts[0]
    latent, before = part.assigned.trained, codes_of(part.part)
    for other in student.trainable.values():
        loop.optimizer.state[other.parameter] = {moment: torch.ones_like(other.parameter)
                                                 for moment in ("exp_avg", "exp_avg_sq")}
    latent.data[:, 0] += 3.0
    loop._reassign()
    changed = (codes_of(part.part) != before).any(2)
    assert bool(changed[:, 0].any()) and not bool(changed[:, 1:].any())
    for moment in ("exp_avg", "exp_avg_sq"):
        kept = loop.optimizer.state[latent][moment]
        assert torch.equal(kept == 0, changed[..., None].expand_as(kept))
        assert bool((loop.optimizer.state[part.book][moment] == 1).all())


def test_candidates_are_chosen_by_the_end_of_a_run(product, testbed, quick, lessons, tmp_path):
    trained = Trained(reassign="frozen", candidates=3, scales=False, biases=False, norms=False, dense=False)
    student = Student(product, trained, "cpu", testbed)
    with open_reader(testbed) as original:
        reassign.prepare(student, original, Progress())
    tuning = replace(quick["tuning"], trained=trained, steps=4, checks=2)
    course = Loop(student, lessons, tuning, 3.0, Progress(), tmp_path / "state.npz").run()
    parts = [part for layer in student.layers.values() for part in layer.parts]
    assert course.step == 4 and all(isinstance(part.assigned, Candidates) and part.assigned.hard for part in parts)
    student.reassign()
    for part in parts:
        best = part.assigned.near.long().gather(2, part.assigned.trained.argmax(2, keepdim=True))
        assert torch.equal(codes_of(part.part), best)
    assert isinstance(parts[0].assigned.trained, nn.Parameter) and set(student.numbers()) == {"books", "shares"}
