"""The trained classifier names scenes it has never seen, and the alignment score that rests on it."""
from __future__ import annotations

import pytest
import torch

DRAWN = 96
BARS = {"layout": 0.97, "ground": 0.97, "background": 0.97, "shape 1": 0.93, "color 1": 0.97, "size 1": 0.97,
        "shape 2": 0.92, "color 2": 0.97, "size 2": 0.97}


@pytest.fixture(scope="module")
def held_out(scenes_package):
    """Pictures of 0..1 and attributes of scenes beyond those of the stored report."""
    from scenes.data import HELD_OUT_SEED, draw

    pictures, attributes = draw(HELD_OUT_SEED, DRAWN, first=10_000)
    return pictures.float() / 255, attributes


def shares(net, images, attributes) -> dict[str, float]:
    from scenes.data import labels
    from scenes.train_classifier import accuracy

    return accuracy(net, (images * 255).to(torch.uint8), labels(attributes))


def test_it_names_what_it_has_never_seen(held_out):
    from scenes import classifier

    found = shares(classifier.load(), *held_out)
    assert all(found[name] >= bar for name, bar in BARS.items()), found
    untrained = shares(classifier.Net().eval(), *held_out)
    assert all(untrained[name] < bar for name, bar in BARS.items()), untrained


def test_it_sees_through_the_vae(held_out):
    from scenes import classifier
    from scenes.train_classifier import load_vae, reconstruct

    images, attributes = held_out[0][:32], held_out[1][:32]
    found = shares(classifier.load(), reconstruct(load_vae(), (images * 255).to(torch.uint8)) / 255, attributes)
    assert min(found[name] for name in ("layout", "ground", "background", "shape 1", "color 1", "size 1")) >= 0.8, found


def test_attributes_in_words(held_out):
    from scenes import classifier
    from scenes.data import labels

    images, attributes = held_out
    said = classifier.attributes(images)
    right = labels(said).eq(labels(attributes)).all(1)
    assert right.double().mean() > 0.9
    for at in right.nonzero()[:, 0].tolist():
        assert said[at].keys() == attributes[at].keys()
        assert sorted(said[at]["objects"]) == sorted(attributes[at]["objects"])


def test_alignment_of_drawn_scenes(held_out):
    from scenes import alignment

    images, attributes = held_out
    own = alignment.score(images, attributes)
    assert 0.93 < own["score"] <= 1 + 1e-9
    assert alignment.score(images, attributes, own)["score"] == pytest.approx(1)
    assert abs(alignment.score(images.roll(1, 0), attributes, own)["score"]) < 0.1
    assert abs(alignment.score(torch.full_like(images, 0.5), attributes, own)["score"]) < 1e-6


def test_features_tell_sets_apart(held_out):
    from scenes import classifier

    images, _ = held_out
    found = classifier.features(images)
    assert found.shape == (DRAWN, classifier.FEATURES) and found.dtype == torch.float32
    assert found.min() >= 0 and not found.requires_grad
    assert torch.allclose(found[5:6], classifier.features(images[5:6]), atol=1e-4)
    ours, others, gray = found[:48].mean(0), found[48:].mean(0), classifier.features(images * 0.1 + 0.45).mean(0)
    assert (ours - others).norm() < 0.5 * (ours - gray).norm()


@pytest.mark.parametrize("wrong", [torch.zeros(3, 64, 64), torch.zeros(1, 3, 32, 32), torch.zeros(0, 3, 64, 64),
                                   torch.zeros(1, 3, 64, 64, dtype=torch.uint8)])
def test_other_pictures_are_refused(wrong):
    from scenes import classifier

    with pytest.raises(ValueError, match="expected pictures"):
        classifier.attributes(wrong)


def test_missing_and_foreign_weights(tmp_path):
    from safetensors.torch import save_file
    from scenes import classifier

    with pytest.raises(FileNotFoundError, match="train_classifier.py"):
        classifier.load(tmp_path / "none.safetensors")
    save_file({"feature.bias": torch.zeros(classifier.FEATURES)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another classifier"):
        classifier.load(tmp_path / "other.safetensors")
