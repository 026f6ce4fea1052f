"""Labels, captions read back, and the alignment score by hand: no weights needed."""
from __future__ import annotations

import pytest
import torch

TWO = "a small red ring above a large blue star on a dotted white background"
SAME = "a large blue star below a small red ring on a dotted white background"
ONE = "a large green triangle on a striped orange background"


@pytest.fixture
def data():
    from scenes import data

    return data


def rows(data, *captions):
    return data.labels([data.parse(caption) for caption in captions])


def test_captions_read_back(data):
    for index in range(200):
        _, caption, attributes = data.scenes.scene(7, index, size=8)
        assert data.parse(caption) == attributes
    for wrong in ("", "a red cat", "a small red ring on a dotted white", TWO.replace("ring", "rings")):
        with pytest.raises(ValueError, match="expected a caption"):
            data.parse(wrong)


def test_two_captions_of_one_picture_have_equal_labels(data):
    assert rows(data, TWO).equal(rows(data, SAME))
    assert data.labels([data.named(row) for row in rows(data, TWO, ONE).tolist()]).equal(rows(data, TWO, ONE))


def test_mirror_swaps_only_what_stands_side_by_side(data):
    beside = TWO.replace("above", "left of")
    assert data.mirrored(rows(data, beside)).equal(rows(data, beside.replace("left of", "right of")))
    assert data.mirrored(rows(data, TWO)).equal(rows(data, TWO))


def test_matches_by_hand(data):
    from scenes.alignment import matches

    def match(seen, wanted):
        return matches(rows(data, seen), rows(data, wanted))[0].tolist()

    assert match(TWO, TWO) == match(ONE, ONE) == [1] * 6
    assert match(TWO.replace("above", "below"), TWO) == [1, 1, 1, 0, 1, 1]           # places exchanged
    assert match(TWO.replace("above", "left of"), TWO) == [1, 1, 1, 0, 1, 1]
    assert match(TWO.replace("red", "black"), TWO) == [1, 0.5, 1, 1, 1, 1]
    assert match("a small red ring on a dotted white background", TWO) == [0.5, 0.5, 0.5, 0, 1, 1]
    assert match(TWO, "a large blue star on a plain white background") == [1, 1, 1, 0, 0, 1]


def test_score_of_perfect_and_of_shuffled_pictures(data, monkeypatch):
    from scenes import alignment

    attributes = [data.scenes.scene(7, index, size=8)[2] for index in range(300)]
    truth = data.labels(attributes)
    monkeypatch.setattr(alignment, "predicted", lambda images: images)
    perfect = alignment.score(truth, attributes)
    assert perfect["score"] == pytest.approx(1, abs=0.02) and perfect["all_right"] == 1
    assert 0.2 < perfect["chance"] < 0.5
    shuffled = alignment.score(truth.roll(1, 0), attributes, perfect)
    assert abs(shuffled["score"]) < 0.05
    assert sum(shuffled["per_image"]) / 300 == pytest.approx(shuffled["score"])
    half = alignment.score(torch.cat([truth[:150], truth[150:].roll(1, 0)]), attributes, perfect)
    assert half["score"] == pytest.approx(0.5, abs=0.06)
    with pytest.raises(ValueError, match="two different captions"):
        alignment.score(truth[:2], [attributes[0]] * 2)


def test_chance_and_score_by_hand(data, monkeypatch):
    """Two captions differ in the background alone; a third shares with them that there is one object."""
    from scenes import alignment

    captions = ["a large red circle on a plain blue background", "a large red circle on a plain green background",
                "a small white square on a striped black background"]
    truth = rows(data, *captions)
    monkeypatch.setattr(alignment, "predicted", lambda images: images)
    perfect = alignment.score(truth, captions)
    assert perfect["chance"] == pytest.approx((2 * 5 / 6 + 4 * 1 / 6) / 6)          # six ordered pairs
    assert perfect["kinds"]["background"] == {"match": 1, "chance": 0}
    assert perfect["kinds"]["shape"]["chance"] == pytest.approx(2 / 6)
    assert perfect["score"] == pytest.approx(1)
    always = alignment.score(truth[:1].expand(3, -1), captions, perfect)            # one picture for every caption
    assert always["match"] == pytest.approx((1 + 5 / 6 + 1 / 6) / 3)
    assert always["score"] == pytest.approx(0)
    one_wrong = truth.clone()
    one_wrong[2, 3] = 0                                                             # a circle for the square
    found = alignment.score(one_wrong, captions, perfect)
    chance = (2 * 5 / 6 + 2 * 1 / 6 + 2 * 2 / 6) / 6                                # this circle suits the other two
    assert found["score"] == pytest.approx(((1 + 1 + 5 / 6) / 3 - chance) / perfect["excess"])
    assert found["all_right"] == pytest.approx(2 / 3)


def test_chance_leaves_equal_captions_out(data, monkeypatch):
    from scenes import alignment

    truth = rows(data, ONE, ONE, TWO)
    monkeypatch.setattr(alignment, "predicted", lambda images: images)
    unlike = float(alignment.matches(truth[2:], truth[:1]).mean() + alignment.matches(truth[:1], truth[2:]).mean()) / 2
    assert alignment.score(truth, [ONE, ONE, TWO])["chance"] == pytest.approx(unlike)


def test_results_of_other_captions_are_refused(data, monkeypatch):
    from scenes import alignment

    truth = rows(data, ONE, TWO)
    monkeypatch.setattr(alignment, "predicted", lambda images: images)
    with pytest.raises(ValueError, match="one caption per picture"):
        alignment.score(truth, [ONE])
    with pytest.raises(ValueError, match="the same 2 captions"):
        alignment.score(truth, [ONE, TWO], {"pictures": 3, "excess": 0.5})
    with pytest.raises(ValueError, match="no better than chance"):
        alignment.score(truth, [ONE, TWO], {"pictures": 2, "excess": 0.0})
