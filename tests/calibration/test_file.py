"""The file: what it keeps of a gram, and that nothing in it is trusted."""
from __future__ import annotations

import json
import random

import pytest
import torch
from vqpack.vq_core.calibration.file import (
    METADATA,
    Calibration,
    GroupEntry,
    gram_keys,
    header_facts,
    pack_gram,
    unpack_gram,
)
from vqpack.vq_core.container import Writer
from vqpack.vq_core.errors import FormatError, PlanError, VQError

LAYERS = [("a", (5, 6), 0), ("b", (3, 6), 0), ("c", (2, 4, 3, 3), 1), ("d", (2, 4), None)]
FACTS = {"fingerprint": "f", "pictures": 4, "held_out": 1, "settings": {"steps": 2}, "base": {"name": "model"},
         "noise_power": 2.5}


def gram(blocks: int, size: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(blocks, 50, size, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 3, size)
    x[:, :, 1] = x[:, :, 0] * 2 + x[:, :, 2] * 0.01
    return x.transpose(1, 2) @ x / 50


def written(path, change=lambda facts: None, groups=None, held_out=True, tensors=()):
    """A small file of four layers and two grams; change(facts) edits its JSON."""
    groups = groups or [GroupEntry(1, 6, False, 50, 20, 0), GroupEntry(9, 4, False, 50, 20 if held_out else 0, 0)]
    facts = json.loads(header_facts(layers=LAYERS, groups=groups, **FACTS))
    change(facts)
    replaced = dict(tensors)
    with Writer(path, overwrite=True) as writer:
        for index, (blocks, size) in enumerate(((1, 6), (9, 4))):
            for held in (False, True):
                upper, diagonal = pack_gram(gram(blocks, size, seed=index + 10 * held))
                for key, tensor in zip(gram_keys(index, held), (diagonal, upper), strict=True):
                    writer.add(key, replaced.pop(key, tensor))
        writer.add("sensitivity", replaced.pop("sensitivity", torch.arange(12.0)))
        writer.add("intervals.count", torch.ones(2, 4, dtype=torch.int64))
        writer.add("intervals.mean_square", torch.ones(2, 4))
        return writer.close({METADATA: json.dumps(facts)})


@pytest.fixture
def path(tmp_path):
    """Where a small calibration is written."""
    return tmp_path / "x.vqcal.safetensors"


def test_packing_keeps_correlations_to_16_bits():
    mean = gram(3, 40)
    back = unpack_gram(*pack_gram(mean))
    root = mean.diagonal(dim1=1, dim2=2).sqrt()
    assert torch.equal(back, back.transpose(1, 2))
    torch.testing.assert_close(back.diagonal(dim1=1, dim2=2), mean.diagonal(dim1=1, dim2=2))
    assert float(((back - mean) / (root[:, :, None] * root[:, None])).abs().max()) < 0.51 / 32767 + 1e-6


def test_zero_and_rank_deficient_grams_are_kept():
    mean = torch.zeros(2, 5, 5)
    mean[1, 0, 0] = 4.0
    mean[1, :2, :2] = 4.0
    torch.testing.assert_close(unpack_gram(*pack_gram(mean)), mean)
    assert torch.equal(unpack_gram(*pack_gram(torch.ones(1, 1, 1))), torch.ones(1, 1, 1))


def test_layers_find_their_grams(path):
    with Calibration(written(path)) as found:
        assert (found.fingerprint, found.count, found.held_out, found.noise_power) == ("f", 4, 1, 2.5)
        assert found.unreached() == ["d"] and found.shared() == {0: ["a", "b"], 1: ["c"]}
        a, b, c = (found.gram(key) for key in "abc")
        assert torch.equal(a.blocks, b.blocks) and not torch.equal(a.blocks, a.held_out)
        assert a.blocks.shape == (1, 6, 6) and c.blocks.shape == (9, 4, 4) and (a.count, a.held_out_count) == (50, 20)
        assert torch.equal(c.blocks, unpack_gram(*pack_gram(gram(9, 4, seed=1))))
        assert torch.equal(c.held_out, unpack_gram(*pack_gram(gram(9, 4, seed=11))))
        assert found.gram("d") is None and found.gram("nothing") is None
        assert found.sensitivity("b").tolist() == [5.0, 6.0, 7.0] and found.sensitivity("c").tolist() == [8.0, 9.0]
        assert found.sensitivity("d") is None


def test_gram_without_held_out_inputs(path):
    with Calibration(written(path, held_out=False)) as found:
        assert found.gram("c").held_out is None and found.gram("a").held_out is not None


def test_another_base_is_refused_and_a_fine_tune_is_not(path):
    shapes = {key: shape for key, shape, _ in LAYERS}
    with Calibration(written(path)) as found:
        found.check(shapes)
        with pytest.raises(PlanError, match="another base \\('model'\\).*'a' of shape \\[5, 6\\] has shape \\[5, 7\\]"):
            found.check({**shapes, "a": (5, 7)}, "'other'")
        with pytest.raises(PlanError, match="'c' of shape .* does not exist"):
            found.check({key: shape for key, shape in shapes.items() if key != "c"})
        with pytest.raises(PlanError, match="knows no layer 'e'"):
            found.check({**shapes, "e": (1, 1)})


def edit(key, value):
    return lambda facts: facts.__setitem__(key, value)


def edit_in(key, index, value):
    return lambda facts: facts[key].__setitem__(index, value)


GROUP = vars(GroupEntry(1, 6, False, 50, 20, 0))
HOSTILE = {
    "version": (edit("version", 2), "version 2, this program reads version 1"),
    "no version": (lambda facts: facts.pop("version"), "damaged"),
    "groups": (edit("groups", {}), "'groups' is missing"),
    "settings": (edit("settings", []), "'settings' is missing"),
    "layers": (edit("layers", None), "'layers' is missing"),
    "huge": (edit_in("groups", 0, {**GROUP, "size": 1 << 40}), "expected F32 \\[1, 1099511627776\\]"),
    "more blocks": (edit_in("groups", 0, {**GROUP, "blocks": 1 << 30}), "damaged"),
    "negative": (edit_in("groups", 0, {**GROUP, "count": -1}), "entry 0"),
    "true": (edit_in("groups", 0, {**GROUP, "count": True}), "entry 0"),
    "extra": (edit_in("groups", 0, {**GROUP, "more": 1}), "entry 0"),
    "no such group": (edit_in("layers", 0, ["a", [5, 6], 2]), "layer 0"),
    "columns": (edit_in("layers", 0, ["a", [5, 7], 0]), "does not have its 7 columns"),
    "twice": (edit_in("layers", 1, ["a", [5, 6], 0]), "layer 1"),
    "shape": (edit_in("layers", 0, ["a", [5], 0]), "layer 0"),
    "text": (edit_in("layers", 0, "abc"), "layer 0"),
    "missing": (lambda facts: facts["groups"].append(GROUP), "'gram.2.diagonal': expected .* got nothing"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_hostile_headers_are_refused_by_name(path, case):
    change, words = HOSTILE[case]
    with pytest.raises(FormatError, match=words):
        Calibration(written(path, change))


@pytest.mark.parametrize("key, tensor", [
    ("gram.0.diagonal", torch.full((1, 6), float("nan"))), ("gram.0.diagonal", torch.full((1, 6), -1.0)),
    ("sensitivity", torch.full((12,), float("inf"))), ("sensitivity", torch.ones(11)),
    ("sensitivity", torch.ones(12, dtype=torch.float64))], ids=str)
def test_hostile_values_are_refused_when_read(path, key, tensor):
    with Calibration(written(path, tensors=[(key, tensor)])) as found, pytest.raises(FormatError, match="damaged"):
        found.gram("a")
        found.sensitivity("a")


def test_other_files_are_no_calibrations(path, tmp_path):
    with Writer(path, overwrite=True) as writer:
        writer.add("a", torch.ones(3))
        writer.close({})
    with pytest.raises(FormatError, match="is not a calibration"):
        Calibration(path)
    path.write_bytes(b"no")
    with pytest.raises(FormatError, match="x.vqcal.safetensors"):
        Calibration(path)
    with pytest.raises(FormatError, match="cannot open"):
        Calibration(tmp_path / "nothing.vqcal.safetensors")


def test_damaged_bytes_never_crash(path):
    good = written(path).read_bytes()
    random.seed(0)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(random.choice((1, 4))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        if random.random() < 0.2:
            data = data[:random.randrange(len(data))]
        path.write_bytes(data)
        try:
            with Calibration(path) as found:
                for key in found.layers:
                    read = found.gram(key)
                    assert read is None or torch.isfinite(read.blocks).all()
                    found.sensitivity(key)
        except VQError as error:
            assert "\n" not in str(error)
