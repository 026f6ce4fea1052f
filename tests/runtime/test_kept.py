"""Which decoded weights are worth keeping, what doctor says a file takes, and layers that keep theirs."""
from __future__ import annotations

import json

import pytest
import torch
from vqpack.vq_core import cost_model
from vqpack.vq_core.errors import UnsupportedError
from vqpack.vq_core.layers import VQLinear, replace_layers


def test_never_more_than_the_budget_and_the_dearest_first(weights):
    layouts = [(f"{i}", w.layout) for i, w in enumerate([*weights((70, 48)), *weights((40, 32, 3, 3))])]
    sizes = {name: cost_model.weights_of(layout) * 2 for name, layout in layouts}
    worth = {name: cost_model.decoding(layout) / sizes[name] for name, layout in layouts}
    for budget in (0, 5000, 40_000, 10**9):
        kept = cost_model.worth_keeping([(*row, 2) for row in layouts], budget)
        assert sum(sizes[name] for name in kept) <= budget and len(set(kept)) == len(kept)
        left = set(sizes) - set(kept)
        room = budget - sum(sizes[name] for name in kept)
        assert all(sizes[name] > room or worth[name] <= min(worth[k] for k in kept) for name in left)
    assert len(cost_model.worth_keeping([(*row, 2) for row in layouts], 10**9)) == len(layouts)


def test_what_takes_longer_costs_more(weights):
    palette, _, additive, trellis, split, branch = (cost_model.decoding(w.layout) for w in weights((64, 64)))
    assert palette == trellis < additive < split and trellis < branch


def test_kept_layers_are_those_named(weights):
    one, *_, two = weights((70, 48))
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(48, 70), "b": torch.nn.Linear(48, 70)})
    replace_layers(model, {"a": one, "b": two}, {"b"})
    assert isinstance(model["a"], VQLinear) and model["a"].decoded is None
    assert torch.equal(model["b"].decoded, two.decode())
    assert not [key for key in model.state_dict() if "decoded" in key]


def test_doctor_prints_what_a_file_takes(tmp_path, capsys):
    from vqpack.vq_core.bench.parts import random_weight
    from vqpack.vq_core.cli.main import main
    from vqpack.vq_core.container import Writer
    from vqpack.vq_core.spec import PaletteSpec

    path, prefix = tmp_path / "small.safetensors", "model.diffusion_model."
    weight = random_weight((64, 32), PaletteSpec(3))
    with Writer(path) as writer:
        writer.add_blob(f"{prefix}input_blocks.1.0.in_layers.2.weight", weight.blob)
        writer.add(f"{prefix}out.0.bias", torch.zeros(10, dtype=torch.float16))
        writer.add("first_stage_model.x", torch.zeros(1000))
        writer.close({})
    assert main(["doctor", str(path), "--json", "--size", "512", "--batch", "1", "--keep-decoded", "1"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["weights"] == weight.nbytes + 20 and memory["scratch"] == 64 * 32 * 10
    assert memory["kept"] == 64 * 32 * 2 and memory["activations"] == 5040 * 2 * 64 * 64
    assert memory["peak"] == sum(memory[name] for name in ("weights", "scratch", "kept", "activations"))
    assert main(["doctor", str(path)]) == 0
    assert "peak" in capsys.readouterr().out


def test_doctor_on_a_file_without_coded_unet(tmp_path):
    from vqpack.vq_core.container import Writer
    from vqpack.vq_core.sampling_memory import sampling_memory

    with Writer(tmp_path / "dense.safetensors") as writer:
        writer.add("model.diffusion_model.out.0.bias", torch.zeros(10))
        writer.close({})
    with pytest.raises(UnsupportedError, match="no coded UNet"):
        sampling_memory(tmp_path / "dense.safetensors")
