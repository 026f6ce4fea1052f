"""CLIP's tokenizer from the repository alone: vocabulary, known ids, padding."""
from __future__ import annotations

from vqpack.vq_core.configs.tokenizer import load_tokenizer, read_merges, vocabulary


def test_vocabulary_is_clips():
    ids = vocabulary(read_merges())
    assert len(ids) == 49408 and sorted(ids.values()) == list(range(49408))
    assert {token: ids[token] for token in ("!", "a</w>", "<|startoftext|>", "<|endoftext|>", "photo</w>")} == {
        "!": 0, "a</w>": 320, "<|startoftext|>": 49406, "<|endoftext|>": 49407, "photo</w>": 1125}


def test_known_prompt():
    """Ids of CLIP's published tokenizer for a text with case, numbers, accents, other scripts and a symbol."""
    ids = load_tokenizer()("a photo of an Astronaut riding a horse, 4k; it's naïve — 日本語 😀  x").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 267, 275, 330, 282, 585, 568, 1097, 35689, 563,
                   2005, 39121, 44353, 34002, 508, 7334, 343, 49407]


def test_the_two_pad_differently():
    first, second = load_tokenizer(), load_tokenizer("!")
    wanted = {"padding": "max_length", "max_length": 77, "truncation": True}
    assert first.model_max_length == second.model_max_length == 77
    assert first("x", **wanted).input_ids[-3:] == [49407] * 3
    assert second("x", **wanted).input_ids[-3:] == [0] * 3
