"""The students of benchmarks/activations.py: names, pairs, and which of them need statistics."""
from __future__ import annotations

import torch


def test_names_are_one_students_and_pairs_are_of_students_there_are(bench):
    made = bench("activations")
    rows = {row.name: row for row in made.rows()}
    assert len(rows) == len(made.rows())
    assert {name for pair in made.PAIRS for name in pair} <= set(rows)
    assert all(row.weights == "w16" or row.weights in made.PLANS for row in rows.values())
    wanted = {"w3 a8", "w3 a16", "w4 a8", "w2 a8", "w1.5 a8", "w3 a6", "w16 a6 8 groups", "w16 a6 tensor",
              "w16 scores 6 log2, start too"}
    assert wanted <= set(rows)


def test_tables_need_statistics_and_tokens_do_not(bench):
    made = bench("activations")
    need = {row.name for row in made.rows() if made.needs_ranges(row.activations)}
    assert {"w4 a8", "w16 a6 tensor", "w16 dgq6"} <= need
    assert not need & {"w3 a16", "w3 a8", "w3 a8 everywhere", "w16 scores 8 log2"}


def test_pairs_are_compared_prompt_by_prompt(bench):
    made, spread = bench("activations"), torch.linspace(20, 30, 20, dtype=torch.float64)
    args = type("Args", (), {"steps": 12})
    values = {"a": {"latent_psnr": spread.tolist()}, "b": {"latent_psnr": (spread - 0.5).tolist(), "noise_snr": [1.0]}}
    (line,) = made.compared("a", "b", values, args)
    assert (line["metric"], line["prompts"]) == ("latent_psnr", 20)
    assert line["first_has_more"] == line["low"] == line["high"] == "0.500"
