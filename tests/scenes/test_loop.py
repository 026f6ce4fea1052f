"""The training loop resumes exactly; the presets have the words and widths they promise."""
from __future__ import annotations

import pytest
import torch


def test_tokenizer_is_the_shipped_one(testbed):
    from scenes.presets import token_ids, tokenizer
    from transformers import CLIPTokenizer

    shipped = CLIPTokenizer.from_pretrained(testbed / "tokenizer")
    said = ["a small red ring above a large blue star", ""]
    assert tokenizer().get_vocab() == shipped.get_vocab()
    assert token_ids(tokenizer(), said).equal(token_ids(shipped, said))


def test_wide_layers_fit_blocks_of_256():
    from scenes.presets import PRESETS, make_denoiser

    with torch.device("meta"):
        layers = [module for module in make_denoiser(PRESETS["wide"]).modules()
                  if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    fit = sum(m.weight.numel() for m in layers if m.weight.shape[1] % 256 == 0)
    assert fit > 0.999 * sum(m.weight.numel() for m in layers)


def quadratic(folder, steps, deadline=float("inf")):
    from scenes.loop import Run, train

    torch.manual_seed(0)
    modules = torch.nn.ModuleDict({"x": torch.nn.Linear(4, 1)})
    run = Run(folder, torch.device("cpu"), deadline)

    def loss(modules, random):
        inputs = torch.randn(8, 4, generator=random)
        return (modules["x"](inputs)[:, 0] - inputs.sum(1)).square().mean()
    return train("test", modules, loss, steps, 0.05, run)


def test_a_paused_run_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    from scenes import loop

    whole, curve = quadratic(tmp_path / "whole", 120)
    assert curve[-1] < 0.2 * curve[0]
    clock = iter(range(10_000))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(loop.Paused):
        quadratic(tmp_path / "broken", 120, deadline=50.0)
    stopped = torch.load(tmp_path / "broken" / "test.pt", weights_only=True)["step"]
    assert 0 < stopped < 120
    again, curve_again = quadratic(tmp_path / "broken", 120)
    assert curve_again == curve
    assert all(a.equal(b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert not list(tmp_path.rglob("*.part"))
